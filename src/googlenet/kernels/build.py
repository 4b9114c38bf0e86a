"""Loading of the kernels: from the wheel, or compiled once with the machine's C compiler into the cache."""

import ctypes
import functools
import hashlib
import logging
import os
import platform
import shlex
import subprocess
from pathlib import Path

from ..files import cache_file
from .levels import (
    FLAGS,
    HEADERS,
    LEVELS,
    PREBUILT_LEVELS,
    SOURCE,
    compile_kernels,
    find_compiler,
    prebuilt_library,
)

log = logging.getLogger("googlenet.kernels")

# The environment variable that turns the kernels off, or names the instruction set.
ENV_VARIABLE = "GOOGLENET_NATIVE"


def get_kernel_level() -> str | None:
    """Return the key of `LEVELS` in the environment variable ``GOOGLENET_NATIVE``; None for ``0``, which means off.

    Without the variable it is the first of `PREBUILT_LEVELS` that the package contains and this processor supports,
    else "native", for which the kernels are compiled. Raises ValueError for another value, and for a level whose
    instructions this processor does not have.
    """
    setting = os.environ.get(ENV_VARIABLE, "")
    if setting == "0":
        return None
    if setting in ("", "1"):
        prebuilt = (level for level in PREBUILT_LEVELS if prebuilt_library(level).is_file())
        return next((level for level in prebuilt if not missing_features(level)), "native")
    if setting not in LEVELS:
        raise ValueError(f"{ENV_VARIABLE}={setting}: unknown level; use 0, {', '.join(LEVELS)}")
    if missing := missing_features(setting):
        raise ValueError(f"{ENV_VARIABLE}={setting}: this processor lacks {', '.join(missing)}; use native")
    return setting


@functools.cache
def load_kernels() -> ctypes.CDLL | None:
    """Load the kernels for `get_kernel_level`, compiling them first if necessary, which takes a few seconds.

    Returns None if they are off, if the package contains none for this processor and there is no C compiler, or, with a
    warning, if it fails (it may lack OpenMP). Raises ValueError as `get_kernel_level` does.
    """
    level = get_kernel_level()
    if level is None:
        return None
    library = prebuilt_library(level)
    if not library.is_file():
        return _compile_and_load(level)
    try:
        # Its OpenMP library is that of PyTorch, which has been imported: this package's other modules need it.
        return ctypes.CDLL(str(library))
    except OSError as error:
        log.warning("the kernels of the package cannot be loaded and are compiled instead: %s", error)
        return _compile_and_load("native")


def _compile_and_load(level: str) -> ctypes.CDLL | None:
    """Load the kernels from the cache, compiled for `level` on first use; None as `load_kernels` describes."""
    if not (compiler := find_compiler()):
        return None
    flags = (*FLAGS, *LEVELS[level].flags)
    # The processor is part of the key: machines with different processors may share a home folder.
    key = "\n".join((*(file.read_text() for file in (SOURCE, *HEADERS)), *compiler, *flags, _processor()))
    library = cache_file(f"kernels-{hashlib.sha256(key.encode()).hexdigest()[:16]}.so")
    try:
        if not library.exists():
            compile_kernels(compiler, level, library)
        return ctypes.CDLL(str(library))
    except (OSError, subprocess.SubprocessError) as error:
        reason = (getattr(error, "stderr", None) or b"").decode(errors="replace").strip() or str(error)
        log.warning(
            "native kernels unavailable, training on the CPU is slower: %s: %s (%s=0 turns them off)",
            shlex.join(compiler), reason.splitlines()[-1], ENV_VARIABLE,
        )  # fmt: skip
        return None


def missing_features(level: str) -> list[str]:
    """Return the CPU features that `level` requires and this processor lacks, in alphabetical order.

    These are all of its features on a system that does not list those of the processor in /proc/cpuinfo.
    """
    return sorted(LEVELS[level].features - set(_processor().split()))


def _processor() -> str:
    """Return the processor's features as /proc/cpuinfo lists them, or else its name."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line for line in lines if line.startswith(("flags", "Features")))
    except (OSError, StopIteration):
        return platform.processor()
