"""Weights to figures. Knows models and data."""
