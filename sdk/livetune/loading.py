"""Owns how gRPC is loaded: late, and so that the program may fork."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from importlib import import_module

__all__ = ["load_grpc"]

_FORK_SUPPORT = "GRPC_ENABLE_FORK_SUPPORT"


def load_grpc(begin: Callable[[], object]) -> None:
    """Load gRPC without its help for forks, unless the program has said otherwise, or has loaded it already.

    In a child, that help begins gRPC's threads anew, for which the parent must have been still when it forked. With a
    conversation under way it never is: children die of it, of a segmentation fault, and a DataLoader ends the training.
    A child of ours does not use gRPC: without that help it can be forked.

    To be called where a program begins a job, on its own thread: the environment must not change under other threads.

    Args:
        begin: Uses gRPC for the first time, which is when it looks at the environment.
    """
    helped = "grpc" in sys.modules or _FORK_SUPPORT in os.environ
    if not helped:
        os.environ[_FORK_SUPPORT] = "0"
    try:
        for module in ("grpc", "livetune.status", "livetune.v1.job_pb2_grpc", "livetune.wire"):
            import_module(module)
        begin()
    finally:
        if not helped:
            del os.environ[_FORK_SUPPORT]
