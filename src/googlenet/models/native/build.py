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

from ...cache import cache_folder

SOURCE = Path(__file__).with_name("kernels.c")
INCLUDED = (Path(__file__).with_name("maps.h"), Path(__file__).with_name("tiles.h"))

# Nothing here lets the compiler reorder sums: the same rows give the same bits.
FLAGS = ("-O3", "-march=native", "-fno-math-errno", "-fno-trapping-math", "-fopenmp", "-shared", "-fPIC")


@functools.cache
def kernels() -> ctypes.CDLL | None:
    """The compiled kernels; None where there is no C compiler with OpenMP, and PyTorch's own code must do.

    Takes about a second the first time on a machine. ``GOOGLENET_NATIVE=0`` in the environment turns it off.
    """
    compiler = (
        shlex.split(os.environ.get("CC", "")) or [name for name in ("cc", "gcc", "clang") if shutil.which(name)][:1]
    )
    if not compiler or os.environ.get("GOOGLENET_NATIVE") == "0":
        return None
    # A home folder may be shared by machines with other processors.
    about = "\n".join((SOURCE.read_text(), *(file.read_text() for file in INCLUDED), *compiler, *FLAGS, _processor()))
    library = cache_folder() / f"kernels-{hashlib.sha256(about.encode()).hexdigest()[:16]}.so"
    try:
        if not library.exists():
            _compile(compiler, library)
        return ctypes.CDLL(str(library))
    except (OSError, subprocess.SubprocessError):
        return None


def _compile(compiler: list[str], library: Path) -> None:
    library.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=library.parent) as scratch:
        partial = Path(scratch) / library.name
        command = [*compiler, *FLAGS, str(SOURCE), "-o", str(partial), "-lm"]
        subprocess.run(command, check=True, capture_output=True, timeout=120)
        partial.replace(library)


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line for line in lines if line.startswith(("flags", "Features")))
    except (OSError, StopIteration):
        return platform.processor()
