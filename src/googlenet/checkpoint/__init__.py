"""Checkpoints of trained networks, training states, and weights of other libraries."""
