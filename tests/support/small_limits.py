"""A daemon whose limits are those of the environment variable TEST_LIMITS (JSON), so that a test can reach them."""

from __future__ import annotations

import json
import os

from livetuned.domain import limits

for name, value in json.loads(os.environ["TEST_LIMITS"]).items():
    assert hasattr(limits, name), name
    setattr(limits, name, value)

from livetuned.daemon.cli import main  # noqa: E402 - what follows reads the limits when it is imported

main(prog_name="livetuned")
