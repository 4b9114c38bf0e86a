"""Trained networks to where they are used: fused, exported, measured, served. Knows models, data and evaluation."""
