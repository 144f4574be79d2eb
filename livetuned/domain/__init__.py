"""What is true of jobs, variables and changes. Pure: no I/O, no clock, no threads; the property tests' model too."""
