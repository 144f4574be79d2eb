"""`python -m livetuned`."""

from livetuned.daemon.cli import main

main(prog_name="livetuned")
