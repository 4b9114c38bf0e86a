"""Disk to batches. Knows nobody else."""
