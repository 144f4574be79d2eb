"""Calls that many tests make of a daemon, one line each."""

from __future__ import annotations

from livetune.v1 import control_pb2, types_pb2
from support.daemon import Daemon


def set_request(job: str = "vgg", **values: float) -> control_pb2.SetVariablesRequest:
    """Builds the request that sets float variables."""
    request = control_pb2.SetVariablesRequest(job=f"jobs/{job}")
    for name, value in values.items():
        request.updates.add(variable_id=name).value.float_value = value
    return request


def set_values(daemon: Daemon, job: str = "vgg", **values: float) -> types_pb2.Change:
    """Sets float variables over a connection of its own."""
    with daemon.control() as control:
        return control.SetVariables(set_request(job, **values), timeout=60).change


def get_job(daemon: Daemon, job: str = "vgg") -> types_pb2.Job:
    """Describes a job over a connection of its own."""
    with daemon.control() as control:
        return control.GetJob(control_pb2.GetJobRequest(name=f"jobs/{job}"), timeout=10).job
