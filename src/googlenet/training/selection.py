"""Early stopping: the best weights by the validation score, and when to give up looking for better ones."""

from typing import Any

from torch import Tensor, nn


class Best:
    """The best of the weights that were offered so far.

    Better is a higher figure `by`, and among equals a smaller loss: small validation parts have many ties. After
    `patience` offers without a better one, `over`. `step` is the best's.
    """

    def __init__(self, patience: int, by: str = "top1"):
        self.patience, self.by = patience, by
        self.score: tuple[float, float] | None = None
        self.step = 0
        self.since = 0
        self.weights: dict[str, Tensor] = {}

    def offer(self, figures: dict[str, float], step: int, model: nn.Module) -> None:
        """Look at the weights of `model` after `step` steps, with the validation `figures` that they gave."""
        score = (figures.get(self.by, 0.0), -figures.get("loss", 0.0))
        if self.score is not None and score <= self.score:
            self.since += 1
            return
        self.score, self.step, self.since = score, step, 0
        self.weights = {key: value.detach().clone() for key, value in model.state_dict().items()}

    @property
    def over(self) -> bool:
        """Whether to stop."""
        return self.since >= self.patience

    def state(self) -> dict[str, Any]:
        """Plain values and tensors, for the saved state."""
        return {"score": self.score, "step": self.step, "since": self.since, "weights": self.weights}

    def load(self, state: dict[str, Any]) -> None:
        """The inverse of `state`."""
        self.score, self.step, self.since = state["score"], state["step"], state["since"]
        self.weights = state["weights"]
