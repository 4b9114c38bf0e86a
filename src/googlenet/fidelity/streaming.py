"""FID in a training loop: images are added batch by batch, by one process or several."""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from .compare import Comparer, Source, make_settings
from .statistics import Moments, empty_moments, frechet_distance, merge_moments, moments_of

SIDES = ("real", "fake")


class FID:
    """Frechet Inception Distance of images that are added with `update`.

    Only sums are kept: memory does not grow with the number of images. `real` may name a set (a folder or an .npz file)
    to compare with; `reset` keeps it. With several processes (torch.distributed) each adds its own images, and
    `compute` returns the value of all images in every process. `options` are those of `googlenet.fid`.
    """

    def __init__(self, real: Source | None = None, **options: Any):
        self.comparer = Comparer(make_settings(**options))
        self.reference = None if real is None else self.comparer.read(real).gaussian
        self.moments: dict[str, Moments] = {}

    def update(self, images: Tensor, real: bool = False) -> None:
        """Add a batch of images (n, channels, h, w), uint8, or float with the option `max_value`: generated or real."""
        if real and self.reference is not None:
            raise ValueError("the real images are those given as real=...; create FID() without it to add others")
        network = self.comparer.network_in_engine()
        features = torch.cat([network.compute(pixels) for pixels in self.comparer.prepared([images])])
        side = "real" if real else "fake"
        self.moments[side] = merge_moments(self._moments(side, features.shape[1]), moments_of(features))

    def compute(self) -> float:
        """Return the distance of all images so far, of all processes; ValueError unless both sets have 2 or more."""
        moments = {side: _merge_processes(self.moments.get(side)) for side in SIDES}
        missing = [side for side in SIDES if moments[side] is None and not (side == "real" and self.reference)]
        if missing:
            raise ValueError(f"no {' and no '.join(missing)} images: add them with update(images, real=...)")
        real, fake = moments["real"], moments["fake"]
        assert fake is not None
        reference = self.reference if real is None else real.gaussian()
        assert reference is not None
        return frechet_distance(reference, fake.gaussian())

    def reset(self, keep_real: bool = True) -> None:
        """Forget the generated images, and with ``keep_real=False`` also the real ones that were added."""
        self.moments = {side: value for side, value in self.moments.items() if side == "real" and keep_real}

    def merge(self, other: "FID") -> None:
        """Add the images of another instance; ValueError if it has another network or other settings."""
        if other.comparer.record != self.comparer.record:
            raise ValueError("the other FID has another network or other settings: their features differ")
        for side, moments in other.moments.items():
            self.moments[side] = merge_moments(self._moments(side, len(moments.mean)), moments)

    def state_dict(self) -> dict[str, Any]:
        """Return the sums of this process as tensors, to save and `load_state_dict` later."""
        return {
            "network": self.comparer.record.digest,
            "like": self.comparer.record.like,
            **{side: moments._asdict() for side, moments in self.moments.items()},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict`; ValueError if it is of another network or mode."""
        own = self.comparer.record
        if (state["network"], state["like"]) != (own.digest, own.like):
            raise ValueError("the saved state is of another network or another mode (like)")
        self.moments = {side: Moments(**state[side]) for side in SIDES if side in state}

    def _moments(self, side: str, size: int) -> Moments:
        return self.moments.get(side, empty_moments(size))


def _merge_processes(own: Moments | None) -> Moments | None:
    """Return the moments of the images of all processes, in the order of their ranks."""
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return own
    gathered: list[Moments | None] = [None] * dist.get_world_size()
    dist.all_gather_object(gathered, own)
    total = None
    for moments in gathered:
        if moments is not None:
            total = moments if total is None else merge_moments(total, moments)
    return total
