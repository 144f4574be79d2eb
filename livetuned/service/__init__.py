"""What the daemon does: the engine that writes, the hub that tells, the sessions of jobs and their ports."""
