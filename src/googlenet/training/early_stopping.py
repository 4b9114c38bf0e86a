"""Early stopping: keep the weights with the best validation score and stop after `patience` validations without one."""

from typing import Any

from torch import Tensor, nn


class EarlyStopping:
    """The best weights so far by the metric `monitor`, and among ties (small validation sets have many) by the loss.

    `step` is the step of the best weights; `bad_epochs` counts the validations since then.
    """

    def __init__(self, patience: int, monitor: str = "top1"):
        self.patience, self.monitor = patience, monitor
        self.score: tuple[float, float] | None = None
        self.step = self.bad_epochs = 0
        self.weights: dict[str, Tensor] = {}

    def update(self, metrics: dict[str, float], step: int, model: nn.Module) -> None:
        """Compare the weights of `model` after `step` steps by their validation `metrics`."""
        score = (metrics.get(self.monitor, 0.0), -metrics.get("loss", 0.0))
        if self.score is not None and score <= self.score:
            self.bad_epochs += 1
            return
        self.score, self.step, self.bad_epochs = score, step, 0
        self.weights = {key: value.detach().clone() for key, value in model.state_dict().items()}

    @property
    def should_stop(self) -> bool:
        """Return whether patience is exhausted."""
        return self.bad_epochs >= self.patience

    def state_dict(self) -> dict[str, Any]:
        """Return plain values and tensors."""
        return {name: getattr(self, name) for name in ("score", "step", "bad_epochs", "weights")}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        vars(self).update(state)
