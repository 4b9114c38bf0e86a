"""Analyses of a trained network: what it sees in images, and what its parts contribute.

A new analysis is a module with ``run(context) -> AnalysisResult`` and a line in `ANALYSES`.
"""

import importlib
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from .context import AnalysisResult, ExplainContext


class Analysis(NamedTuple):
    """An analysis: the module of this package whose ``run`` executes it, and a line of help.

    `needs_image` says whether it analyzes given images, `single_label` whether it needs a network of one label per
    image, because it measures accuracies.
    """

    module: str
    help: str
    needs_image: bool = False
    single_label: bool = False


ANALYSES: dict[str, Analysis] = {
    "cam": Analysis("cam", "class activation maps: the contribution of each position to a class's logit", True),
    "gradcam": Analysis("gradcam", "Grad-CAM and activation x gradient at every stage", True),
    "sizes": Analysis("size_sweep", "class probabilities of an image at several sizes", True),
    "filters": Analysis("gabor", "the filters of the first layer, and the closest Gabor functions"),
    "branches": Analysis(
        "branch_ablation", "the share of each branch of each block, and the accuracy without it", single_label=True
    ),
    "probes": Analysis(
        "linear_probes", "accuracy by depth: auxiliary heads, and a linear probe on each layer", single_label=True
    ),
    "gradients": Analysis(
        "gradient_norms",
        "gradients by depth of untrained networks with and without auxiliary heads",
        single_label=True,
    ),
    "units": Analysis("unit_correlation", "correlations of a layer's units, clustered"),
}


def run_analysis(name: str, context: "ExplainContext") -> "AnalysisResult":
    """Run the analysis `name`."""
    result: AnalysisResult = importlib.import_module(f".{ANALYSES[name].module}", __name__).run(context)
    return result
