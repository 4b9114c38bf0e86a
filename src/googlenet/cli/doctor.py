"""``googlenet doctor``: report what this installation can use."""

import platform
import re
from importlib import metadata
from typing import Any

from .. import __version__
from ..files import cache_folder, package_version
from .common import make_parser, print_result

# A requirement of an extra in the package's metadata, such as: onnx>=1.18; extra == 'export'
_EXTRA = re.compile(r"([\w.-]+)[^;]*;.*extra == ['\"](\w+)['\"]")
# Extras for work on this package itself.
DEVELOPMENT = ("dev", "docs")


def run(argv: list[str]) -> None:
    """Print processor, kernels, engines and extras."""
    parser = make_parser(
        "doctor", "Report CPU features, kernels, inference engines and optional packages.", "googlenet doctor --json"
    )
    args = parser.parse_args(argv)

    from ..devices import cpu_features

    document = {
        "version": __version__,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "cpu": cpu_features(),
        "torch": describe_torch(),
        "kernels": describe_kernels(),
        "engines": describe_engines(),
        "extras": describe_extras(),
        "cache": str(cache_folder()),
    }
    print_result(args.json, document, format_lines(document))


def describe_torch() -> dict[str, Any]:
    """Return PyTorch's version, its threads, and the device and precision that ``auto`` selects."""
    import torch

    from ..devices import pick_device, pick_precision

    device = pick_device("auto")
    gpu = torch.cuda.get_device_name() if device.type == "cuda" else None
    return {
        "version": torch.__version__, "threads": torch.get_num_threads(), "device": device.type, "gpu": gpu,
        "precision": pick_precision("auto", device),
    }  # fmt: skip


def describe_kernels() -> dict[str, Any]:
    """Return the kernels' level and library (None without), and what to do to have them."""
    from ..kernels.build import ENV_VARIABLE, get_kernel_level, load_kernels
    from ..kernels.levels import prebuilt_library

    level, library = get_kernel_level(), load_kernels()
    if level is None:
        advice: str | None = f"turned off by {ENV_VARIABLE}=0"
    elif library is None:
        advice = "install a C compiler with OpenMP, such as gcc: training on the CPU is slower without the kernels"
    else:
        advice = None
    return {
        "level": level, "library": library and library._name,
        "prebuilt": bool(library and level and library._name == str(prebuilt_library(level))), "advice": advice,
    }  # fmt: skip


def describe_engines() -> list[dict[str, Any]]:
    """Return each inference engine with its version (None: not installed) and the precisions that it can compute in."""
    from ..export.backends import BACKENDS
    from ..export.engine import supported_precisions

    engines = []
    for backend in BACKENDS.values():
        version = package_version(backend.engine)
        precisions = supported_precisions(backend.engine) if version else []
        engines.append({"name": backend.engine, "version": version, "precisions": list(precisions)})
    return engines


def describe_extras() -> dict[str, dict[str, str | None]]:
    """Return the packages of each optional extra with their versions (None: not installed)."""
    try:
        requirements = metadata.requires("googlenet") or []
    except metadata.PackageNotFoundError:  # a source folder on the path
        requirements = []
    extras: dict[str, dict[str, str | None]] = {}
    for requirement in requirements:
        match = _EXTRA.match(requirement)
        if match and match[2] not in DEVELOPMENT:
            extras.setdefault(match[2], {})[match[1]] = package_version(match[1])
    return extras


def format_lines(document: dict[str, Any]) -> list[str]:
    """Format the report as text."""
    cpu, torch, kernels = document["cpu"], document["torch"], document["kernels"]
    lines = [
        f"googlenet {document['version']}, Python {document['python']}, {document['system']}",
        f"processor: {cpu['model']}, {cpu['cores']} cores: {', '.join(cpu['features']) or 'no known features'}",
        f"PyTorch {torch['version']}: {torch['gpu'] or torch['device']}, {torch['threads']} threads, "
        f"precision auto is {torch['precision']}",
    ]
    source = "prebuilt" if kernels["prebuilt"] else "compiled"
    installed = f"{kernels['level']}, {source}"
    lines.append(f"fast kernels: {kernels['advice'] or installed}")
    for engine in document["engines"]:
        state = f"{engine['version']} ({', '.join(engine['precisions'])})" if engine["version"] else "not installed"
        lines.append(f"engine {engine['name']}: {state}")
    for extra, packages in document["extras"].items():
        missing = [name for name, version in packages.items() if version is None]
        advice = f"missing {', '.join(missing)}: pip install 'googlenet[{extra}]'"
        lines.append(f"extra {extra}: {advice if missing else 'installed'}")
    return [*lines, f"cache: {document['cache']}"]
