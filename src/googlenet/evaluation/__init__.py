"""Predictions and their evaluation: metrics, confidence intervals, calibration, reports."""
