"""The command line of LiveTune: a client of the daemon like any other."""
