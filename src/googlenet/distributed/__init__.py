"""Batch prediction with Ray Data, and serving with Ray Serve."""
