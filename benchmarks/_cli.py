"""Run commands of the package for a benchmark, and describe the machine."""

import json
import subprocess
import sys
from typing import Any

import torch


def googlenet(*arguments: str) -> Any:
    """Run a command and return its ``--json`` document; its error message ends the benchmark."""
    done = subprocess.run([sys.executable, "-m", "googlenet", *arguments, "--json"], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr.strip().splitlines()[-1])
    return json.loads(done.stdout)


def device_name() -> str:
    """Return the name of the GPU that `--device auto` selects, or CPU."""
    return torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
