"""Name what is on pictures with ncnn; needs ncnn, numpy and Pillow.

Run: python predict_ncnn.py PICTURE...
"""

import json
import sys
from pathlib import Path

import ncnn
import numpy as np
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


net = ncnn.Net()
net.opt.use_fp16_packed = net.opt.use_fp16_storage = net.opt.use_fp16_arithmetic = False
PARAM, WEIGHTS = ABOUT["engines"]["ncnn"]["files"]
net.load_param(str(HERE / PARAM))
net.load_model(str(HERE / WEIGHTS))
for name in sys.argv[1:]:
    extractor = net.create_extractor()
    array = pixels(name)[0].astype(np.float32)  # named, so that it lives until ncnn has its copy
    extractor.input(net.input_names()[0], ncnn.Mat(array).clone())
    answer = np.array(extractor.extract(net.output_names()[0])[1])
    if ABOUT["output"]["kind"] == "logits":
        answer = np.exp(answer - answer.max()) / np.exp(answer - answer.max()).sum()
    print(f"{name}: {CLASSES[int(answer.argmax())]} {answer.max():.3f}")
