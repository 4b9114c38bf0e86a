"""``python -m googlenet``: the command line, for launchers that start a module."""

import sys

from .cli import main

sys.exit(main())
