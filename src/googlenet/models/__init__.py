"""Pixels to logits: the papers' networks. Knows nobody else."""
