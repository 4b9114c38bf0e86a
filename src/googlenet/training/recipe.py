"""A recipe: every choice of a training run, as frozen values. How they are read from YAML: `recipe_file`."""

from dataclasses import asdict, dataclass, field
from typing import Literal

import yaml

from ..data.augment import Flip
from ..data.dataset import Unreadable
from ..data.preprocess import Fit


@dataclass(frozen=True)
class Model:
    """The network.

    Attributes:
        name: a name that `googlenet models` lists.
        aux: add the auxiliary classifiers and train with their losses.
        init: initial weights: xavier, truncated_normal or kaiming; the model's own where unset.
        dropout: before the classifier, in [0, 1); the model's own where unset.
        pools: ceil (the paper's) or padded (the chapter's, for small pictures); the model's own where unset.
        stem_stride: pixels that become one before the second convolution: 4, or 2 or 1 for small pictures.
    """

    name: str = "googlenet"
    aux: bool = False
    init: Literal["xavier", "truncated_normal", "kaiming"] | None = None
    dropout: float | None = None
    pools: Literal["ceil", "padded"] | None = None
    stem_stride: Literal[4, 2, 1] = 4


@dataclass(frozen=True)
class Data:
    """The pictures.

    Attributes:
        source: fashion-mnist, folder:PATH with a folder per class, or shards:PATH or shards:URL of tar files.
        root: where the data lies, looked at first.
        validation: training pictures held out: a count from 1 up, or a fraction below 1.
        normalise: dataset (subtract the training pixels' mean, divide by their deviation) or none ([0, 1]).
        fit: how a picture becomes square: crop or stretch.
        unreadable: skip unreadable pictures, with a list, or refuse the source.
        limit: use at most so many pictures of each split, for quick trials; unset for all.
        resident: keep a folder's pictures decoded in memory, or (false) decode them each time; unset, as they fit.
        workers: processes that decode ahead what is not resident; unset, one per core, and none on a single core.
    """

    source: str = "fashion-mnist"
    root: str | None = None
    validation: float = 5000
    normalise: Literal["dataset", "none"] = "dataset"
    fit: Fit = "crop"
    unreadable: Unreadable = "skip"
    limit: int | None = None
    resident: bool | None = None
    workers: int | None = None


@dataclass(frozen=True)
class Size:
    """Height and width of the pictures, in pixels, by training step.

    Attributes:
        kind: fixed; progressive (the list in order, each for the same number of pictures' passes); random.
        train: the sizes to train at: one number, or a list.
        every: with random, draw a new size every so many steps.
        test: the size to validate, test and predict at; the last training size where unset.
    """

    kind: Literal["fixed", "progressive", "random"] = "fixed"
    train: int | tuple[int, ...] = 224
    every: int = 10
    test: int | None = None

    @property
    def sizes(self) -> tuple[int, ...]:
        """The sizes to train at, as a tuple in every case."""
        return (self.train,) if isinstance(self.train, int) else self.train


@dataclass(frozen=True)
class Augmentation:
    """Random changes of the training pictures.

    Attributes:
        flip: mirror left to right: none, random, or alternating (each picture's two sides in turn).
        shift: move by up to so many pixels of the stored picture.
        erase: side of a blanked square, in pixels of the stored picture.
    """

    flip: Flip = "none"
    shift: int = 0
    erase: int = 0


@dataclass(frozen=True)
class Optimiser:
    """The optimiser.

    Attributes:
        name: sgd, adamw or rmsprop.
        lr: the peak learning rate.
        momentum: of sgd and rmsprop.
        nesterov: look ahead, sgd only.
        weight_decay: pulls the weights of convolutions and linear layers, not biases and norms, to zero.
        alpha: the decay of rmsprop's squared gradients.
        eps: added to the root of adamw and rmsprop.
        layerwise: scale each layer's gradient to the norm of its weights first (LARS).
        clip: the largest norm of all gradients together; unset for no limit.
    """

    name: Literal["sgd", "adamw", "rmsprop"] = "sgd"
    lr: float = 0.1
    momentum: float = 0.0
    nesterov: bool = False
    weight_decay: float = 0.0
    alpha: float = 0.9
    eps: float = 1e-8
    layerwise: bool = False
    clip: float | None = None


@dataclass(frozen=True)
class Schedule:
    """The learning rate over the run, as a factor of the optimiser's.

    Attributes:
        name: constant, step, exponential, cosine or one_cycle.
        warmup: the part of the run, in [0, 1), over which the rate rises linearly from zero.
        decay: step and exponential: the factor at each decay.
        every: step and exponential: epochs from one decay to the next.
        floor: cosine and one_cycle: the factor that the last step comes down to, all but its own share.
    """

    name: Literal["constant", "step", "exponential", "cosine", "one_cycle"] = "constant"
    warmup: float = 0.0
    decay: float = 0.96
    every: float = 8.0
    floor: float = 0.0


@dataclass(frozen=True)
class Loss:
    """The loss: cross-entropy of the classifier, plus that of the auxiliary heads.

    Attributes:
        label_smoothing: the part of the target spread over all classes, in [0, 1).
        aux_weight: the weight of each auxiliary head's loss.
    """

    label_smoothing: float = 0.0
    aux_weight: float = 0.3


@dataclass(frozen=True)
class Recipe:
    """One training run.

    Attributes:
        epochs: passes over the training pictures.
        batch_size: pictures a step.
        seed: of the initial weights, the order and every random change.
        ema: keep a moving average of the weights with this decay, in (0, 1), and deliver it; unset for none.
        validate_every: epochs from one validation to the next.
        checkpoint_minutes: minutes from one saved state to the next.
        device: auto, cpu, cuda or mps.
    """

    model: Model = field(default_factory=Model)
    data: Data = field(default_factory=Data)
    size: Size = field(default_factory=Size)
    augment: Augmentation = field(default_factory=Augmentation)
    optimiser: Optimiser = field(default_factory=Optimiser)
    schedule: Schedule = field(default_factory=Schedule)
    loss: Loss = field(default_factory=Loss)
    epochs: int = 10
    batch_size: int = 128
    seed: int = 0
    ema: float | None = None
    validate_every: float = 1.0
    checkpoint_minutes: float = 2.0
    device: str = "auto"

    def __post_init__(self) -> None:
        for what, holds in (
            ("epochs must be 1 or more", self.epochs >= 1),
            ("batch_size must be 1 or more", self.batch_size >= 1),
            ("size.train needs sizes of 1 or more", bool(self.size.sizes) and min(self.size.sizes) >= 1),
            ("size.train has several sizes: size.kind must be progressive or random",
             self.size.kind != "fixed" or len(self.size.sizes) == 1),
            ("size.test must be 1 or more", self.size.test is None or self.size.test >= 1),
            ("size.every must be 1 or more", self.size.every >= 1),
            ("data.limit must be 1 or more", self.data.limit is None or self.data.limit >= 1),
            ("data.workers must be 0 or more", self.data.workers is None or self.data.workers >= 0),
            ("optimiser.lr must be above 0", self.optimiser.lr > 0),
            ("optimiser.momentum must be in [0, 1)", 0 <= self.optimiser.momentum < 1),
            ("optimiser.nesterov needs a momentum", not self.optimiser.nesterov or self.optimiser.momentum > 0),
            ("optimiser.weight_decay must be 0 or more", self.optimiser.weight_decay >= 0),
            ("optimiser.alpha must be in [0, 1)", 0 <= self.optimiser.alpha < 1),
            ("optimiser.eps must be above 0", self.optimiser.eps > 0),
            ("optimiser.clip must be above 0", self.optimiser.clip is None or self.optimiser.clip > 0),
            ("schedule.warmup must be in [0, 1)", 0 <= self.schedule.warmup < 1),
            ("schedule.decay must be in (0, 1]", 0 < self.schedule.decay <= 1),
            ("schedule.floor must be in [0, 1]", 0 <= self.schedule.floor <= 1),
            ("schedule.every must be above 0", self.schedule.every > 0),
            ("loss.label_smoothing must be in [0, 1)", 0 <= self.loss.label_smoothing < 1),
            ("loss.aux_weight must be 0 or more", self.loss.aux_weight >= 0),
            ("seed must be in 0..2147483647", 0 <= self.seed < 2**31),
            ("checkpoint_minutes must be above 0", self.checkpoint_minutes > 0),
            ("ema must be in (0, 1)", self.ema is None or 0 < self.ema < 1),
            ("validate_every must be above 0", self.validate_every > 0),
            ("augment.shift and augment.erase must be 0 or more", min(self.augment.shift, self.augment.erase) >= 0),
        ):  # fmt: skip
            if not holds:
                raise ValueError(f"in the recipe, {what}")

    @property
    def test_size(self) -> int:
        """The size to validate, test and predict at."""
        return self.size.test or self.size.sizes[-1]

    @property
    def stored_size(self) -> int:
        """The size at which a folder's pictures are kept in memory: the largest that is asked for."""
        return max(*self.size.sizes, self.test_size)

    def to_yaml(self) -> str:
        """Every value, as YAML that `read_recipe` reads back to an equal recipe."""
        values = asdict(self)
        if isinstance(self.size.train, tuple):
            values["size"]["train"] = list(self.size.train)
        return yaml.safe_dump(values, sort_keys=False)
