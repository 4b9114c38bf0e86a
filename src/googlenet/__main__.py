"""``python -m googlenet``: the command line, for launchers that start a module."""

from .cli import run

run()
