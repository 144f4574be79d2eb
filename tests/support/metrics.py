"""Reads a daemon's metrics as Prometheus does."""

from __future__ import annotations

import urllib.request

from prometheus_client.parser import text_string_to_metric_families

from support.daemon import Daemon


def page(daemon: Daemon, path: str = "/metrics") -> str:
    """Returns a page of its HTTP endpoint."""
    with urllib.request.urlopen(f"http://127.0.0.1:{daemon.metrics_port}{path}", timeout=10) as answer:
        return str(answer.read().decode())


def metric(daemon: Daemon, name: str, /, **labels: str) -> float:
    """Returns the value of a sample, the sum if several have the labels, 0.0 if none has."""
    return sum(
        sample.value
        for family in text_string_to_metric_families(page(daemon))
        for sample in family.samples
        if sample.name == name and labels.items() <= sample.labels.items()
    )
