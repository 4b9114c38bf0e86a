"""The backends that a network can be exported to: each is a module with the functions of `BackendModule`.

A new one is a module and a line in `BACKENDS`, and its packages in pyproject's extra `export`. Modules are imported
when they are first needed.
"""

import importlib
import importlib.util
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, cast

if TYPE_CHECKING:
    from torch import Tensor

    from ..detector import ExportableDetector
    from ..spec import ExportSpec

# Run an opened file: the input tensor to all outputs, on the CPU.
Session = Callable[["Tensor"], tuple["Tensor", ...]]


class BackendModule(Protocol):
    """The functions of a backend's module, of which only those of its capabilities are called.

    `write` and `write_detector` (capability `detection`) write files into a folder and return their names, the one to
    open first; so does `quantize` (capability `int8`), which makes int8 files of the float32 ones in the folder from
    calibration inputs uint8, and keeps layers, named as by `quantize.layer_of`, in float32; of a detector (layers None)
    only what is between the pixels and the last convolutions becomes int8.
    `open`
    opens files with a number of threads (None: all cores) and the precision of the computation: "float32", or one that
    `precisions` (capability `reduced`) lists for this machine. `EXAMPLE` is the code of the example: it opens FILES
    and defines ``run(images) -> outputs``; numpy is imported as np.
    """

    EXAMPLE: str
    write: Callable[["ExportSpec", Path], list[str]]
    write_detector: Callable[["ExportableDetector", Path], list[str]]
    open: Callable[[Sequence[Path], int | None, str], Session]
    precisions: Callable[[], list[str]]
    quantize: Callable[[Path, Sequence["Tensor"], Sequence[str] | None], list[str]]


class Backend(NamedTuple):
    """A backend.

    `engine` names the engine, the package that runs it and the module in this package; `title` is the product's name,
    `suffix` that of the main file. Capabilities: `int8` (it can quantize), `detection` (it can export detectors),
    `fast` (``--engine auto`` tries it for a run, which is exported for that), `reduced` (it can compute in bfloat16 or
    float16), `features` (a file can return the last feature map), `safe` (opening a file cannot run code in it).
    """

    engine: str
    title: str
    suffix: str
    int8: bool = False
    detection: bool = False
    fast: bool = False
    reduced: bool = False
    features: bool = True
    safe: bool = True

    @property
    def module(self) -> BackendModule:
        """Import the backend's module."""
        return cast(BackendModule, importlib.import_module(f"{__name__}.{self.engine}"))


# By the name of ``--format``, in the order of writing: OpenVINO's files are made from the ONNX file.
BACKENDS: dict[str, Backend] = {
    "onnx": Backend("onnxruntime", "ONNX Runtime", ".onnx", int8=True, detection=True, fast=True),
    "openvino": Backend("openvino", "OpenVINO", ".xml", int8=True, detection=True, fast=True, reduced=True),
    "ncnn": Backend("ncnn", "ncnn", ".param", features=False),
    "torch": Backend("torch", "PyTorch", ".pt2", safe=False),
}


def formats_with(capability: str) -> list[str]:
    """Return the formats whose backends have a capability, such as int8 or detection."""
    return [name for name, backend in BACKENDS.items() if getattr(backend, capability)]


def engine_names() -> list[str]:
    """Return the names of the engines."""
    return [backend.engine for backend in BACKENDS.values()]


def format_of(engine: str) -> str:
    """Return the format that an engine reads."""
    return next(name for name, backend in BACKENDS.items() if backend.engine == engine)


def import_optional(package: str, *more: str) -> Any:
    """Import `package`; ValueError that names what to install if it or one of `more` is missing."""
    for name in (package, *more):
        if importlib.util.find_spec(name) is None:
            raise ValueError(f"{name} is not installed: pip install 'googlenet[export]'")
    return importlib.import_module(package)
