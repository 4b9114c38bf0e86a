"""Compilation of kernels.c with the machine's C compiler, once; the library is kept in the cache."""

import ctypes
import functools
import hashlib
import logging
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import NamedTuple

from ..files import cache_file

SOURCE = Path(__file__).with_name("kernels.c")
HEADERS = (Path(__file__).with_name("elementwise.h"), Path(__file__).with_name("winograd.h"))

# The size of the kernels' buffers on the stack, and the number of parts of the rows with separate sums.
MAX_CHANNELS, NUM_CHUNKS = 2048, 32

# No option allows the compiler to reorder sums: the same rows give the same bits.
FLAGS = ("-O3", "-fno-math-errno", "-fno-trapping-math", "-fopenmp", "-shared", "-fPIC",
         f"-DCHANNELS={MAX_CHANNELS}", f"-DCHUNKS={NUM_CHUNKS}")  # fmt: skip

log = logging.getLogger("googlenet.kernels")

# The environment variable that turns the kernels off, or names the instruction set to compile for.
ENV_VARIABLE = "GOOGLENET_NATIVE"


class Level(NamedTuple):
    """An instruction set: the compiler's flags for it, and the CPU features that it requires."""

    flags: tuple[str, ...]
    features: frozenset[str] = frozenset()


_AVX2 = frozenset({"avx2", "bmi2", "f16c", "fma"})
_AVX512 = _AVX2 | {"avx512bw", "avx512cd", "avx512dq", "avx512f", "avx512vl"}

# The x86-64 levels of the System V psABI, which GCC 11 and Clang 12 support. Other processors have only "native".
LEVELS = {
    "native": Level(("-march=native",)),
    "baseline": Level(("-march=x86-64",), frozenset({"sse2"})),
    "avx2": Level(("-march=x86-64-v3",), _AVX2),
    "avx512": Level(("-march=x86-64-v4",), _AVX512),
}


def get_kernel_level() -> str | None:
    """Return the key of `LEVELS` in the environment variable ``GOOGLENET_NATIVE``; None for ``0``, which means off.

    Raises ValueError for another value, and for a level whose instructions this processor does not have.
    """
    setting = os.environ.get(ENV_VARIABLE, "")
    if setting == "0":
        return None
    level = "native" if setting in ("", "1") else setting
    if level not in LEVELS:
        raise ValueError(f"{ENV_VARIABLE}={level}: unknown level; use 0, {', '.join(LEVELS)}")
    if missing := missing_features(level):
        raise ValueError(f"{ENV_VARIABLE}={level}: this processor lacks {', '.join(missing)}; use native")
    return level


@functools.cache
def load_kernels() -> ctypes.CDLL | None:
    """Load the kernels for `get_kernel_level`, compiling them first if necessary, which takes a few seconds.

    Returns None if they are off, if there is no C compiler, or, with a warning, if it fails (it may lack OpenMP).
    Raises ValueError as `get_kernel_level` does.
    """
    level = get_kernel_level()
    if level is None:
        return None
    compiler = shlex.split(os.environ.get("CC", ""))
    compiler = compiler or [name for name in ("cc", "gcc", "clang") if shutil.which(name)][:1]
    if not compiler:
        return None
    flags = (*FLAGS, *LEVELS[level].flags)
    # The processor is part of the key: machines with different processors may share a home folder.
    key = "\n".join((*(file.read_text() for file in (SOURCE, *HEADERS)), *compiler, *flags, _processor()))
    library = cache_file(f"kernels-{hashlib.sha256(key.encode()).hexdigest()[:16]}.so")
    try:
        if not library.exists():
            _compile([*compiler, *flags], library)
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


def _compile(command: list[str], library: Path) -> None:
    library.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=library.parent) as folder:
        temporary = Path(folder) / library.name
        command = [*command, str(SOURCE), "-o", str(temporary), "-lm"]
        subprocess.run(command, check=True, capture_output=True, timeout=120)
        temporary.replace(library)


def _processor() -> str:
    """Return the processor's features as /proc/cpuinfo lists them, or else its name."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line for line in lines if line.startswith(("flags", "Features")))
    except (OSError, StopIteration):
        return platform.processor()
