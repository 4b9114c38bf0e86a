"""What several benchmarks ask of the command line and of the machine."""

import json
import subprocess
import sys
from typing import Any

import torch


def googlenet(*arguments: str) -> Any:
    """What a command answers with ``--json``; its error line ends the benchmark."""
    done = subprocess.run([sys.executable, "-m", "googlenet", *arguments, "--json"], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr.strip().splitlines()[-1])
    return json.loads(done.stdout)


def device() -> str:
    """The card that `--device auto` takes, or CPU."""
    return torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
