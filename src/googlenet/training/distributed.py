"""Distributed training: process group, collective operations, main process.

`torchrun` and `accelerate launch` start the processes and describe them in the environment. Without a launcher there is
one process and every function here works for it alone. Control messages use the CPU (gloo), so they never wait for a
GPU.
"""

import datetime
import itertools
import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from accelerate import Accelerator, DistributedDataParallelKwargs
from accelerate.state import AcceleratorState
from accelerate.utils import GradientAccumulationPlugin
from torch import Tensor
from torch.distributed.rendezvous import rendezvous

from ..devices import Precision
from ..errors import FailedError

T = TypeVar("T")

MIXED_PRECISION = {"float32": "no", "bfloat16": "bf16", "float16": "fp16"}

# How long processes wait for another one that downloads or writes. The launcher notices a dead process immediately.
TIMEOUT = datetime.timedelta(days=1)


def is_distributed_launch() -> bool:
    """Return whether a launcher started this process, possibly as the only one."""
    return "RANK" in os.environ and "WORLD_SIZE" in os.environ


def is_restart() -> bool:
    """Return whether the launcher restarted the run after one of its processes died."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0


# Every process opens the same groups, in the same order.
_group_numbers = itertools.count()


def is_main_process() -> bool:
    """Return whether this process writes files and prints."""
    return not is_distributed_launch() or int(os.environ["RANK"]) == 0


def world_size() -> int:
    """Return the number of processes."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Return the index of this process; 0 is the main process."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def init_distributed(device: torch.device, precision: Precision, compiled: bool) -> Accelerator:
    """Join the process group, if there are several processes, and set up device and precision.

    Gradients are averaged over the processes. Raises ValueError for a device that processes cannot share.
    """
    if is_distributed_launch() and not dist.is_initialized():
        if device.type == "mps":
            raise ValueError("distributed training needs device cpu or cuda, not mps")
        if device.index is not None:
            raise ValueError(f"with a launcher every process selects its own device: use device cuda, not {device}")
        _init_process_group(device)
    if device.index is not None:
        torch.cuda.set_device(device)
    # The weights of 1x1 convolutions have two stride layouts of the same memory order; PyTorch warns if they differ.
    warnings.filterwarnings("ignore", "Grad strides do not match bucket view strides")
    warnings.filterwarnings("ignore", "`broadcast_buffers` is deprecated")
    # The library keeps one state per program; a second `fit` in the program may use another device or precision.
    AcceleratorState._reset_state(reset_partial_state=True)
    return Accelerator(
        mixed_precision=MIXED_PRECISION[precision],
        cpu=device.type == "cpu",
        dynamo_backend="inductor" if compiled else "no",
        # `fit` splits the batch itself, whatever `accelerate launch` has put into the environment.
        gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=1),
        # Running statistics are computed from the full batch, so they are equal in every process already.
        kwargs_handlers=[DistributedDataParallelKwargs(broadcast_buffers=False)],
    )


def _init_process_group(device: torch.device) -> None:
    """Open the process group at the address in the environment."""
    store, process_rank, num_processes = next(rendezvous("env://"))
    # On one machine torchrun keeps its store across a restart, with the addresses of dead processes in it. On several
    # machines the restart count differs between them, and torchrun has an option of its own: docs/distributed.md.
    # A second run in the same program opens a second group, whose addresses must not be those of the first.
    prefix = f"group {next(_group_numbers)}"
    if os.environ.get("LOCAL_WORLD_SIZE") == os.environ["WORLD_SIZE"]:
        prefix += f", start {os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}"
    store = dist.PrefixStore(prefix, store)  # type: ignore[attr-defined]
    # NCCL exchanges the GPUs' gradients; gloo the control messages of the CPUs.
    backends = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(backends, timeout=TIMEOUT, store=store, rank=process_rank, world_size=num_processes)


@contextmanager
def leave_at_end() -> Iterator[None]:
    """Leave the process group at the end: together after success, alone after an error."""
    try:
        yield
        if world_size() > 1:
            dist.barrier()
    finally:
        if dist.is_available() and dist.is_initialized():
            dist.destroy_process_group()


def run_on_main(work: Callable[[], T]) -> T:
    """Run `work` in the main process and return its result in every process.

    If it raises, the other processes raise a FailedError without a message: the main process prints the error.
    """
    if world_size() == 1:
        return work()
    message: list[Any] = [None, False]
    try:
        if is_main_process():
            message = [work(), True]
    finally:
        dist.broadcast_object_list(message)
    if not message[1]:
        raise FailedError("")
    result: T = message[0]
    return result


def run_on_all(work: Callable[[], T]) -> list[T]:
    """Run `work` in every process and return the results of all, in the order of the ranks, in each.

    If it raises in a process, that one raises the error and the others a FailedError without a message.
    """
    result: list[T] = []
    with _fail_together():
        result.append(work())
    return [item for items in all_gather_object(result) for item in items]


def main_process_first(work: Callable[[], T]) -> T:
    """Return the result of `work` in every process: the first ones download and check, the others find the result.

    The main process is first, then the first process of each other machine, which may have its own disk, then the
    others. Errors are handled as in `run_on_all`.
    """
    turn = 0 if is_main_process() else 1 if os.environ.get("LOCAL_RANK", "0") == "0" else 2
    result: list[T] = []
    for number in range(3):
        with _fail_together():
            if number == turn:
                result.append(work())
    return result[0]


@contextmanager
def _fail_together() -> Iterator[None]:
    """Wait for all processes at the end, and raise an error in each if there was one in any."""
    failure: Exception | None = None
    try:
        yield
    except Exception as error:
        failure = error
    if any_rank(failure is not None)[0]:
        raise failure or FailedError("")


def any_rank(*flags: bool) -> list[bool]:
    """Return for each flag whether it is true in at least one process."""
    if world_size() == 1:
        return list(flags)
    values = torch.tensor(flags, dtype=torch.uint8)
    dist.all_reduce(values, op=dist.ReduceOp.MAX)
    return [value > 0 for value in values.tolist()]


def all_gather_object(value: T) -> list[T]:
    """Return the value of every process, in the order of the ranks."""
    if world_size() == 1:
        return [value]
    values: list[Any] = [None] * world_size()
    dist.all_gather_object(values, value)
    return values


def all_reduce_sum(tensor: Tensor) -> Tensor:
    """Return the sum of the tensors of all processes, on the tensor's device."""
    if world_size() == 1:
        return tensor
    total = tensor.clone()
    dist.all_reduce(total)
    return total


def check_same_data(digest: str, source: str) -> None:
    """Raise ValueError unless all processes computed the same digest of the data of `source`."""
    if len(set(all_gather_object(digest))) > 1:
        raise ValueError(f"{source}: the processes of this run do not see the same images")


def random_states(device: torch.device) -> list[dict[str, Tensor | None]]:
    """Return the generator states of every process, on the CPU and on the device."""
    on_device = None if device.type == "cpu" else getattr(torch, device.type).get_rng_state()
    return all_gather_object({"cpu": torch.get_rng_state(), "device": on_device})


def set_random_state(states: list[dict[str, Tensor | None]], device: torch.device) -> None:
    """Restore this process's entry of `random_states`; a process that is new keeps its state."""
    if rank() >= len(states):
        return
    own = states[rank()]
    if own["cpu"] is not None:
        torch.set_rng_state(own["cpu"])
    if own["device"] is not None and device.type != "cpu":
        getattr(torch, device.type).set_rng_state(own["device"])
