"""Build hook of the wheel: with GOOGLENET_PREBUILT=1 it contains the CPU kernels of every prebuilt level.

`make dist` sets the variable. Without it, as for `pip install .`, the wheel is pure Python and the kernels are compiled
on first use.
"""

import importlib.util
import os
import platform
import sys
import tempfile
from pathlib import Path
from types import ModuleType
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

# PyTorch's wheels have the same requirement, and contain the OpenMP library that the kernels use.
TAG = "py3-none-manylinux_2_28_x86_64"


class PrebuiltKernels(BuildHookInterface[Any]):
    """Compile the kernels into a temporary folder and add them to the wheel."""

    PLUGIN_NAME = "custom"

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Add the libraries to `build_data`; RuntimeError if this machine cannot make them."""
        if version == "editable" or os.environ.get("GOOGLENET_PREBUILT") != "1":
            return
        if (sys.platform, platform.machine()) != ("linux", "x86_64"):
            raise RuntimeError("prebuilt kernels are for Linux on x86-64; unset GOOGLENET_PREBUILT on other systems")
        levels = _load_levels(Path(self.root))
        if not (compiler := levels.find_compiler()):
            raise RuntimeError("prebuilt kernels need a C compiler with OpenMP, such as gcc")
        self._folder = tempfile.TemporaryDirectory()
        for level in levels.PREBUILT_LEVELS:
            library = Path(self._folder.name) / f"{level}.so"
            levels.compile_kernels(compiler, level, library)
            target = levels.prebuilt_library(level).relative_to(Path(self.root) / "src")
            build_data["force_include"][str(library)] = target.as_posix()
        build_data |= {"tag": TAG, "pure_python": False}


def _load_levels(root: Path) -> ModuleType:
    """Import levels.py alone: its package needs PyTorch, which a build environment does not have."""
    path = root / "src" / "googlenet" / "kernels" / "levels.py"
    spec = importlib.util.spec_from_file_location("levels", path)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
