"""A class activation map as pictures: what the network saw, and the map's colours over it."""

import base64
import io
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

SIDE = 448  # pixels of the pictures that are sent, at least: small ones are enlarged by a whole number
STRENGTH = 0.75  # of the map's colours where it is highest


def draw(pixels: Tensor, values: Tensor) -> dict[str, Any]:
    """Pixels 0..255 (channels, h, w) and a map (h', w') -> data URLs of PNG files of one size.

    ``picture`` is what the network saw; ``heat`` the map alone, from clear at its lowest to opaque at its highest;
    ``overlay`` is both. A map that is the same everywhere is clear.
    """
    height, width = pixels.shape[-2:]
    factor = max(1, -(-SIDE // max(height, width)))
    side = (width * factor, height * factor)
    rows = pixels.round().clamp(0, 255).to(torch.uint8).permute(1, 2, 0).numpy()
    plain = Image.fromarray(rows[..., 0] if rows.shape[-1] == 1 else rows).convert("RGB")
    plain = plain.resize(side, Image.Resampling.NEAREST)
    heat = _coloured(values, side)
    both = Image.alpha_composite(plain.convert("RGBA"), heat).convert("RGB")
    return {"picture": data_url(plain), "heat": data_url(heat), "overlay": data_url(both)}


def data_url(picture: Image.Image) -> str:
    """A PNG in base64."""
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def png_of(url: str) -> bytes:
    """The inverse of `data_url`, to the file's bytes."""
    return base64.b64decode(url.partition(",")[2])


def _coloured(values: Tensor, side: tuple[int, int]) -> Image.Image:
    from matplotlib import colormaps

    lowest, highest = float(values.min()), float(values.max())
    small = Image.fromarray(((values - lowest) / max(highest - lowest, 1e-12)).float().numpy())
    smooth = np.asarray(small.resize(side, Image.Resampling.BICUBIC)).clip(0, 1)
    colours = (colormaps["inferno"](smooth) * 255).astype(np.uint8)
    colours[..., 3] = (smooth * STRENGTH * 255).astype(np.uint8)
    return Image.fromarray(colours)
