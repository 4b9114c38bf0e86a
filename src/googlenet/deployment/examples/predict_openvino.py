"""Name what is on pictures with OpenVINO; needs openvino, numpy and Pillow.

Run: python predict_openvino.py PICTURE...
"""

import json
import sys
from pathlib import Path

import numpy as np
import openvino
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


FILE = ABOUT["engines"]["openvino"]["files"][0]  # or of "openvino:int8", where it was exported
network = openvino.Core().compile_model(HERE / FILE, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
for name in sys.argv[1:]:
    answer = network([pixels(name)])[0][0]
    if ABOUT["output"]["kind"] == "logits":
        answer = np.exp(answer - answer.max()) / np.exp(answer - answer.max()).sum()
    print(f"{name}: {CLASSES[int(answer.argmax())]} {answer.max():.3f}")
