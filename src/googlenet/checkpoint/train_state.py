"""The state of a training run between two steps: everything that resuming needs, in one file."""

import io
import pickle
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

from ..files import write_atomically

STATE_FILE = "state.pt"
_RESTART = "delete it to start the run from the beginning"


@dataclass
class TrainState:
    """What changes from step to step.

    `step` counts finished steps and `seconds` the training time so far. `ema_model`, `scaler` (float16) and
    `early_stopping` are None if the recipe does not use them.
    """

    model: nn.Module
    optimizer: torch.optim.Optimizer
    ema_model: AveragedModel | None = None
    scaler: Any = None
    early_stopping: Any = None
    step: int = 0
    seconds: float = 0.0

    @property
    def eval_model(self) -> nn.Module:
        """Return the network that is validated and saved: the moving average if there is one."""
        return self.ema_model.module if self.ema_model else self.model

    def state_dict(self) -> dict[str, Any]:
        """Return tensors and plain values."""
        parts: dict[str, Any] = {name: getattr(self, name) for name in _STATEFUL}
        states = {name: part.state_dict() if part is not None else None for name, part in parts.items()}
        return {"step": self.step, "seconds": self.seconds, **states}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self.step, self.seconds = state["step"], state["seconds"]
        for name in _STATEFUL:
            if getattr(self, name) is not None:
                getattr(self, name).load_state_dict(state[name])


_STATEFUL = ("model", "optimizer", "ema_model", "scaler", "early_stopping")
# What else a state file holds; see `training.fit.save`.
STATE_KEYS = frozenset(("step", "seconds", "data_digest", "preprocess", "native_kernels", "random", *_STATEFUL))


def write_train_state(run: Path, state: dict[str, Any]) -> None:
    """Write the state file of a run folder, atomically."""
    # Through memory: torch.save straight to a full disk reports an internal error instead of the cause.
    buffer = io.BytesIO()
    torch.save(state, buffer)
    write_atomically(run / STATE_FILE, buffer.getvalue())


def read_train_state(run: Path) -> dict[str, Any] | None:
    """Read the state file of a run folder; None if it does not exist. Raises ValueError for a damaged file."""
    path = run / STATE_FILE
    if not path.exists():
        return None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, pickle.UnpicklingError, EOFError, OSError) as error:
        unsafe = isinstance(error, pickle.UnpicklingError)
        reason = "it contains more than tensors and numbers" if unsafe else str(error).splitlines()[0]
        raise ValueError(f"{path}: damaged, or not a training state ({reason}); {_RESTART}") from None
    if not isinstance(state, dict) or not state.keys() >= STATE_KEYS:
        raise ValueError(f"{path}: not a training state of this version; {_RESTART}")
    return state
