"""Predictors of everything that can be loaded: networks, ensembles and exported files in any engine."""
