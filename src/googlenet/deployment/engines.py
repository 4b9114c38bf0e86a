"""An exported folder opened in one of its engines: raw pixels in, logits out."""

import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import nearest
from .choice import quickest
from .description import Description, check_files, read_description
from .engine import Engine
from .formats import FORMATS, needed

ENGINES = ("torch", "onnxruntime", "openvino", "ncnn")
INT8 = ":int8"
# A folder's int8 files were asked for, so they are what answers, unless float32 is asked for.
FLOAT32 = ":float32"

# Asked about a batch, a session of an engine gives float32 (n, classes) back.
Session = Callable[[Tensor], Tensor]


class OpenedEngine:
    """An exported network in an engine; see `Engine`. `key` is its entry in the description's `files`."""

    def __init__(self, key: str, description: Description, session: Session):
        self.name = key.partition(":")[0]
        self.key, self.description, self.session = key, description, session
        self.preprocess, self.classes = description.preprocess, description.classes

    def __call__(self, pixels: Tensor) -> Tensor:
        """uint8 (n, channels, h, w) -> logits float32 (n, classes), logarithms where the file has softmax inside.

        ValueError for pixels of another kind or size than the file takes.
        """
        about = self.description
        size, least = about.preprocess.size, about.min_size
        if pixels.dtype != torch.uint8 or pixels.ndim != 4 or pixels.shape[1] != about.preprocess.channels:
            raise ValueError(
                f"expected uint8 pixels (n, {about.preprocess.channels}, height, width), got {pixels.dtype} "
                f"{tuple(pixels.shape)}"
            )
        height, width = pixels.shape[2:]
        if about.any_size and min(height, width) < least:
            raise ValueError(f"the input is {height}x{width} pixels; this network needs at least {least}x{least}")
        if not about.any_size and (height, width) != (size, size):
            raise ValueError(f"the input is {height}x{width} pixels; this file takes {size}x{size}")
        answer = self.session(pixels.contiguous())
        return answer.clamp_min(torch.finfo(torch.float32).tiny).log() if about.softmax else answer


def open_engine(folder: Path | str, name: str = "auto", threads: int | None = None) -> Engine:
    """Open an exported folder.

    `name` is torch, onnxruntime, openvino or ncnn; ``auto`` measures once on this machine which is the quickest, and
    remembers. Of an engine with an int8 file that file answers; ``openvino:float32`` and ``openvino:int8`` say which.
    `threads` are those that compute (for torch, those of the whole process); all cores where unset. The engine may be
    called from several threads at once. ValueError, in one line, for a folder that is not an exported one or is
    damaged, an engine that it has no file for, and one that is not installed.
    """
    folder = Path(folder)
    description = read_description(folder)
    if threads is not None and threads < 1:
        raise ValueError(f"threads must be 1 or more, not {threads}")
    if name == "auto":
        return quickest(folder, description, threads, lambda key: open_engine(folder, key, threads))
    key = chosen_key(name, tuple(description.files), folder)
    paths = check_files(folder, description, key)
    return OpenedEngine(key, description, SESSIONS[key.partition(":")[0]](paths, threads))


def chosen_key(name: str, there: Sequence[str], folder: Path) -> str:
    """The entry of the description that `name` asks for."""
    engine, _, precision = name.partition(":")
    if engine not in ENGINES or precision not in ("", "int8", "float32"):
        raise ValueError(
            f"no engine is called {name!r}{nearest(name, ENGINES)}; there are {', '.join(ENGINES)}, auto"
        )
    wanted = [engine + INT8, engine] if not precision else [engine + INT8 if precision == "int8" else engine]
    for key in wanted:
        if key in there:
            return key
    formats = [format for format, entry in FORMATS.items() if entry.engine == engine]
    how = f"--to {formats[0]}" + (" --int8" if precision == "int8" else "")
    raise ValueError(f"{folder}: has no file for {name}, but for {', '.join(there)}; export with {how}")


def torch_session(paths: Sequence[Path], threads: int | None) -> Session:
    """The archive that torch.export wrote."""
    if threads:
        torch.set_num_threads(threads)
    model = torch.export.load(paths[0]).module()

    def answer(pixels: Tensor) -> Tensor:
        with torch.inference_mode():
            found: Tensor = model(pixels)
        return found

    return answer


def onnxruntime_session(paths: Sequence[Path], threads: int | None) -> Session:
    """ONNX Runtime on the CPU."""
    onnxruntime = needed("onnxruntime")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or 0
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(paths[0], options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name

    def answer(pixels: Tensor) -> Tensor:
        return torch.from_numpy(session.run(None, {name: pixels.numpy()})[0])

    return answer


def openvino_session(paths: Sequence[Path], threads: int | None) -> Session:
    """OpenVINO on the CPU, in float32 where the file is: it would else take bfloat16 where the processor has it."""
    openvino = needed("openvino")
    settings: dict[str, Any] = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32"}
    if threads:
        settings["INFERENCE_NUM_THREADS"] = threads
    compiled = openvino.Core().compile_model(paths[0], "CPU", settings)
    own = threading.local()

    def answer(pixels: Tensor) -> Tensor:
        if not hasattr(own, "request"):
            own.request = compiled.create_infer_request()
        found = own.request.infer([pixels.numpy()], share_inputs=True)
        return torch.from_numpy(np.array(found[0]))

    return answer


def ncnn_session(paths: Sequence[Path], threads: int | None) -> Session:
    """ncnn, one picture after the other, in float32."""
    ncnn = needed("ncnn")
    net = ncnn.Net()
    net.opt.use_vulkan_compute = False
    for choice in ("fp16_packed", "fp16_storage", "fp16_arithmetic", "bf16_packed", "bf16_storage"):
        if hasattr(net.opt, f"use_{choice}"):
            setattr(net.opt, f"use_{choice}", False)
    if threads:
        net.opt.num_threads = threads
    if net.load_param(str(paths[0])) or net.load_model(str(paths[1])):
        raise ValueError(f"{paths[0]}: ncnn cannot read it; export again")
    (source,), (sink,) = net.input_names(), net.output_names()

    def one(picture: Tensor) -> Tensor:
        with net.create_extractor() as extractor:
            # ncnn does not keep what it looks at: the array has a name until a copy of ncnn's own is made, whose
            # channels start at multiples of 16 bytes, as NumPy's do not.
            array = picture.float().numpy()
            extractor.input(source, ncnn.Mat(array).clone())
            return torch.from_numpy(np.array(extractor.extract(sink)[1]))

    return lambda pixels: torch.stack([one(picture) for picture in pixels])


SESSIONS: dict[str, Callable[[Sequence[Path], int | None], Session]] = {
    "torch": torch_session,
    "onnxruntime": onnxruntime_session,
    "openvino": openvino_session,
    "ncnn": ncnn_session,
}
