"""The daemon that holds the authoritative state of LiveVariables."""
