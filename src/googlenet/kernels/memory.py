"""The memory allocator of the process."""

import ctypes
import sys

# Constants of glibc's <malloc.h>.
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX = -1, -2, -4


def keep_freed_memory(device_type: str = "cpu") -> None:
    """Configure glibc to keep freed memory in the process instead of returning it to the system.

    Mapping the pages of large tensors again takes a third of a training step and half of the time of inference on a
    CPU. The setting is for the whole process and cannot be undone, so the commands call this function, and the
    library never does: call it at the start of a program that trains or predicts on a CPU. Memory use stays at its
    peak. Other C libraries are not changed, nor is anything if the `device_type` that computes is not the CPU.
    """
    if sys.platform != "linux" or device_type != "cpu":
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(M_MMAP_MAX, 0)
        mallopt(M_TRIM_THRESHOLD, -1)
        mallopt(M_TOP_PAD, 64 << 20)
