"""The recipe: every option of a training run, as frozen dataclasses that validate themselves.

`parse` reads recipes from YAML files and command-line flags.
"""

from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal

import yaml

from ..data.augment import Flip
from ..data.dataset import OnError
from ..data.preprocess import CropMode, Interpolation
from ..devices import Precision


def within(interval: str, default: Any) -> Any:
    """Return a dataclass field whose values, except None, must lie in an interval such as "[0, 1)" or "(0, inf)"."""
    return field(default=default, metadata={"interval": interval})


def _contains(interval: str, value: float) -> bool:
    low, high = (float(bound) for bound in interval[1:-1].split(","))
    return (value > low or (interval[0] == "[" and value == low)) and (
        value < high or (interval[-1] == "]" and value == high)
    )


@dataclass(frozen=True)
class _Validated:
    """Checks the intervals of a group's options and the sizes of its tuples when it is created."""

    def __post_init__(self) -> None:
        group = type(self).__name__.removesuffix("Config").lower()
        prefix = "" if group == "recipe" else f"{group}."
        for option in fields(self):
            interval, value = option.metadata.get("interval"), getattr(self, option.name)
            if interval is None or value is None:
                continue
            values = value if isinstance(value, tuple) else (value,)
            if not values or not all(_contains(interval, item) for item in values):
                shown = list(value) if isinstance(value, tuple) else value
                raise ValueError(f"in the recipe, {prefix}{option.name} must be in {interval}, not {shown!r}")
        self._check_combinations()

    def _check_combinations(self) -> None:
        """Raise ValueError for options that exclude each other."""


@dataclass(frozen=True)
class ModelConfig(_Validated):
    """The network.

    Attributes:
        name: a name listed by `googlenet models`; unset: the model of `init_from`, else googlenet.
        aux: add the auxiliary classifiers and train with their losses.
        init: initial weights: xavier, truncated_normal or kaiming; unset: the model's default.
        dropout: dropout rate before the classifier, in [0, 1); unset: the model's default.
        pool_mode: max pooling of a GoogLeNet: ceil (the paper) or same (padded, for small images).
        stem_stride: total stride of the stem's first convolution and pool: 4, or 2 or 1 for small images; unset: 4.
        spp_levels: grids of spatial pyramid pooling, such as [1, 2, 4]; unset: the model's default ([1]).
        width_mult: factor of every channel count of a GoogLeNet; unset: the model's default (1).
        count_include_pad: whether the average pools of Inception-v2 and v3 count the zeros of the padding; unset: true;
            false for the weights of Keras.
        seed: seed of the initial weights; unset: the recipe's seed.
        init_from: start from the weights of a run folder, a .safetensors file, or published weights such as
            torchvision:googlenet. Unset model options are taken from there; other classes get a new classifier.
        freeze: layers that are not trained: none, stem (all before the first Inception block), trunk (all but the
            classifier), all layers up to a named one, such as inception_4a, or auto (those whose features already
            separate the classes, measured by linear probes).
    """

    name: str | None = None
    aux: bool = False
    init: Literal["xavier", "truncated_normal", "kaiming"] | None = None
    dropout: float | None = None
    pool_mode: Literal["ceil", "same"] | None = None
    stem_stride: Literal[4, 2, 1] | None = None
    spp_levels: tuple[int, ...] | None = None
    width_mult: float | None = None
    count_include_pad: bool | None = None
    seed: int | None = within("[0, 2147483648)", None)
    init_from: str | None = None
    freeze: str = "none"


@dataclass(frozen=True)
class DataConfig(_Validated):
    """The images.

    Attributes:
        source: fashion-mnist, folder:PATH (one folder per class), table:FILE (CSV, TSV, JSON Lines or Parquet),
            hf:NAME or hf:PATH (Hugging Face), numpy:FILE.npz, cifar10, cifar100, mnist, kmnist, emnist:SPLIT,
            imagenet:PATH, or shards:PATH or shards:URL (WebDataset tar files); for detection scenes,
            scenes:train=N,test=N,seed=N, coco:PATH, voc:PATH or yolo:PATH. See docs/data.md.
        root: folder to search for the data first; relative paths in `source` are relative to it.
        val_split: training images held out for validation: a count (1 or more) or a fraction below 1.
        split_seed: seed that selects the validation images; unset: the recipe's seed.
        normalize: dataset (subtract the mean of the training pixels, divide by their standard deviation), none (pixels
            in [0, 1]), or pretrained (as the weights of model.init_from expect).
        crop_mode: how an image becomes square: center (crop) or squash (resize without keeping the aspect ratio).
        crop_pct: side of the center crop as a fraction of the shorter side, in (0, 1]; unset: that of model.init_from,
            else 1.
        interpolation: bilinear or bicubic; unset: that of model.init_from, else bilinear.
        max_value: the pixel value that is white in images with more than 8 bits per channel; larger ones are clipped.
            Unset: the value that the file declares, else the smallest of 1 (floats), 255, 1023, 4095 and 65535 that
            holds the maximum of the training images.
        channels: 1 (gray), 3 (RGB), or the number of channels of .npy, TIFF and other files with more; unset: 1 if all
            images are gray, else 3.
        on_error: unreadable images, and in detection also unusable annotations: skip (and list them) or raise.
        max_samples: use at most this many images of each split; unset: all.
        in_memory: keep decoded images in memory, or (false) decode them for each batch; unset: if they
            fit into half of the available memory.
        num_workers: processes that decode images that are not in memory; unset: one per core, 0 on one core.
        image_column: column of a table with the path of the image; unset: the first with a usual name.
        label_column: column of a table with the label; unset: the first with a usual name.
        split_column: column of a table with train, validation or test; unset: the first with a usual name.
        fold_column: column of a table with the folds for cross-validation; unset: the first with a usual name.
        validation_fold: hold out the training images with this value of fold_column for validation.
        sampling: shuffle (every image once per epoch), or balanced (drawn with replacement: all classes are equally
            frequent; for task multilabel an image counts for its rarest label).
        group_column: column of a table; images with the same value, such as a patient, are held out together.
        num_folds: divide the training and validation images into folds, for cross-validation; unset: none.
        fold: the fold, from 0 on, whose images are the validation images; unset: train on all folds.
    """

    source: str = "fashion-mnist"
    root: str | None = None
    val_split: float = 5000
    split_seed: int | None = within("[0, 2147483648)", None)
    normalize: Literal["dataset", "none", "pretrained"] = "dataset"
    crop_mode: CropMode = "center"
    crop_pct: float | None = within("(0, 1]", None)
    interpolation: Interpolation | None = None
    max_value: float | None = within("(0, inf)", None)
    channels: int | None = within("[1, 1000]", None)
    on_error: OnError = "skip"
    max_samples: int | None = within("[1, inf)", None)
    in_memory: bool | None = None
    num_workers: int | None = within("[0, inf)", None)
    image_column: str | None = None
    label_column: str | None = None
    split_column: str | None = None
    fold_column: str | None = None
    validation_fold: str | None = None
    sampling: Literal["shuffle", "balanced"] = "shuffle"
    group_column: str | None = None
    num_folds: int | None = within("[2, inf)", None)
    fold: int | None = within("[0, inf)", None)

    def _check_combinations(self) -> None:
        if self.fold is not None and self.fold >= (self.num_folds or 0):
            raise ValueError(f"in the recipe, data.fold must be below data.num_folds, not {self.fold}")
        if self.num_folds is not None and self.validation_fold is not None:
            raise ValueError(
                "in the recipe, data.fold and data.validation_fold both choose validation images: unset one"
            )


@dataclass(frozen=True)
class SizeConfig(_Validated):
    """Height and width of the images in pixels, as a function of the training step.

    Attributes:
        schedule: fixed; progressive (the sizes in order, each for an equal share of training); random (drawn from the
            list); progressive_random (drawn from the sizes that progressive has reached).
        train: training sizes: one number or a list; null: the size of model.init_from, else the model's default.
        change_every_n_steps: with random and progressive_random, steps between two draws.
        eval: size for validation, testing and prediction; unset: the last training size.
    """

    schedule: Literal["fixed", "progressive", "random", "progressive_random"] = "fixed"
    train: int | tuple[int, ...] | None = within("[1, inf)", 224)
    change_every_n_steps: int = within("[1, inf)", 10)
    eval: int | None = within("[1, inf)", None)

    def _check_combinations(self) -> None:
        if len(self.sizes) > 1 and self.schedule == "fixed":
            raise ValueError(
                "in the recipe, size.train has several sizes: set size.schedule to progressive, random or "
                "progressive_random"
            )

    @property
    def sizes(self) -> tuple[int, ...]:
        """The training sizes as a tuple; empty while they are left to the model."""
        if self.train is None:
            return ()
        return (self.train,) if isinstance(self.train, int) else self.train


@dataclass(frozen=True)
class AugmentConfig(_Validated):
    """Random augmentation of the training images.

    Attributes:
        flip: horizontal flip: none, random, or alternating (each image is flipped in every other epoch).
        translate: largest random shift, in pixels of the stored image.
        cutout: side of a square that is blanked, in pixels of the stored image.
        min_crop_scale: random resized crop of the full image, with aspect ratio 3/4 to 4/3: smallest fraction of the
            image's area, in (0, 1]; 1 for no random crop (the paper: 0.08).
        random_interpolation: resize each crop by bilinear, area, nearest or bicubic interpolation, drawn at random.
        auto_augment: a policy of timm, such as rand-m7-mstd0.5, augmix-m3-w3 or original; unset: none.
        random_erasing: probability of timm's random erasing.
        mixup: alpha of mixup's Beta distribution; 0: off.
        cutmix: alpha of CutMix's Beta distribution; 0: off. With both, each batch uses one of the two.
        vertical_flip: flip half of the images vertically: for images without orientation, such as aerial ones.
        rotate90: rotate each image by 0, 90, 180 or 270 degrees: for images without orientation.
        brightness, contrast, saturation: largest relative change, in [0, 1]; 0.5 draws a factor from 0.5 to 1.5.
        hue: largest rotation of the hue, as a fraction of the color circle, in [0, 0.5].
        lighting: standard deviation of the noise along the principal components of ImageNet's colors; AlexNet: 0.1.
    """

    flip: Flip = "none"
    translate: int = within("[0, inf)", 0)
    cutout: int = within("[0, inf)", 0)
    min_crop_scale: float = within("(0, 1]", 1.0)
    random_interpolation: bool = False
    auto_augment: str | None = None
    random_erasing: float = within("[0, 1]", 0.0)
    mixup: float = within("[0, inf)", 0.0)
    cutmix: float = within("[0, inf)", 0.0)
    vertical_flip: bool = False
    rotate90: bool = False
    brightness: float = within("[0, 1]", 0.0)
    contrast: float = within("[0, 1]", 0.0)
    saturation: float = within("[0, 1]", 0.0)
    hue: float = within("[0, 0.5]", 0.0)
    lighting: float = within("[0, inf)", 0.0)


@dataclass(frozen=True)
class OptimizerConfig(_Validated):
    """The optimizer.

    Attributes:
        name: sgd, normalized_sgd (SGD with layer-wise normalized gradients), adamw, rmsprop or muon.
        lr: peak learning rate.
        momentum: for sgd, normalized_sgd, muon and rmsprop, in [0, 1).
        nesterov: Nesterov momentum, for sgd, normalized_sgd and muon.
        weight_decay: for the weights of convolutions and linear layers, not for biases and normalization.
        alpha: rmsprop: decay of the squared gradients.
        eps: adamw and rmsprop: added to the root of the second moment.
        clip_grad_norm: largest norm of all gradients together; unset: no limit.
        trunk_lr_scale: factor of the learning rate of everything but the heads.
        layer_decay: a further factor for each layer away from the head, in (0, 1].
    """

    name: Literal["sgd", "normalized_sgd", "adamw", "rmsprop", "muon"] = "sgd"
    lr: float = within("(0, inf)", 0.1)
    momentum: float = within("[0, 1)", 0.0)
    nesterov: bool = False
    weight_decay: float = within("[0, inf)", 0.0)
    alpha: float = within("[0, 1)", 0.9)
    eps: float = within("(0, inf)", 1e-8)
    clip_grad_norm: float | None = within("(0, inf)", None)
    trunk_lr_scale: float = within("(0, inf)", 1.0)
    layer_decay: float = within("(0, 1]", 1.0)

    def _check_combinations(self) -> None:
        if self.nesterov and not self.momentum:
            raise ValueError("in the recipe, optimizer.nesterov needs optimizer.momentum above 0")
        if self.clip_grad_norm is not None and self.name == "normalized_sgd":
            raise ValueError(
                "in the recipe, optimizer.clip_grad_norm has no effect with normalized_sgd, which rescales every "
                "gradient: leave it unset"
            )


@dataclass(frozen=True)
class ScheduleConfig(_Validated):
    """The learning-rate schedule, as a factor of the optimizer's learning rate.

    Attributes:
        name: constant, step, exponential, cosine, or linear (to min_lr_factor at the end).
        warmup_fraction: fraction of the run, in [0, 1), in which the learning rate rises linearly to its peak.
        gamma: step and exponential: factor of each decay.
        step_epochs: step and exponential: epochs between two decays.
        min_lr_factor: cosine and linear: final learning rate as a fraction of the peak.
    """

    name: Literal["constant", "step", "exponential", "cosine", "linear"] = "constant"
    warmup_fraction: float = within("[0, 1)", 0.0)
    gamma: float = within("(0, 1]", 0.96)
    step_epochs: float = within("(0, inf)", 8.0)
    min_lr_factor: float = within("[0, 1]", 0.0)


@dataclass(frozen=True)
class LossConfig(_Validated):
    """The loss of the classifier plus the losses of the auxiliary heads.

    Attributes:
        name: cross_entropy or focal; for task multilabel binary_cross_entropy, focal or asymmetric; unset: the first.
        label_smoothing: fraction of the target spread over all classes, in [0, 1); not for detection.
        aux_weight: weight of each auxiliary head's loss.
        class_weights: none, or balanced (weights in inverse proportion to the class frequencies; for task multilabel
            the images with a label are weighted by their ratio to the others).
        gamma: focal: exponent of the weight of hard images; 0: no weight.
        gamma_positive: asymmetric: exponent for the labels that an image has.
        gamma_negative: asymmetric: exponent for the labels that it does not have.
        probability_margin: asymmetric: probabilities below this of labels that an image does not have cause no loss.
    """

    name: Literal["cross_entropy", "focal", "binary_cross_entropy", "asymmetric"] | None = None
    label_smoothing: float = within("[0, 1)", 0.0)
    aux_weight: float = within("[0, inf)", 0.3)
    class_weights: Literal["none", "balanced"] = "none"
    gamma: float = within("[0, inf)", 2.0)
    gamma_positive: float = within("[0, inf)", 1.0)
    gamma_negative: float = within("[0, inf)", 4.0)
    probability_margin: float = within("[0, 1)", 0.05)


@dataclass(frozen=True)
class DetectionConfig(_Validated):
    """The detector built on the network of `model`, for task detection.

    For detection, `size` is the longer side of the image with its aspect ratio kept (for rcnn, the side of the warped
    regions), and `augment` supports flip none and random only.

    Attributes:
        head: fcos (dense, anchor-free), faster_rcnn (torchvision's region proposals and second stage), or rcnn (each
            proposed region is cropped and classified, as in 2014; see `regions`).
        neck: fpn (feature pyramid of strides 8, 16 and 32) or none (the map of stride 32 only).
        neck_channels: channels of the neck's feature maps.
        head_convs: convolutions in each tower of the head.
        regress_range: largest distance, in strides of its level, from a location to a side of its object.
        score_threshold: detections have a score above this, in [0, 1).
        nms_iou: non-maximum suppression: largest overlap (IoU) of two boxes of a class, in (0, 1].
        max_detections: largest number of detections of an image.
        test_sizes: test at each of these sizes and merge the boxes; unset: at size.eval only.
    """

    head: str = "fcos"
    neck: Literal["fpn", "none"] = "fpn"
    neck_channels: int = within("[8, inf)", 128)
    head_convs: int = within("[0, inf)", 2)
    regress_range: float = within("(0, inf)", 4.0)
    score_threshold: float = within("[0, 1)", 0.05)
    nms_iou: float = within("(0, 1]", 0.5)
    max_detections: int = within("[1, inf)", 100)
    test_sizes: tuple[int, ...] | None = within("[1, inf)", None)


@dataclass(frozen=True)
class RegionsConfig(_Validated):
    """Region proposals and sampling, with detection.head rcnn.

    Attributes:
        selective_search: propose regions by selective search.
        ss_scale: selective search: scale and smallest area of the superpixels in pixels; larger: fewer proposals.
        max_proposals: largest number of selective-search proposals of an image, evenly sampled; unset: all.
        multibox_width_mult: width multiplier of a googlenet_bn that proposes 200 more regions (MultiBox); 0: none.
        context_padding: pixels of context around the box in a warped region, on each side.
        regions_per_image: regions sampled per training image, on average.
        positive_fraction: fraction of them that are objects, in (0, 1).
        hard_negative_fraction: fraction of the others with an IoU of 0.1 or more with an object, in [0, 1].
        box_regression: apply the learned box regression when predicting (it is trained in any case).
        box_voting_iou: average each final box with those of its class that overlap it by this IoU; unset: off.
    """

    selective_search: bool = True
    ss_scale: int = within("[2, inf)", 50)
    max_proposals: int | None = within("[1, inf)", None)
    multibox_width_mult: float = within("[0, 4]", 0.25)
    context_padding: float = within("[0, inf)", 2.0)
    regions_per_image: int = within("[1, inf)", 8)
    positive_fraction: float = within("(0, 1)", 0.25)
    hard_negative_fraction: float = within("[0, 1]", 0.5)
    box_regression: bool = True
    box_voting_iou: float | None = within("(0, 1]", None)


# The values of `loss.name` by task, the default first.
LOSSES = {
    "classification": ("cross_entropy", "focal"),
    "multilabel": ("binary_cross_entropy", "focal", "asymmetric"),
    "detection": (),
}


@dataclass(frozen=True)
class Recipe(_Validated):
    """A training run.

    Attributes:
        task: classification (one label per image), multilabel (any number of labels per image) or detection (labeled
            boxes).
        epochs: passes over the training images; the last may be partial, such as 1.25.
        min_steps: train more epochs if `epochs` has fewer steps than this: for small data sets.
        budget_minutes: end the run after this time, from reading the data to the report: the number of steps follows
            the measured speed, whatever `epochs` says; unset: off.
        auto_plan: choose image size, width, epochs, batch size, crops and class weights for budget_minutes from the
            data and the measured speed, except those that are set by flags.
        batch_size: images per step, over all processes.
        grad_accum_steps: parts into which each batch is split to save memory; gradients are accumulated.
        seed: seed of the initial weights, the order, the validation split and all augmentation.
        ema_decay: decay, in (0, 1), of an exponential moving average of the weights, which is delivered; unset: off.
        precise_bn_batches: at the end, recompute the statistics of batch normalization over this many batches of
            training images without augmentation, at the evaluation size; 0: all images, unset: off.
        early_stopping_patience: stop after this many validations without improvement, and keep the best; unset: off.
        eval_every_epochs: epochs between two validations.
        checkpoint_every_minutes: minutes between two checkpoints.
        device: auto, cpu, cuda or mps.
        precision: float32, bfloat16, float16 (CUDA only), or auto (bfloat16 where the device has instructions for it).
        compile: use torch.compile, instead of the native CPU kernels on CPUs.
        tracker: where metrics are shown, besides metrics.jsonl: tensorboard, wandb (Weights & Biases), mlflow, trackio,
            or none.
    """

    task: Literal["classification", "multilabel", "detection"] = "classification"
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    size: SizeConfig = field(default_factory=SizeConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    detection: DetectionConfig = field(default_factory=DetectionConfig)
    regions: RegionsConfig = field(default_factory=RegionsConfig)
    epochs: float = within("(0, inf)", 10)
    min_steps: int = within("[0, inf)", 0)
    budget_minutes: float | None = within("(0, inf)", None)
    auto_plan: bool = False
    batch_size: int = within("[1, inf)", 128)
    grad_accum_steps: int = within("[1, inf)", 1)
    seed: int = within("[0, 2147483648)", 0)
    ema_decay: float | None = within("(0, 1)", None)
    precise_bn_batches: int | None = within("[0, inf)", None)
    early_stopping_patience: int | None = within("[1, inf)", None)
    eval_every_epochs: float = within("(0, inf)", 1.0)
    checkpoint_every_minutes: float = within("(0, inf)", 2.0)
    device: str = "auto"
    precision: Precision = "float32"
    compile: bool = False
    tracker: Literal["tensorboard", "wandb", "mlflow", "trackio", "none"] = "tensorboard"

    def _check_combinations(self) -> None:
        if self.grad_accum_steps > 1 and 2 * self.grad_accum_steps > self.batch_size:
            raise ValueError(
                f"in the recipe, grad_accum_steps must leave at least 2 images in each part of batch_size, not "
                f"{self.batch_size} images in {self.grad_accum_steps} parts"
            )
        if self.loss.name not in (None, *LOSSES[self.task]):
            advice = f"one of {', '.join(LOSSES[self.task])}" if LOSSES[self.task] else "unset: the head has its own"
            raise ValueError(f"in the recipe, for task {self.task} loss.name must be {advice}, not {self.loss.name}")
        data = self.data
        if self.task == "detection" and (data.group_column or data.num_folds or data.sampling != "shuffle"):
            keys = "data.group_column, data.num_folds and data.sampling"
            raise ValueError(f"in the recipe, {keys} are for classification: unset them")
        if self.task == "multilabel" and (self.augment.mixup or self.augment.cutmix):
            raise ValueError("in the recipe, augment.mixup and augment.cutmix need one label per image: set them to 0")
        if self.task != "detection" and self.detection != DetectionConfig():
            raise ValueError("in the recipe, detection needs task: detection")
        if self.detection.head != "rcnn" and self.regions != RegionsConfig():
            raise ValueError("in the recipe, regions needs detection.head: rcnn")
        padding, region = self.regions.context_padding, min(self.size.sizes or (224,))
        if self.detection.head == "rcnn" and 4 * padding > region:
            raise ValueError(
                f"in the recipe, regions.context_padding must leave at least half of the region to the box, not "
                f"{padding} of {region} pixels"
            )

    @property
    def split_seed(self) -> int:
        """The seed that selects the validation images."""
        return self.seed if self.data.split_seed is None else self.data.split_seed

    @property
    def eval_size(self) -> int:
        """The image size for validation, testing and prediction, in pixels."""
        return self.size.eval or (self.size.sizes or (224,))[-1]

    @property
    def stored_size(self) -> int:
        """The size at which images are kept in memory, in pixels: the largest that is used."""
        return max(*self.size.sizes, self.eval_size)

    def to_yaml(self) -> str:
        """Return all values as YAML, which `read_recipe` reads back to an equal recipe."""
        return yaml.safe_dump(asdict(self), sort_keys=False)
