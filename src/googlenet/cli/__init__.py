"""The command line: one module per command; `main` has their registry."""
