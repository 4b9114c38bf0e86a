"""What a run learns: batches to descend on and answers to measure. `fit` knows nothing else of the problem."""

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..data.dataset import Split
from ..data.loader import Augment, Batch, Turn, evaluation_batches, training_batch
from ..data.preprocess import Preprocess
from ..data.rows import Rows
from ..evaluation.metrics import Outputs, collect, scores
from ..evaluation.report import render_report
from ..models.network import Network
from .norms import plain_batches
from .recipe import Loss, Recipe


class StepResult(NamedTuple):
    """`loss` to differentiate, and the number of pictures answered right; both scalars on the device."""

    loss: Tensor
    correct: Tensor


class Learnt(Protocol):
    """A batch as it enters the loss."""

    @property
    def pictures(self) -> int:
        """How many pictures it has."""
        ...


class Part(NamedTuple):
    """Which pictures of a run's steps a batch shall have: those `rows` of the `turn` of `step`, at `size` pixels.

    `later` are the turns and rows that will be asked for next, so that their files can be read meanwhile.
    """

    step: int
    size: int
    turn: Turn
    rows: Rows
    later: Iterable[tuple[Turn, Rows]]


class About(NamedTuple):
    """What any run's page tells: its title, the recipe as YAML, the entries of metrics.jsonl, the classes, the
    machine."""

    title: str
    recipe: str
    entries: list[dict[str, Any]]
    classes: tuple[str, ...]
    environment: dict[str, Any]


class Task(Protocol):
    """One kind of problem.

    A split is whatever the task's data set has; it is false where it is empty. `best` names the figure by which
    weights are chosen, higher being better; `named` are the figures that are told while a run goes on.
    """

    @property
    def best(self) -> str:
        """The name of the figure that decides."""
        ...

    @property
    def named(self) -> dict[str, str]:
        """Names of figures, and what a reader calls them."""
        ...

    def batch(self, train: Any, preprocess: Preprocess, recipe: Recipe, part: Part) -> Learnt:
        """A part of a step's batch, a function of the recipe and of what `part` says alone."""
        ...

    def loss(self, model: Any, batch: Any) -> StepResult:
        """The training loss of a batch."""
        ...

    def score(self, model: Any, split: Any, preprocess: Preprocess) -> Any:
        """The network's answers to every picture of `split`."""
        ...

    def figures(self, answers: Any) -> dict[str, float]:
        """What such answers are worth; rates are fractions 0..1."""
        ...

    def plain(self, train: Any, preprocess: Preprocess, recipe: Recipe) -> Iterator[Tensor]:
        """Pixels of training pictures, unchanged, at the test size, for the statistics of normalisations."""
        ...

    def report(self, about: About, split: Any, answers: Any) -> str:
        """The run's page; `answers` are those to the pictures of `split`, None where nothing was held out."""
        ...


class Ingredients(NamedTuple):
    """What a run is made of besides its recipe and its data set: the task, the network as it starts, how pixels are
    made for it, the number of training pictures, and what tells them from others."""

    task: Task
    model: nn.Module
    preprocess: Preprocess
    pictures: int
    digest: str


class Classification(NamedTuple):
    """One label per picture: cross-entropy, with the auxiliary heads' added at `options.aux_weight` each.

    `weights` (classes,) multiply each picture's loss by its class's number; `balanced` makes them. `augment` are the
    random changes of the training pictures.
    """

    options: Loss
    weights: Tensor | None = None
    augment: Augment = Augment()

    @property
    def best(self) -> str:
        """Top-1 accuracy decides."""
        return "top1"

    @property
    def named(self) -> dict[str, str]:
        """Top-1 accuracy and the loss."""
        return {"top1": "top-1", "loss": "loss"}

    def batch(self, train: Split, preprocess: Preprocess, recipe: Recipe, part: Part) -> Batch:
        """Pictures with one label each, or shares of several where pictures are mixed."""
        return training_batch(
            train, preprocess, self.augment,
            step=part.step, batch_size=recipe.batch_size, size=part.size, seed=recipe.seed,
            turn=part.turn, rows=part.rows, later=part.later,
        )  # fmt: skip

    def loss(self, model: Network, batch: Batch) -> StepResult:
        """The training loss of a batch ("Going Deeper with Convolutions", section 5)."""
        logits, aux = model.forward_aux(batch.images)
        loss = self._cross_entropy(logits, batch.labels)
        for side in aux:
            loss = loss + self.options.aux_weight * self._cross_entropy(side, batch.labels)
        truth = batch.labels if batch.labels.ndim == 1 else batch.labels.argmax(dim=1)
        return StepResult(loss, (logits.detach().argmax(dim=1) == truth).sum())

    def _cross_entropy(self, logits: Tensor, labels: Tensor) -> Tensor:
        smoothing = self.options.label_smoothing
        # In mixed precision too, a loss is summed in float32.
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        if self.weights is None:
            return F.cross_entropy(logits, labels, label_smoothing=smoothing)
        # PyTorch's mean divides by the weights of whole labels but not of mixed ones: here, by the pictures in both.
        return F.cross_entropy(logits, labels, self.weights, label_smoothing=smoothing, reduction="none").mean()

    def score(self, model: Network, split: Split, preprocess: Preprocess) -> Outputs:
        """The network's answers to every picture of `split`."""
        device = next(model.parameters()).device
        with torch.inference_mode():
            return collect(model, evaluation_batches(split, preprocess), device)

    def figures(self, answers: Outputs) -> dict[str, float]:
        """Top-1, top-5, loss."""
        return scores(answers)

    def plain(self, train: Split, preprocess: Preprocess, recipe: Recipe) -> Iterator[Tensor]:
        """Training pictures without augmentation."""
        return plain_batches(recipe, train, preprocess)

    def report(self, about: About, split: Split, answers: Outputs | None) -> str:
        """Figures, curves, confusion matrix, worst mistakes."""
        split = split.to(torch.device("cpu"))
        return render_report(
            about.title, about.recipe, about.entries, about.classes, split, answers, about.environment
        )


def balanced(labels: Tensor, classes: int) -> Tensor:
    """Class weights (classes,) in inverse proportion to the classes' pictures, 1 on average over the pictures."""
    counts = torch.bincount(labels, minlength=classes).clamp_min(1)
    return len(labels) / (classes * counts.float())


class Learner(nn.Module):
    """A network with its loss, as one module: what is spread over processes, cast to fewer bits, compiled."""

    def __init__(self, task: Task, model: nn.Module):
        super().__init__()
        self.task, self.model = task, model

    def forward(self, batch: Any) -> StepResult:
        """The result of the task on one batch, or on this process's part of it."""
        return self.task.loss(self.model, batch)
