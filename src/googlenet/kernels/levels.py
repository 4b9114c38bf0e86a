"""What the compiler needs to make the kernels: sources, flags, and instruction sets ("levels").

Only the standard library is imported here: `hatch_build.py` of the repository loads this file to put the kernels of
some levels into the wheel.
"""

import os
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

SOURCE = Path(__file__).with_name("kernels.c")
HEADERS = (Path(__file__).with_name("elementwise.h"), Path(__file__).with_name("winograd.h"))

# The size of the kernels' buffers on the stack, and the number of parts of the rows with separate sums.
MAX_CHANNELS, NUM_CHUNKS = 2048, 32

# No option allows the compiler to reorder sums: the same rows give the same bits.
FLAGS = ("-O3", "-fno-math-errno", "-fno-trapping-math", "-fopenmp", "-shared", "-fPIC",
         f"-DCHANNELS={MAX_CHANNELS}", f"-DCHUNKS={NUM_CHUNKS}")  # fmt: skip


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
    "avx512_bf16": Level(("-march=x86-64-v4", "-mavx512bf16"), _AVX512 | {"avx512_bf16"}),
}

# A busy machine takes ten times as long as a quiet one.
COMPILE_SECONDS = 600

# The levels in the wheel for Linux on x86-64, the fastest first, and the folder of their libraries in the package.
PREBUILT_LEVELS = ("avx512_bf16", "avx512", "avx2")
PREBUILT_FOLDER = Path(__file__).with_name("prebuilt")


def prebuilt_library(level: str) -> Path:
    """Return where an installed wheel has the library of a level; a checkout has none."""
    return PREBUILT_FOLDER / f"{level}.so"


def find_compiler() -> list[str]:
    """Return the command of the C compiler: that of ``CC``, or the first of cc, gcc and clang; [] without one."""
    compiler = shlex.split(os.environ.get("CC", ""))
    return compiler or [name for name in ("cc", "gcc", "clang") if shutil.which(name)][:1]


def compile_kernels(compiler: Sequence[str], level: str, library: Path) -> None:
    """Compile the kernels for a level into the file `library`, which is replaced only by a complete one.

    Raises OSError or subprocess.SubprocessError, with the compiler's output in ``stderr``, if that fails.
    """
    library.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=library.parent) as folder:
        temporary = Path(folder) / library.name
        command = [*compiler, *FLAGS, *LEVELS[level].flags, str(SOURCE), "-o", str(temporary), "-lm"]
        subprocess.run(command, check=True, capture_output=True, timeout=COMPILE_SECONDS)
        temporary.replace(library)
