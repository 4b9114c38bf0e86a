"""Name what is on pictures with PyTorch; needs torch, numpy and Pillow.

Run: python predict_torch.py PICTURE...
"""

import json
import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps

HERE = Path(__file__).resolve().parent
ABOUT = json.loads((HERE / "model.json").read_text())
GIVEN, CLASSES = ABOUT["input"], ABOUT["output"]["classes"]


def pixels(file: str) -> np.ndarray:
    """A picture as the network takes it: uint8 (1, channels, height, width), not normalised."""
    picture = ImageOps.exif_transpose(Image.open(file)).convert(GIVEN["colours"])
    if GIVEN["fit"] == "crop":
        side = max(1, round(min(picture.size) * GIVEN["crop_share"]))
        left, top = (picture.width - side) // 2, (picture.height - side) // 2
        picture = picture.crop((left, top, left + side, top + side))
    picture = picture.resize((GIVEN["size"], GIVEN["size"]), Image.Resampling[GIVEN["interpolation"].upper()])
    array = np.asarray(picture).reshape(GIVEN["size"], GIVEN["size"], GIVEN["channels"])
    return np.ascontiguousarray(array.transpose(2, 0, 1)[np.newaxis])


network = torch.export.load(HERE / ABOUT["engines"]["torch"]["files"][0]).module()
for name in sys.argv[1:]:
    with torch.inference_mode():
        answer = network(torch.from_numpy(pixels(name)))[0].numpy()
    if ABOUT["output"]["kind"] == "logits":
        answer = np.exp(answer - answer.max()) / np.exp(answer - answer.max()).sum()
    print(f"{name}: {CLASSES[int(answer.argmax())]} {answer.max():.3f}")
