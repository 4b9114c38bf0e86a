"""Where things that can be had again are kept: fetched data, compiled kernels."""

import os
from pathlib import Path


def cache_folder() -> Path:
    """``$XDG_CACHE_HOME/googlenet`` or ``~/.cache/googlenet``; not created here."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "googlenet"
