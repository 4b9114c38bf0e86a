"""Inference speed of networks in each engine, compared with other implementations."""
