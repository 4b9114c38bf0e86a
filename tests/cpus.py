"""Run tests as on several kinds of x86-64 CPU: ``python tests/cpus.py [--seeds N] [pytest's arguments]``.

PyTorch, oneDNN and MKL choose their code by the processor's features, and each can be told to use fewer of them; the
native kernels are compiled for the level that GOOGLENET_NATIVE names. A configuration that needs a feature that this
processor does not have is named and skipped. With --seeds, each configuration runs that many times, with TEST_SEED
from 0 (see the marker "accuracy").
"""

import argparse
import os
import subprocess
import sys
import time
from typing import NamedTuple

from googlenet.kernels.build import missing_features

AVX2 = {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2", "MKL_ENABLE_INSTRUCTIONS": "AVX2"}


class Configuration(NamedTuple):
    """Environment variables, and the kernels' level whose features the processor must have."""

    name: str
    variables: dict[str, str]
    level: str = "native"
    workers: int = 2


CONFIGURATIONS = (
    Configuration("as is", {}),
    Configuration("limited to AVX2", AVX2 | {"GOOGLENET_NATIVE": "avx2"}, "avx2"),
    Configuration("AVX-512 without bfloat16", {"ONEDNN_MAX_CPU_ISA": "AVX512_CORE"}, "avx512"),
    Configuration("kernels for any x86-64", {"GOOGLENET_NATIVE": "baseline"}, "baseline"),
    Configuration("without a C compiler", {"GOOGLENET_NATIVE": "0"}),
    Configuration("one thread", {"OMP_NUM_THREADS": "1"}, workers=1),
    Configuration("two threads", {"OMP_NUM_THREADS": "2"}, workers=1),
)


def main() -> int:
    """Run all configurations; the exit code says whether each passed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=1)
    options, arguments = parser.parse_known_args()
    results = []
    for configuration in CONFIGURATIONS:
        if missing := missing_features(configuration.level):
            results.append(f"skipped  {configuration.name}: this processor has no {', '.join(missing)}")
            continue
        for seed in range(options.seeds):
            print(f"\n== {configuration.name}, TEST_SEED={seed}", flush=True)
            environment = {**os.environ, "OMP_NUM_THREADS": "1", "TEST_SEED": str(seed), **configuration.variables}
            command = [sys.executable, "-m", "pytest", "--durations=0", "-rs"]
            # The configurations with a number of threads use one worker, so that a test has both cores.
            command += ["--numprocesses", str(configuration.workers), "--dist", "worksteal"]
            begun = time.monotonic()
            code = subprocess.run([*command, *arguments], env=environment).returncode
            outcome = "passed " if code == 0 else "FAILED "
            results.append(f"{outcome}  {configuration.name}, seed {seed}: {time.monotonic() - begun:.0f} s")
    print("\n" + "\n".join(results))
    return int(any(line.startswith("FAILED") for line in results))


if __name__ == "__main__":
    sys.exit(main())
