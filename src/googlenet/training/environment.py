"""The environment of a run: machine, package versions, command."""

import datetime
import os
import platform
from pathlib import Path
from typing import Any

import torch

from ..files import package_version

ENVIRONMENT_FILE = "environment.json"
PACKAGES = ("googlenet", "torch", "torchvision", "accelerate", "numpy", "pillow")


def describe_environment(command: str | None, world_size: int, native_kernels: bool) -> dict[str, Any]:
    """Return plain values for environment.json and the report."""
    return {
        "command": command,
        "started": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        **{name: package_version(name) for name in PACKAGES},
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "processor": _processor(),
        "cores": os.cpu_count(),
        "processes": world_size,
        "threads": torch.get_num_threads(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "native_kernels": native_kernels,
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor()
