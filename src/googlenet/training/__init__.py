"""Batches to weights. Knows models, data and evaluation."""
