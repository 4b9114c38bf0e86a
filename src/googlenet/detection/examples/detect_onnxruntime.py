"""Find the objects on a picture with ONNX Runtime: python detect_onnxruntime.py picture.jpg

Needs onnxruntime, numpy and Pillow. The file takes raw 8-bit pixels (channels, height, width) of any size.
"""

import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime
from PIL import Image

session = onnxruntime.InferenceSession(str(Path(__file__).with_name("detector.onnx")))
classes = json.loads(session.get_modelmeta().custom_metadata_map["classes"])
channels = session.get_inputs()[0].shape[0]
picture = Image.open(sys.argv[1]).convert("L" if channels == 1 else "RGB")
pixels = np.asarray(picture).reshape(picture.height, picture.width, channels).transpose(2, 0, 1)
boxes, scores, labels = session.run(None, {"pixels": np.ascontiguousarray(pixels)})
found = [
    {"xyxy": box, "label": classes[label], "score": score}
    for box, score, label in zip(boxes.tolist(), scores.tolist(), labels.tolist(), strict=True)
]
print(json.dumps(found, indent=2))
