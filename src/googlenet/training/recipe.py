"""A recipe: every choice of a training run, as frozen values. How they are read from YAML: `recipe_file`."""

from dataclasses import asdict, dataclass, field
from typing import Literal

import yaml

from ..data.augment import Flip
from ..data.dataset import Unreadable
from ..data.preprocess import Fit
from .devices import Precision


@dataclass(frozen=True)
class Model:
    """The network.

    Attributes:
        name: a name that `googlenet models` lists; that of `weights` where unset, else googlenet.
        aux: add the auxiliary classifiers and train with their losses.
        init: initial weights: xavier, truncated_normal or kaiming; the model's own where unset.
        dropout: before the classifier, in [0, 1); the model's own where unset.
        pools: of a GoogLeNet: ceil (the paper's) or padded (the chapter's, for small pictures); the model's own where
            unset.
        stem_stride: pixels that become one before the second convolution: 4, or 2 or 1 for small pictures; the
            model's own (4) where unset.
        pyramid: grids that the last map is pooled to, such as [1, 2, 4]; the model's own ([1]: global average
            pooling) where unset.
        width: of a GoogLeNet: every number of channels times this; the model's own (1) where unset.
        seed: of the initial weights; that of the recipe where unset.
        weights: start from those of a run folder, a .safetensors file of ours, or published ones by name, such as
            torchvision:googlenet; a head for other classes, and the values left unset, follow from them. Unset: start
            anew.
        freeze: keep the first layers as they are, statistics included: none, stem (all before the first Inception
            block), trunk (all but the head), or up to a layer by its name, such as inception_4a.
    """

    name: str | None = None
    aux: bool = False
    init: Literal["xavier", "truncated_normal", "kaiming"] | None = None
    dropout: float | None = None
    pools: Literal["ceil", "padded"] | None = None
    stem_stride: Literal[4, 2, 1] | None = None
    pyramid: tuple[int, ...] | None = None
    width: float | None = None
    seed: int | None = None
    weights: str | None = None
    freeze: str = "none"


@dataclass(frozen=True)
class Data:
    """The pictures.

    Attributes:
        source: fashion-mnist, folder:PATH with a folder per class, imagenet:PATH, or shards:PATH or shards:URL of tar
            files; for detection scenes, scenes:train=N,test=N,seed=N, coco:PATH or voc:PATH.
        root: where the data lies, looked at first.
        validation: training pictures held out: a count from 1 up, or a fraction below 1.
        seed: chooses which pictures are held out; that of the recipe where unset.
        normalise: dataset (subtract the training pixels' mean, divide by their deviation), none ([0, 1]), or weights
            (as the weights that the run starts from are used to).
        fit: how a picture becomes square: crop or stretch.
        unreadable: skip unreadable pictures, with a list, or refuse the source.
        limit: use at most so many pictures of each split, for quick trials; unset for all.
        resident: keep a folder's pictures decoded in memory, or (false) decode them each time; unset, as they fit.
        workers: processes that decode ahead what is not resident; unset, one per core, and none on a single core.
    """

    source: str = "fashion-mnist"
    root: str | None = None
    validation: float = 5000
    seed: int | None = None
    normalise: Literal["dataset", "none", "weights"] = "dataset"
    fit: Fit = "crop"
    unreadable: Unreadable = "skip"
    limit: int | None = None
    resident: bool | None = None
    workers: int | None = None


@dataclass(frozen=True)
class Size:
    """Height and width of the pictures, in pixels, by training step.

    Attributes:
        kind: fixed; progressive (the list in order, each for the same number of pictures' passes); random (drawn from
            the list); progressive_random (drawn from those of the list that progressive has reached).
        train: the sizes to train at: one number, or a list; null for that of model.weights, else the model's own.
        every: with random and progressive_random, draw a new size every so many steps.
        test: the size to validate, test and predict at; the last training size where unset.
        batch: fixed (batch_size pictures a step), or constant_memory: batch_size is for the largest training size,
            smaller ones come in larger batches of as many pixels. The learning rate is not changed by it.
    """

    kind: Literal["fixed", "progressive", "random", "progressive_random"] = "fixed"
    train: int | tuple[int, ...] | None = 224
    every: int = 10
    test: int | None = None
    batch: Literal["fixed", "constant_memory"] = "fixed"

    @property
    def sizes(self) -> tuple[int, ...]:
        """The sizes to train at, as a tuple in every case; empty while they are left to the model."""
        if self.train is None:
            return ()
        return (self.train,) if isinstance(self.train, int) else self.train


@dataclass(frozen=True)
class Augmentation:
    """Random changes of the training pictures.

    Attributes:
        flip: mirror left to right: none, random, or alternating (each picture's two sides in turn).
        shift: move by up to so many pixels of the stored picture.
        erase: side of a blanked square, in pixels of the stored picture.
        crop: a random part of the picture, of this share of its area at least, in (0, 1]; 1 for the whole.
        timm: a policy of timm's, such as rand-m7-mstd0.5, augmix-m3-w3 or original; unset for none.
        random_erasing: the probability that a rectangle of the picture is blanked, by timm's random erasing.
        mixup: the Beta distribution's parameter of mixing two pictures and their labels; 0 for none.
        cutmix: the same, for pasting a part of one picture into another; each batch takes one of the two.
    """

    flip: Flip = "none"
    shift: int = 0
    erase: int = 0
    crop: float = 1.0
    timm: str | None = None
    random_erasing: float = 0.0
    mixup: float = 0.0
    cutmix: float = 0.0


@dataclass(frozen=True)
class Optimiser:
    """The optimiser.

    Attributes:
        name: sgd, adamw, rmsprop or muon (orthogonalised momentum).
        lr: the peak learning rate.
        momentum: of sgd, muon and rmsprop.
        nesterov: look ahead, sgd and muon only.
        weight_decay: pulls the weights of convolutions and linear layers, not biases and norms, to zero.
        alpha: the decay of rmsprop's squared gradients.
        eps: added to the root of adamw and rmsprop.
        layerwise: scale each layer's gradient to the norm of its weights first (LARS).
        clip: the largest norm of all gradients together; unset for no limit.
        backbone: multiplies the learning rate of everything but the heads.
        layer_decay: multiplies it once more for each layer further from the head, in (0, 1].
    """

    name: Literal["sgd", "adamw", "rmsprop", "muon"] = "sgd"
    lr: float = 0.1
    momentum: float = 0.0
    nesterov: bool = False
    weight_decay: float = 0.0
    alpha: float = 0.9
    eps: float = 1e-8
    layerwise: bool = False
    clip: float | None = None
    backbone: float = 1.0
    layer_decay: float = 1.0


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
        class_weights: none, or balanced (each picture counts in inverse proportion to its class's pictures).
    """

    label_smoothing: float = 0.0
    aux_weight: float = 0.3
    class_weights: Literal["none", "balanced"] = "none"


@dataclass(frozen=True)
class Detection:
    """The network that finds objects, around the one that `model` names; with task detection.

    There, `size` is of the pictures' longer sides, proportions kept, or of R-CNN's warped regions; `augment` knows
    flip alone (none or random).

    Attributes:
        head: fcos (every position says what it sees), faster_rcnn (torchvision's second stage looks at regions), or
            rcnn (no pyramid: each proposed region is cut out and classified, as in 2014; see `Regions`).
        maps: pyramid (maps of strides 8, 16 and 32, fused) or deepest (that of stride 32 alone).
        channels: of the fused maps.
        depth: convolutions of each of the head's towers.
        reach: a level takes objects whose furthest side is up to so many strides from a position; coarser levels
            larger ones.
        threshold: boxes that score less are left out, in [0, 1).
        overlap: of two boxes of a class that overlap by more than this (intersection over union) the better remains.
        most: boxes of a picture, at most.
        sizes: test at each of these sizes and merge the boxes; unset, at size.test alone.
    """

    head: Literal["fcos", "faster_rcnn", "rcnn"] = "fcos"
    maps: Literal["pyramid", "deepest"] = "pyramid"
    channels: int = 128
    depth: int = 2
    reach: float = 4.0
    threshold: float = 0.05
    overlap: float = 0.5
    most: int = 100
    sizes: tuple[int, ...] | None = None


@dataclass(frozen=True)
class Regions:
    """The regions of a picture, with detection.head rcnn.

    Attributes:
        search: propose regions by selective search.
        superpixel: its superpixels' scale and least area, in pixels; twice it gives half the proposals or less.
        most: its proposals of a picture, at most, an even sample; unset for all.
        multibox: propose 200 more by a network of its own, googlenet_bn with its channels times this; 0 for none.
        context: pixels of a warped region that lie around its box, on each side.
        per_picture: regions that a step sees of each of its pictures, on average.
        positives: the share of them that are objects, in (0, 1).
        hard: the share of the others, in [0, 1], that meets an object by a tenth or more.
        regress: correct the boxes by what the network learned about them; it is learned in any case.
        vote: average each box that remains with all of its class that overlap it by so much, in (0, 1]; unset: none.
    """

    search: bool = True
    superpixel: int = 50
    most: int | None = None
    multibox: float = 0.25
    context: float = 2.0
    per_picture: int = 8
    positives: float = 0.25
    hard: float = 0.5
    regress: bool = True
    vote: float | None = None


@dataclass(frozen=True)
class Recipe:
    """One training run.

    Attributes:
        task: classification (one label per picture) or detection (boxes with labels).
        epochs: passes over the training pictures; the last may be a part of one, such as 1.25.
        min_steps: make more passes where these are fewer steps: a small folder needs them.
        batch_size: pictures a step, of all processes together.
        accumulate: cut each step's batch into so many parts, one after the other, where memory is short.
        seed: of the initial weights, the order, the held-out pictures and every random change.
        ema: keep a moving average of the weights with this decay, in (0, 1), and deliver it; unset for none.
        reestimate_norm: at the end, average batch normalisation's statistics anew over so many batches of unchanged
            training pictures at the test size; 0 for all pictures, unset to leave them.
        early_stop: stop after so many validations without a better one, and deliver the best weights by validation
            top-1 (among equals, loss); unset to train to the end and deliver the last.
        validate_every: epochs from one validation to the next.
        checkpoint_minutes: minutes from one saved state to the next.
        device: auto, cpu, cuda or mps.
        precision: float32, bfloat16, float16 (CUDA only), or auto: bfloat16 where the device computes it natively.
        compile: let torch.compile make the step, in place of the native one on CPUs.
    """

    task: Literal["classification", "detection"] = "classification"
    model: Model = field(default_factory=Model)
    data: Data = field(default_factory=Data)
    size: Size = field(default_factory=Size)
    augment: Augmentation = field(default_factory=Augmentation)
    optimiser: Optimiser = field(default_factory=Optimiser)
    schedule: Schedule = field(default_factory=Schedule)
    loss: Loss = field(default_factory=Loss)
    detection: Detection = field(default_factory=Detection)
    regions: Regions = field(default_factory=Regions)
    epochs: float = 10
    min_steps: int = 0
    batch_size: int = 128
    accumulate: int = 1
    seed: int = 0
    ema: float | None = None
    reestimate_norm: int | None = None
    early_stop: int | None = None
    validate_every: float = 1.0
    checkpoint_minutes: float = 2.0
    device: str = "auto"
    precision: Precision = "float32"
    compile: bool = False

    def __post_init__(self) -> None:
        for what, holds in (
            ("epochs must be above 0", self.epochs > 0),
            ("epochs must be whole with size.batch constant_memory",
             self.size.batch == "fixed" or self.epochs == int(self.epochs)),
            ("min_steps must be 0 or more", self.min_steps >= 0),
            ("reestimate_norm must be 0 or more", self.reestimate_norm is None or self.reestimate_norm >= 0),
            ("batch_size must be 1 or more", self.batch_size >= 1),
            ("accumulate must be 1 or more, and leave each part 2 of batch_size's pictures or more",
             self.accumulate == 1 or 2 <= 2 * self.accumulate <= self.batch_size),
            ("size.train needs sizes of 1 or more",
             self.size.train is None or (bool(self.size.sizes) and min(self.size.sizes) >= 1)),
            ("size.train has several sizes: size.kind must be progressive, random or progressive_random",
             self.size.kind != "fixed" or len(self.size.sizes) <= 1),
            ("size.test must be 1 or more", self.size.test is None or self.size.test >= 1),
            ("size.every must be 1 or more", self.size.every >= 1),
            ("data.limit must be 1 or more", self.data.limit is None or self.data.limit >= 1),
            ("data.workers must be 0 or more", self.data.workers is None or self.data.workers >= 0),
            ("optimiser.lr must be above 0", self.optimiser.lr > 0),
            ("optimiser.momentum must be in [0, 1)", 0 <= self.optimiser.momentum < 1),
            ("optimiser.nesterov needs a momentum", not self.optimiser.nesterov or self.optimiser.momentum > 0),
            ("optimiser.weight_decay must be 0 or more", self.optimiser.weight_decay >= 0),
            ("optimiser.alpha must be in [0, 1)", 0 <= self.optimiser.alpha < 1),
            ("optimiser.layerwise goes with sgd alone", not self.optimiser.layerwise or self.optimiser.name == "sgd"),
            ("optimiser.clip has no effect with layerwise, which scales every gradient: leave one of them out",
             not self.optimiser.layerwise or self.optimiser.clip is None),
            ("optimiser.eps must be above 0", self.optimiser.eps > 0),
            ("optimiser.clip must be above 0", self.optimiser.clip is None or self.optimiser.clip > 0),
            ("schedule.warmup must be in [0, 1)", 0 <= self.schedule.warmup < 1),
            ("schedule.decay must be in (0, 1]", 0 < self.schedule.decay <= 1),
            ("schedule.floor must be in [0, 1]", 0 <= self.schedule.floor <= 1),
            ("schedule.every must be above 0", self.schedule.every > 0),
            ("loss.label_smoothing must be in [0, 1)", 0 <= self.loss.label_smoothing < 1),
            ("loss.aux_weight must be 0 or more", self.loss.aux_weight >= 0),
            ("seed must be in 0..2147483647", 0 <= self.seed < 2**31),
            ("data.seed must be in 0..2147483647", 0 <= self.split_seed < 2**31),
            ("checkpoint_minutes must be above 0", self.checkpoint_minutes > 0),
            ("ema must be in (0, 1)", self.ema is None or 0 < self.ema < 1),
            ("validate_every must be above 0", self.validate_every > 0),
            ("augment.shift and augment.erase must be 0 or more", min(self.augment.shift, self.augment.erase) >= 0),
            ("augment.crop must be in (0, 1]", 0 < self.augment.crop <= 1),
            ("augment.random_erasing must be in [0, 1]", 0 <= self.augment.random_erasing <= 1),
            ("augment.mixup and augment.cutmix must be 0 or more", min(self.augment.mixup, self.augment.cutmix) >= 0),
            ("optimiser.backbone must be above 0 (model.freeze trunk trains the head alone)",
             self.optimiser.backbone > 0),
            ("optimiser.layer_decay must be in (0, 1]", 0 < self.optimiser.layer_decay <= 1),
            ("detection needs task: detection", self.task == "detection" or self.detection == Detection()),
            ("detection.channels must be 8 or more", self.detection.channels >= 8),
            ("detection.depth must be 0 or more", self.detection.depth >= 0),
            ("detection.reach must be above 0", self.detection.reach > 0),
            ("detection.threshold must be in [0, 1)", 0 <= self.detection.threshold < 1),
            ("detection.overlap must be in (0, 1]", 0 < self.detection.overlap <= 1),
            ("detection.most must be 1 or more", self.detection.most >= 1),
            ("detection.sizes needs sizes of 1 or more",
             self.detection.sizes is None or (bool(self.detection.sizes) and min(self.detection.sizes) >= 1)),
            ("regions needs detection.head: rcnn", self.detection.head == "rcnn" or self.regions == Regions()),
            ("regions.superpixel must be 2 or more", self.regions.superpixel >= 2),
            ("regions.most must be 1 or more", self.regions.most is None or self.regions.most >= 1),
            ("regions.multibox must be 0, or above it and at most 4", 0 <= self.regions.multibox <= 4),
            ("regions.context must be 0 or more, and leave half of the region to the box",
             self.detection.head != "rcnn"
             or 0 <= 4 * self.regions.context <= min(self.size.sizes or (224,))),
            ("regions.per_picture must be 1 or more", self.regions.per_picture >= 1),
            ("regions.positives must be in (0, 1)", 0 < self.regions.positives < 1),
            ("regions.hard must be in [0, 1]", 0 <= self.regions.hard <= 1),
            ("regions.vote must be in (0, 1]", self.regions.vote is None or 0 < self.regions.vote <= 1),
            ("early_stop must be 1 or more", self.early_stop is None or self.early_stop >= 1),
        ):  # fmt: skip
            if not holds:
                raise ValueError(f"in the recipe, {what}")

    @property
    def split_seed(self) -> int:
        """The seed that chooses the validation pictures."""
        return self.seed if self.data.seed is None else self.data.seed

    @property
    def test_size(self) -> int:
        """The size to validate, test and predict at."""
        return self.size.test or (self.size.sizes or (224,))[-1]

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
