"""What is true of jobs, variables and changes. Pure: no I/O, no clock, no threads; also the model of the property tests."""
