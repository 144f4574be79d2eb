"""The process: its configuration, its command line, how it starts and ends, and the one place that builds its parts."""
