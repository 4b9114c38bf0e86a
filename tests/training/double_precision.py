"""``googlenet train`` in double precision: rounding then neither makes a difference between two runs nor hides one.

Twenty steps of a network with batch normalization amplify the last bits of float32 to whole weights.
"""

import torch

from googlenet.cli.main import run
from googlenet.data.preprocess import Preprocess

torch.set_default_dtype(torch.float64)
normalize = Preprocess.normalize
Preprocess.normalize = lambda self, pixels: normalize(self, pixels.double())
run()
