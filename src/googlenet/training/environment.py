"""The environment of a run: machine, package versions, command."""

import datetime
import json
import os
import platform
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from ..files import package_version, write_atomically

ENVIRONMENT_FILE = "environment.json"
REPLACED_FILE = "replaced_images.json"
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


def read_replaced(folder: Path) -> dict[str, str]:
    """Return the images that could not be read while a run was trained, and why, by name."""
    path = folder / REPLACED_FILE
    replaced: dict[str, str] = json.loads(path.read_text()) if path.is_file() else {}
    return replaced


def record_replaced(folder: Path, replaced: Iterable[dict[str, str]]) -> None:
    """Add the images that the processes of a run could not read to its list, which exists only if there are any."""
    known = read_replaced(folder)
    merged = known | {name: reason for images in replaced for name, reason in images.items()}
    if merged != known:
        write_atomically(folder / REPLACED_FILE, json.dumps(merged, indent=2) + "\n")
