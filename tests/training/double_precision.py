"""``googlenet train`` in double precision: rounding then neither makes a difference between two runs nor hides one.

Twenty steps of a network with batch normalisation amplify the last bits of float32 to whole weights.
"""

import torch

from googlenet.cli import run
from googlenet.data.preprocess import Preprocess

torch.set_default_dtype(torch.float64)
normalise = Preprocess.normalise
Preprocess.normalise = lambda self, pixels: normalise(self, pixels.double())
run()
