"""Set up a training run before its first step: check recipe, data, network and folder, and restore a saved state."""

import json
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from accelerate import Accelerator

from .. import kernels
from ..checkpoint.format import RECIPE_FILE, read_run_recipe
from ..checkpoint.train_state import TrainState, read_train_state
from ..config.schema import Recipe
from ..config.tasks import get_task_module
from ..data.preprocess import Preprocess
from ..data.sources import absolute_source
from ..devices import pick_device, pick_precision
from ..files import lock_file, write_atomically
from ..models.registry import default_config, get_model_spec
from . import distributed
from .early_stopping import EarlyStopping
from .environment import ENVIRONMENT_FILE, describe_environment
from .finetune import load_init_checkpoint, resolve_init_options
from .optim import build_ema, build_optimizer
from .similarity import resolve_freeze
from .step_schedule import StepSchedule, build_step_schedule
from .sync_batchnorm import convert_sync_batchnorm
from .tasks.base import LossModule, Task
from .time_budget import TimeBudget, read_budget, write_budget
from .trackers import check_tracker

Resume = bool | Literal["auto"]


@dataclass(frozen=True)
class TrainingRun:
    """The fixed parts of a training run; what changes from step to step is a `TrainState`.

    `loss_module` is the network with its loss as `accelerator` prepared it. `notes` are messages for the start of the
    run, such as skipped images. With a time budget, `schedule` and `budget` change at its checks (`training.fit`).
    """

    folder: Path
    recipe: Recipe
    task: Task
    data: Any
    data_digest: str
    preprocess: Preprocess
    schedule: StepSchedule
    accelerator: Accelerator
    loss_module: Any
    native_kernels: bool
    notes: tuple[str, ...]
    budget: TimeBudget | None = None


def build_training_run(
    recipe: Recipe, folder: Path, resume: Resume, command: str | None
) -> tuple[TrainingRun, TrainState]:
    """Check everything that can be wrong, build the run, and restore the state of `folder` if it is resumed."""
    begun = time.perf_counter()
    kernels.get_kernel_level()
    device = pick_device(recipe.device)
    accelerator = distributed.init_distributed(device, pick_precision(recipe.precision, device), recipe.compile)
    recipe = distributed.main_process_first(lambda: resolve_recipe(recipe))
    resuming = distributed.run_on_main(lambda: check_folder(folder, recipe, resume))
    if resuming:  # in its recipe, also the layers to freeze are resolved
        recipe = read_run_recipe(folder)
    device = accelerator.device
    module = get_task_module(recipe)
    data = distributed.main_process_first(lambda: module.load_data(recipe)).to(device)
    started = time.perf_counter()
    torch.manual_seed(recipe.seed + distributed.rank())  # every process draws its own dropout masks
    saved = distributed.run_on_main(lambda: read_train_state(folder)) if resuming else None
    # A resumed run has its weights in the state.
    init = distributed.main_process_first(lambda: load_init_checkpoint(recipe)) if saved is None else None
    recipe, freeze_notes = distributed.run_on_main(lambda: resolve_freeze(recipe, data, init))
    setup = module.build_task(recipe, data, init, saved)
    if saved is not None and saved["data_digest"] != setup.data_digest:
        raise ValueError(f"{recipe.data.source}: the images are not those that {folder} was started with")
    model = setup.model.to(device)
    synchronized = distributed.world_size() > 1 and convert_sync_batchnorm(model)
    optimizer = build_optimizer(recipe.optimizer, model)
    # The kernels' batch normalization sees the images of one process only.
    plain = device.type == "cpu" and not synchronized and not recipe.compile
    native = plain and kernels.enable_cpu_kernels(model)
    environment = describe_environment(command, distributed.world_size(), native) | {"data": data.accounting.to_dict()}
    distributed.run_on_main(lambda: create_folder(folder, recipe, environment, resuming))

    if device.type == "cuda":
        model.to(memory_format=torch.channels_last)
    ema_model = build_ema(model, recipe.ema_decay) if recipe.ema_decay else None
    # Both are on the device; to find that out, accelerate would import PyTorch's compiler, which takes a second.
    loss_module, optimizer = accelerator.prepare(
        LossModule(setup.task, model), optimizer, device_placement=[False, False]
    )
    patience = recipe.early_stopping_patience
    early_stopping = EarlyStopping(patience, setup.task.monitor) if patience else None
    state = TrainState(model, optimizer, ema_model, accelerator.scaler, early_stopping)
    notes = [*data.accounting.lines(), *freeze_notes]
    schedule, budget = build_step_schedule(recipe, setup.num_images), None
    if recipe.budget_minutes is not None:
        seconds = 60 * recipe.budget_minutes - (started - begun)
        budget = distributed.run_on_main(lambda: start_budget(folder, data, seconds))
        schedule = schedule._replace(replans=budget.replans)
    state.seconds = time.perf_counter() - started
    if saved is not None:
        notes += restore(state, saved, native, device)
    run = TrainingRun(
        folder, recipe, setup.task, data, setup.data_digest, setup.preprocess, schedule, accelerator, loss_module,
        native, tuple(notes), budget,
    )  # fmt: skip
    return run, state


def start_budget(folder: Path, data: Any, seconds: float) -> TimeBudget:
    """Return the recorded time budget of a resumed run, or record that of a new one, which has `seconds`."""
    budget = read_budget(folder)
    if budget is None:
        budget = TimeBudget(seconds, len(data.validation) + len(data.test))
        write_budget(folder, budget)
    return budget


def restore(state: TrainState, saved: dict[str, Any], native: bool, device: torch.device) -> list[str]:
    """Load the `saved` state; returns warnings if this machine does not repeat the run bit for bit."""
    state.load_state_dict(saved)
    distributed.set_random_state(saved["random"], device)
    notes = []
    if saved["native_kernels"] != native:
        notes.append("the native kernels were " + ("off" if native else "on") + " before: rounding will differ")
    if len(saved["random"]) != distributed.world_size():
        notes.append("the number of processes has changed: rounding and dropout masks will differ")
    return notes


def resolve_recipe(recipe: Recipe) -> Recipe:
    """Fill in every option that depends on the model, the device or the working directory."""
    if recipe.model.name is not None:
        get_model_spec(recipe.model.name)  # raises ValueError for an unknown name
    check_tracker(recipe.tracker)
    recipe = resolve_init_options(recipe)
    model = recipe.model
    assert model.name is not None
    defaults = default_config(model.name)
    for option in ("pool_mode", "width_mult", "count_include_pad"):
        if getattr(model, option) is not None and option not in defaults:
            advice = f"unset it: --model.{option} null"
            owners = "Inception-v2 and v3" if option == "count_include_pad" else "the GoogLeNets"
            raise ValueError(f"model.{option} is an option of {owners}, not of {model.name}; {advice}")
    filled = {key: value for key, value in defaults.items() if getattr(model, key) is None}
    return replace(
        recipe,
        model=replace(model, **filled),
        data=replace(recipe.data, source=absolute_source(recipe.data.source, recipe.data.root)),
        size=replace(recipe.size, eval=recipe.eval_size),
        precision=pick_precision(recipe.precision, pick_device(recipe.device)),
    )


def check_folder(folder: Path, recipe: Recipe, resume: Resume) -> bool:
    """Return whether to resume the run in `folder`: `resume`, or, with "auto", whether there is one.

    Raises ValueError for a folder that is in use, or, to resume, one without a run or with another recipe.
    """
    if resume is True or (resume == "auto" and (folder / RECIPE_FILE).is_file()):
        saved = read_run_recipe(folder)
        freeze = saved.model.freeze if recipe.model.freeze == "auto" else recipe.model.freeze
        if saved != replace(recipe, model=replace(recipe.model, freeze=freeze)):
            raise ValueError(f"{folder}: was started with another recipe")
        return True
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"{folder}: exists already; name another folder, or continue it with --resume {folder}")
    return False


def create_folder(folder: Path, recipe: Recipe, environment: dict[str, Any], resuming: bool) -> None:
    """Create the run folder with the recipe and the environment of its start, and lock it; existing files are kept.

    Raises ValueError if another process trains in it, or has started a run there since `check_folder`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / ENVIRONMENT_FILE).exists():
        write_atomically(folder / ENVIRONMENT_FILE, json.dumps(environment, indent=2) + "\n")
    if not lock_file(folder / ENVIRONMENT_FILE) or (not resuming and (folder / RECIPE_FILE).exists()):
        raise ValueError(f"{folder}: another process trains in this folder; wait for its end, or name another folder")
    if not (folder / RECIPE_FILE).exists():
        write_atomically(folder / RECIPE_FILE, recipe.to_yaml())
