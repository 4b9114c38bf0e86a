"""On what a run was made: the machine, the versions, the command."""

import datetime
import json
import os
import platform
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from ..models.native import kernels

ENVIRONMENT = "environment.json"
PACKAGES = ("googlenet", "torch", "torchvision", "accelerate", "numpy", "pillow")


def describe_environment(command: str | None, processes: int = 1) -> dict[str, Any]:
    """Plain values, for environment.json and the report."""
    return {
        "command": command,
        "started": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        **{name: _version(name) for name in PACKAGES},
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "processor": _processor(),
        "cores": os.cpu_count(),
        "processes": processes,
        "threads": torch.get_num_threads(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "native_step": kernels() is not None,
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }


def read_environment(run: Path) -> dict[str, Any]:
    """The environment that a run was started in."""
    found: dict[str, Any] = json.loads((run / ENVIRONMENT).read_text())
    return found


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor()
