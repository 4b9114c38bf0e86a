"""FID of each class of two labeled sets, and their mean."""

from typing import Any

import torch
from torch import Tensor

from .images import ImageSet
from .statistics import frechet_distance, frechet_distance_of_features, moments_of_blocks

MIN_IMAGES = 2


def fid_by_class(real: tuple[ImageSet, Tensor], fake: tuple[ImageSet, Tensor]) -> dict[str, Any]:
    """Return the FID and the numbers of images of each class, by name, and the mean of the distances.

    Images and features (n, d) of each set; classes are matched by name. ValueError for sets without labels or without
    a common class of two or more images each.
    """
    groups = [_rows_by_class(images) for images, _ in (real, fake)]
    classes, missing = {}, []
    for name in sorted(groups[0].keys() | groups[1].keys()):
        rows = [group.get(name, torch.empty(0, dtype=torch.int64)) for group in groups]
        if min(map(len, rows)) < MIN_IMAGES:
            missing.append(name)
            continue
        value = _distance(real[1][rows[0]], fake[1][rows[1]])
        classes[name] = {"fid": value, "real": len(rows[0]), "generated": len(rows[1])}
    if not classes:
        names = (", ".join(list(group)[:3]) for group in groups)
        raise ValueError(f"no class has {MIN_IMAGES} images in both sets; the classes are {' and '.join(names)}")
    mean = sum(row["fid"] for row in classes.values()) / len(classes)
    return {"by_class": classes, "mean_fid_of_classes": mean, "classes_left_out": missing}


def _rows_by_class(images: ImageSet) -> dict[str, Tensor]:
    if images.labels is None:
        raise ValueError(f"{images.name}: no labels; --by-class needs a folder per class, or a labeled data source")
    return {name: (images.labels == index).nonzero().flatten() for index, name in enumerate(images.classes)}


def _distance(real: Tensor, fake: Tensor) -> float:
    """Return the distance, by the method that is faster for these numbers of images."""
    if min(len(real), len(fake)) < real.shape[1] // 2:
        return frechet_distance_of_features(real, fake)
    return frechet_distance(moments_of_blocks(real).gaussian(), moments_of_blocks(fake).gaussian())
