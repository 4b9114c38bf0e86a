"""`googlenet.FID` in real processes, started by torchrun."""

import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.release
def test_three_processes_equal_one() -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=3"]
    worker = str(Path(__file__).with_name("fid_worker.py"))
    done = subprocess.run(
        [*command, worker], capture_output=True, text=True, timeout=300, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    assert done.returncode == 0, done.stderr
