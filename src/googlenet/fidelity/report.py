"""A report in HTML: the values, and the worst generated images with their nearest real images."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..evaluation.report import GalleryItem, Section, Tile, render
from .images import ImageSet, thumbnail
from .metrics import PRECISION_NEIGHBORS, distance_blocks, neighbor_distances
from .statistics import BLOCK_ROWS

NUM_WORST, NUM_NEIGHBORS = 16, 5


class Realism(NamedTuple):
    """The realism of generated images (n,), and the nearest real ones: indices and distances (n, neighbors)."""

    scores: Tensor
    neighbors: Tensor
    distances: Tensor


def realism_of(real: Tensor, fake: Tensor) -> Realism:
    """Return the realism score of each generated image ("Improved Precision and Recall ...", 2019, section 5).

    The largest ratio of the radius of a real image's neighborhood to the distance from it; below 1 the image is
    outside of all. As in the paper, the half of the real images with the larger neighborhoods is left out. Features are
    (n, d) and (m, d).
    """
    center = real[:BLOCK_ROWS].double().mean(0)
    radius = neighbor_distances(real, PRECISION_NEIGHBORS, center)[:, -1]
    radius = torch.where(radius <= radius.median(), radius, 0.0)
    scores, neighbors, nearest = [], [], []
    for _, distances in distance_blocks(fake, real, center):
        scores.append((radius / distances.clamp_min(torch.finfo(torch.float64).tiny)).amax(1))
        closest = distances.topk(min(NUM_NEIGHBORS, len(real)), largest=False)
        neighbors.append(closest.indices)
        nearest.append(closest.values)
    return Realism(torch.cat(scores), torch.cat(neighbors), torch.cat(nearest))


def render_report(
    title: str, values: Sequence[tuple[str, str]], lines: Sequence[str], real: tuple[ImageSet, Tensor],
    fake: tuple[ImageSet, Tensor],
) -> str:  # fmt: skip
    """Return a page with `values` (label, text), `lines` of notes, and the images with the lowest realism."""
    realism = realism_of(real[1], fake[1])
    worst = realism.scores.argsort(stable=True)[:NUM_WORST].tolist()
    sections = [Section("Notes", "", render("definitions.html", values={str(i + 1): x for i, x in enumerate(lines)}))]
    for index in worst:
        items = [GalleryItem(thumbnail(fake[0], index), "generated", "", fake[0].names[index])]
        for row, distance in zip(realism.neighbors[index].tolist(), realism.distances[index].tolist(), strict=True):
            items.append(
                GalleryItem(thumbnail(real[0], row), "real", f" at distance {distance:.3g}", real[0].names[row])
            )
        score = f"realism {realism.scores[index]:.3f}; below 1 is outside of the neighborhoods of the real images"
        sections.append(Section(fake[0].names[index].rpartition("/")[2], score, render("gallery.html", items=items)))
    subtitle: Any = f"The {len(worst)} generated images with the lowest realism, each with the nearest real images."
    tiles = [Tile(text, label) for label, text in values]
    return str(render("page.html", title=title, subtitle=subtitle, tiles=tiles, sections=sections))
