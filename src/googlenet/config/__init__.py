"""Recipes: the options of a training run."""
