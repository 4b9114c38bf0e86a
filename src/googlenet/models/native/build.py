"""kernels.c -> functions, compiled with the machine's own C compiler and kept in the cache."""

import ctypes
import functools
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import NamedTuple

from ...cache import cache_folder

SOURCE = Path(__file__).with_name("kernels.c")
INCLUDED = (Path(__file__).with_name("maps.h"), Path(__file__).with_name("tiles.h"))

# Nothing here lets the compiler reorder sums: the same rows give the same bits.
FLAGS = ("-O3", "-fno-math-errno", "-fno-trapping-math", "-fopenmp", "-shared", "-fPIC")

# What turns the kernels on and off, and names the instructions they are compiled for.
VARIABLE = "GOOGLENET_NATIVE"


class Level(NamedTuple):
    """Instructions to compile for: the compiler's flags, and the CPU features that the result needs."""

    flags: tuple[str, ...]
    needs: frozenset[str] = frozenset()


_AVX2 = frozenset({"avx2", "bmi2", "f16c", "fma"})
_AVX512 = _AVX2 | {"avx512bw", "avx512cd", "avx512dq", "avx512f", "avx512vl"}

# The x86-64 levels of the System V psABI, as GCC 11 and Clang 12 know them. Other processors have "native" alone.
LEVELS = {
    "native": Level(("-march=native",)),
    "baseline": Level(("-march=x86-64",), frozenset({"sse2"})),
    "avx2": Level(("-march=x86-64-v3",), _AVX2),
    "avx512": Level(("-march=x86-64-v4",), _AVX512),
}


def kernel_level() -> str | None:
    """Return the key of `LEVELS` that the environment variable ``GOOGLENET_NATIVE`` names; None for ``0``, "off".

    Raises:
        ValueError: it is something else, or this processor lacks instructions of that level.
    """
    setting = os.environ.get(VARIABLE, "")
    if setting == "0":
        return None
    level = "native" if setting in ("", "1") else setting
    if level not in LEVELS:
        raise ValueError(f"{VARIABLE}={level}: no such setting; use 0, {', '.join(LEVELS)}")
    if missing := missing_features(level):
        raise ValueError(f"{VARIABLE}={level}: this processor has no {', '.join(missing)}; use native")
    return level


@functools.cache
def kernels() -> ctypes.CDLL | None:
    """Return the kernels, compiled for `kernel_level`; None without a C compiler with OpenMP, or where they are off.

    Takes a few seconds the first time on a machine. Raises what `kernel_level` does.
    """
    level = kernel_level()
    if level is None:
        return None
    compiler = (
        shlex.split(os.environ.get("CC", "")) or [name for name in ("cc", "gcc", "clang") if shutil.which(name)][:1]
    )
    if not compiler:
        return None
    flags = (*FLAGS, *LEVELS[level].flags)
    # A home folder may be shared by machines with other processors.
    about = "\n".join((SOURCE.read_text(), *(file.read_text() for file in INCLUDED), *compiler, *flags, _processor()))
    library = cache_folder() / f"kernels-{hashlib.sha256(about.encode()).hexdigest()[:16]}.so"
    try:
        if not library.exists():
            _compile([*compiler, *flags], library)
        return ctypes.CDLL(str(library))
    except (OSError, subprocess.SubprocessError):
        return None


def missing_features(level: str) -> list[str]:
    """Return the CPU features that `level` needs and this processor does not have, in alphabetical order.

    All of them where the system does not list its processor's features in /proc/cpuinfo.
    """
    return sorted(LEVELS[level].needs - set(_processor().split()))


def _compile(command: list[str], library: Path) -> None:
    library.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=library.parent) as scratch:
        partial = Path(scratch) / library.name
        subprocess.run(
            [*command, str(SOURCE), "-o", str(partial), "-lm"], check=True, capture_output=True, timeout=120
        )
        partial.replace(library)


def _processor() -> str:
    """Return the processor's features, as the kernel lists them, or its name where it does not."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line for line in lines if line.startswith(("flags", "Features")))
    except (OSError, StopIteration):
        return platform.processor()
