"""How the daemon is spoken to: gRPC methods of a few lines each, their errors, and HTTP for metrics and health."""
