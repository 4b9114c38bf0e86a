"""Select the device and the floating-point precision."""

import os
import platform
from functools import cache
from pathlib import Path
from typing import Literal

import torch

Precision = Literal["auto", "float32", "bfloat16", "float16"]
# Features that decide which engine is the fastest, by name, with the flags of Linux.
CPU_FEATURES = {
    "AVX2": "avx2", "AVX-512": "avx512f", "AVX-512 VNNI": "avx512_vnni", "AVX-VNNI": "avx_vnni",
    "bfloat16": "avx512_bf16", "AMX": "amx_tile", "Neon": "asimd",
}  # fmt: skip

# Values of ONEDNN_MAX_CPU_ISA.
ISAS_WITHOUT_AVX512 = ("SSE41", "AVX", "AVX2", "AVX2_VNNI")
ISAS_WITHOUT_BFLOAT16 = (*ISAS_WITHOUT_AVX512, "AVX512_CORE", "AVX512_CORE_VNNI")


def pick_device(name: str) -> torch.device:
    """Return the device `name`; ``auto`` is CUDA, else MPS, else the CPU. Raises ValueError if it is not available."""
    exists = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    available = [kind for kind in exists if exists[kind]]
    if name == "auto":
        return torch.device(available[0])
    if name.partition(":")[0] not in available:
        raise ValueError(f"device {name!r} is not available; this machine has {', '.join(available)}")
    return torch.device(name)


def pick_precision(name: Precision, device: torch.device) -> Precision:
    """Return the precision `name`; ``auto`` is bfloat16 if the device has instructions for it, else float32.

    Raises ValueError for float16 on devices other than CUDA: its small range needs loss scaling, which only CUDA has.
    """
    if name == "auto":
        return "bfloat16" if _has_bfloat16(device) else "float32"
    if name == "float16" and device.type != "cuda":
        raise ValueError(f"precision float16 needs a CUDA device, not {device.type}; use bfloat16 or float32")
    return name


@cache
def cpu_description() -> str:
    """Return the processor's architecture, model, number of cores and features, as far as the system tells."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    keys = ("model name", "flags", "Features", "CPU part")
    details = dict.fromkeys(line for line in lines if line.partition(":")[0].strip() in keys)
    parts = [platform.machine(), platform.processor(), str(os.cpu_count()), *details]
    limits = (os.environ.get(name, "") for name in ("ONEDNN_MAX_CPU_ISA", "ATEN_CPU_CAPABILITY", "OMP_NUM_THREADS"))
    return "\n".join([*parts, *limits])


def cpu_features() -> dict[str, object]:
    """Return the processor's `model`, number of `cores`, and which of `CPU_FEATURES` it has."""
    lines = [line.partition(":") for line in cpu_description().splitlines()]
    details = {key.strip(): value.strip() for key, colon, value in lines if colon}
    flags = details.get("flags", details.get("Features", "")).split()
    features = [name for name, flag in CPU_FEATURES.items() if flag in flags]
    return {"model": details.get("model name", platform.machine()), "cores": os.cpu_count(), "features": features}


@cache
def has_amx() -> bool:
    """Return whether oneDNN uses the processor's instructions for products of bfloat16 tiles (AMX)."""
    query = getattr(torch.cpu, "_is_amx_tile_supported", None)  # private, so it may be missing
    return query is not None and bool(query()) and (isa_limit() in ("", "DEFAULT") or "AMX" in isa_limit())


def limit_isa(name: str) -> None:
    """Limit PyTorch, oneDNN, OpenVINO and MKL to the instructions of AVX2, in this process and those that it starts.

    Call it before the first computation. ONNX Runtime and ncnn have no such setting.
    """
    os.environ |= {"ONEDNN_MAX_CPU_ISA": name.upper(), "ATEN_CPU_CAPABILITY": name}
    os.environ["MKL_ENABLE_INSTRUCTIONS"] = name.upper()


def isa_limit() -> str:
    """Return the instructions to which oneDNN and OpenVINO are limited, such as AVX2; empty without a limit."""
    return os.environ.get("ONEDNN_MAX_CPU_ISA", "").upper()


def _has_bfloat16(device: torch.device) -> bool:
    """Return whether the device has instructions for bfloat16 matrix products, rather than an emulation."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device.type == "cpu":
        if isa_limit() in ISAS_WITHOUT_BFLOAT16:
            return False
        # PyTorch has no public function for these; a version without the private ones counts as unsupported.
        queries = (getattr(torch.cpu, name, None) for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"))
        return any(query is not None and bool(query()) for query in queries)
    return False
