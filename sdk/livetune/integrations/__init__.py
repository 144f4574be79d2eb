"""What ties livetune to other libraries and to its bundled workloads; each module needs what it ties together."""
