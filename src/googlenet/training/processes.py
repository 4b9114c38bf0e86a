"""Several processes as one run: who is here, and how they agree.

`torchrun` and `accelerate launch` start the processes and say so in the environment. Without them there is one, and
every function here answers for it alone. What is agreed on goes from processor to processor: no GPU is waited for.
"""

import datetime
import os
import warnings
from collections.abc import Callable
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from accelerate import Accelerator, DistributedDataParallelKwargs
from accelerate.state import AcceleratorState
from accelerate.utils import GradientAccumulationPlugin
from torch import Tensor
from torch.distributed.rendezvous import rendezvous

from ..errors import FailedError
from .devices import Precision

T = TypeVar("T")

MIXED = {"float32": "no", "bfloat16": "bf16", "float16": "fp16"}

# How long the others wait while the main process validates. A process that died is noticed by the launcher at once.
PATIENCE = datetime.timedelta(days=1)


def launched() -> bool:
    """Whether a launcher started this process, be it as the only one."""
    return "RANK" in os.environ and "WORLD_SIZE" in os.environ


def restarted() -> bool:
    """Whether the launcher has started the run anew, after one of its processes died."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0


def is_main() -> bool:
    """Whether this process is the one that writes files and speaks."""
    return int(os.environ.get("RANK", "0")) == 0 if launched() else True


def count() -> int:
    """How many processes make this run."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """This process's number, from 0; the main process's is 0."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def join(device: torch.device, precision: Precision, compiled: bool) -> Accelerator:
    """Meet the other processes, where there are any, and set up the device and the arithmetic of this one.

    Gradients are averaged over the processes. ValueError where several would share what cannot be shared.
    """
    if launched() and not dist.is_initialized():
        if device.type == "mps":
            raise ValueError("several processes need device cpu or cuda, not mps")
        if device.index is not None:
            raise ValueError(f"under a launcher each process takes a device of its own: device cuda, not {device}")
        _meet(device)
    if device.index is not None:
        torch.cuda.set_device(device)
    # The weights of 1x1 convolutions have two names for one order in memory; PyTorch warns where they differ.
    warnings.filterwarnings("ignore", "Grad strides do not match bucket view strides")
    warnings.filterwarnings("ignore", "`broadcast_buffers` is deprecated")
    # The library keeps one state for a whole program; a second `fit` in it may compute differently.
    AcceleratorState._reset_state(reset_partial_state=True)
    return Accelerator(
        mixed_precision=MIXED[precision],
        cpu=device.type == "cpu",
        dynamo_backend="inductor" if compiled else "no",
        # The loop divides the batch itself, whatever `accelerate launch` has put into the environment.
        gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=1),
        # Running statistics are computed from the whole batch, so they are the same in every process already.
        kwargs_handlers=[DistributedDataParallelKwargs(broadcast_buffers=False)],
    )


def _meet(device: torch.device) -> None:
    """Open the process group at the place that the launcher has put into the environment."""
    store, number, processes = next(rendezvous("env://"))
    # On one machine torchrun keeps its store over a restart, and in it the addresses of processes that are gone. Over
    # several machines the count of restarts is not everyone's, and torchrun has a switch of its own: docs/scale.md.
    if os.environ.get("LOCAL_WORLD_SIZE") == os.environ["WORLD_SIZE"]:
        start = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
        store = dist.PrefixStore(f"start {start}", store)  # type: ignore[attr-defined]
    # Beside NCCL for the GPUs' gradients there is always gloo, for what the processors tell each other.
    backends = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(backends, timeout=PATIENCE, store=store, rank=number, world_size=processes)


def leave() -> None:
    """Part from the other processes, at the end."""
    if count() > 1:
        dist.barrier()
    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()


def on_main(work: Callable[[], T]) -> T:
    """What `work` returns, done by the main process alone while the others wait for it.

    Its error ends the others too, with a FailedError that says nothing: the main process says it.
    """
    if count() == 1:
        return work()
    answer: list[Any] = [None, False]
    if is_main():
        try:
            answer = [work(), True]
        finally:
            dist.broadcast_object_list(answer)
    else:
        dist.broadcast_object_list(answer)
    if not answer[1]:
        raise FailedError("")
    result: T = answer[0]
    return result


def any_of(*here: bool) -> list[bool]:
    """For each question, whether one process at least says yes. Every process gets the same answers."""
    if count() == 1:
        return list(here)
    answers = torch.tensor(here, dtype=torch.uint8)
    dist.all_reduce(answers, op=dist.ReduceOp.MAX)
    return [answer > 0 for answer in answers.tolist()]


def gather(here: T) -> list[T]:
    """Everyone's value, in the order of the processes."""
    if count() == 1:
        return [here]
    values: list[Any] = [None] * count()
    dist.all_gather_object(values, here)
    return values


def total(here: Tensor) -> Tensor:
    """The sum of everyone's tensor, on its device."""
    if count() == 1:
        return here
    added = here.clone()
    dist.all_reduce(added)
    return added


def random_states(device: torch.device) -> list[dict[str, Tensor | None]]:
    """The states of everyone's generators, in the order of the processes: the processor's and the device's."""
    on_device = None if device.type == "cpu" else getattr(torch, device.type).get_rng_state()
    return gather({"cpu": torch.get_rng_state(), "device": on_device})


def set_random_state(states: list[dict[str, Tensor | None]], device: torch.device) -> None:
    """Put back this process's part of `random_states`; a process that was not there then starts as it is."""
    if rank() >= len(states):
        return
    mine = states[rank()]
    if mine["cpu"] is not None:
        torch.set_rng_state(mine["cpu"])
    if mine["device"] is not None and device.type != "cpu":
        getattr(torch, device.type).set_rng_state(mine["device"])
