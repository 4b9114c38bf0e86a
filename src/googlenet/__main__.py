"""``python -m googlenet``: the command line, for launchers that start a module."""

from .cli.main import run

run()
