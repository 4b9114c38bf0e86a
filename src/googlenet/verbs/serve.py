"""``googlenet serve``: networks behind HTTP, and a page to try them."""

import argparse
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from .asked_run import add_engine, asked_run
from .command import verb_parser

if TYPE_CHECKING:
    from ..deployment.serving.gate import Gate
    from ..deployment.serving.limits import Limits
    from ..deployment.serving.models import Opened

KEY = "GOOGLENET_API_KEY"
LOOPBACK = ("127.0.0.1", "localhost", "::1")


def serve(argv: list[str]) -> None:
    """Answer over HTTP, with a page to try it."""
    parser = verb_parser(
        "serve",
        "Answer over HTTP: POST /v1/predict and /v1/explain, the Open Inference Protocol at /v2, a page at /.\n"
        "Stop it with Ctrl-C or SIGTERM: what has been asked is answered first.",
        "googlenet serve runs/demo small=runs/small --port 8000",
    )
    parser.add_argument(
        "run",
        nargs="+",
        metavar="[NAME=]RUN",
        help="a run or exported folder, or a .safetensors file; the first answers where none is named",
    )
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: this machine only)")
    parser.add_argument("--port", type=int, default=8000, help="0 takes a free one and prints it (default 8000)")
    add_engine(parser)
    parser.add_argument("--max-batch", type=int, default=32, help="pictures computed together at most (default 32)")
    parser.add_argument(
        "--max-wait", type=float, default=5, metavar="MS", help="milliseconds to wait for more (default 5)"
    )
    parser.add_argument(
        "--queue", type=int, default=256, help="pictures accepted and not yet answered; more: 429 (default 256)"
    )
    parser.add_argument(
        "--max-pixels", type=int, default=25_000_000, help="of a picture before it is decoded (default 25000000)"
    )
    parser.add_argument("--max-bytes", type=int, default=20_000_000, help="of a request (default 20000000)")
    parser.add_argument("--timeout", type=float, default=30, metavar="S", help="seconds to an answer (default 30)")
    parser.add_argument("--api-key-file", metavar="FILE", help=f"a file that holds the key to ask for (or set {KEY})")
    parser.add_argument(
        "--watch",
        type=float,
        default=1,
        metavar="S",
        help="seconds between looks for a new version; 0: none (default 1)",
    )
    parser.add_argument(
        "--replicas", type=_replicas, metavar="N or A:B", help="processes under Ray Serve, A to B of them as needed"
    )
    args = parser.parse_args(argv)
    if not 0 <= args.port < 65_536:
        parser.error("--port must be 0 to 65535")
    for name in ("max_batch", "queue", "max_pixels", "max_bytes", "timeout"):
        if not getattr(args, name) > 0:
            parser.error(f"--{name.replace('_', '-')} must be above 0")
    if not args.max_wait >= 0 or not args.watch >= 0 or (args.threads is not None and args.threads < 1):
        parser.error("--max-wait and --watch must be 0 or more, --threads 1 or more")
    # The network's threads share the cores with those that decode and listen: waiting, they must not spin. It is read
    # once, when PyTorch is loaded.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    places = _places(parser, args.run)
    key = _key(args)

    threads = args.threads or os.cpu_count() or 1
    try:
        from ..deployment.serving.limits import Limits
        from ..deployment.serving.server import address_of, listen
        from ..deployment.serving.server import serve as answer
    except ModuleNotFoundError as error:
        raise ValueError(f"{error.name} is not installed; serving needs pip install 'googlenet[serve]'") from None

    limits = Limits(
        max_batch=args.max_batch,
        max_wait=args.max_wait / 1000,
        queue=args.queue,
        max_pixels=args.max_pixels,
        max_bytes=args.max_bytes,
        timeout=args.timeout,
    )
    plan = Plan(places, args.engine, args.threads, threads, limits, key, args.watch)
    bound = listen(args.host, args.port)
    url = address_of(bound)
    if key is None and args.host not in LOOPBACK:
        print(f"no key is asked for, and {args.host} may be reached by others: see --api-key-file", file=sys.stderr)

    def started() -> None:
        text = json.dumps({"url": url, "models": list(places)}) if args.json else f"{', '.join(places)} at {url}"
        print(text, flush=True)

    if args.replicas:
        host, port = bound.getsockname()[:2]
        bound.close()
        _under_ray(plan, args.replicas, host, port, started)
    else:
        answer(gate_of(plan), bound, started)


class Plan(NamedTuple):
    """What is served and how: names and places, the engine asked for and its threads, `threads` to compute with."""

    places: dict[str, str]
    engine: str | None
    engine_threads: int | None
    threads: int
    limits: "Limits"
    key: str | None
    watch: float


def gate_of(plan: Plan) -> "Gate":
    """The application, its networks read."""
    import logging

    from .. import __version__
    from ..deployment.serving.app import build_app
    from ..deployment.serving.metrics import Metrics
    from ..deployment.serving.models import Models
    from ..deployment.serving.service import Service

    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(message)s", stream=sys.stderr)
    logging.getLogger("googlenet.serve").setLevel(logging.INFO)
    metrics = Metrics()
    models = Models(plan.places, lambda place: open_run(place, plan.engine, plan.engine_threads), metrics)
    service = Service(models, plan.limits, metrics, plan.threads)
    return build_app(service, version=__version__, key=plan.key, watch=plan.watch)


def _under_ray(plan: Plan, replicas: tuple[int, int], host: str, port: int, started: Callable[[], None]) -> None:
    """The same in replicas, until a signal says to stop."""
    import signal

    from ..deployment.ray_serving import Replicas, ray_application, run_under_ray

    signals = {signal.SIGINT, signal.SIGTERM}
    application = ray_application(lambda: gate_of(plan), Replicas(*replicas, plan.threads), plan.limits.queue)
    stop = run_under_ray(application, host, port)
    signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    started()
    signal.sigwait(signals)
    stop()


def open_run(place: str, engine: str | None = None, threads: int | None = None) -> "Opened":
    """A run or an exported folder, in an engine (unset: a run's own network). A run of one network can explain."""
    import torch
    from torch import Tensor

    from ..deployment.asked import Asked
    from ..deployment.description import NAME
    from ..deployment.engine import TorchEngine
    from ..deployment.serving.models import Explained, Opened
    from ..insight.cam import class_maps
    from ..models.network import Network
    from ..training.checkpoint import load

    exported = (Path(place) / NAME).is_file()
    if exported or engine is not None:
        asked = asked_run(place, engine, threads).model
        assert isinstance(asked, Asked)
        answers = asked.engine
        if exported:
            return Opened(answers, asked.min_size)
    checkpoint = load(place, task="classification")
    model, preprocess = checkpoint.model, checkpoint.preprocess
    if engine is None:
        answers = TorchEngine(model, preprocess, checkpoint.classes)
    if not isinstance(model, Network):
        return Opened(answers, model.min_size)

    def explain(pixels: Tensor, label: int | None) -> Explained:
        batch = preprocess.normalise(pixels)
        with torch.inference_mode():
            chosen = int(model(batch).argmax()) if label is None else label
            found = class_maps(model, batch, [chosen])
        return Explained(chosen, found.logits[0], found.maps[0, 0])

    return Opened(answers, model.min_size, explain)


def _places(parser: argparse.ArgumentParser, named: list[str]) -> dict[str, str]:
    """``[NAME=]RUN`` of each -> name to place, in order; a run without a name is called as its folder is."""
    places: dict[str, str] = {}
    for text in named:
        before, equals, after = text.partition("=")
        given = bool(equals) and "/" not in before and not Path(text).exists()
        place = after if given else text
        name = before if given else Path(place).absolute().name.removesuffix(".safetensors")
        if not name or not place:
            parser.error(f"{text!r} is not NAME=RUN")
        if name in places:
            parser.error(f"two runs are called {name}; name them: {name}={places[name]} other={place}")
        places[name] = place
    return places


def _replicas(text: str) -> tuple[int, int]:
    """ "2" -> (2, 2), "1:4" -> (1, 4), for an argument's type."""
    least, colon, most = text.partition(":")
    found = (int(least), int(most if colon else least)) if (least + most).isdecimal() else (0, 0)
    if not 1 <= found[0] <= found[1]:
        raise argparse.ArgumentTypeError(f"a number, or two such as 1:4, not {text!r}")
    return found


def _key(args: argparse.Namespace) -> str | None:
    """The key to ask for; None for no key."""
    key = Path(args.api_key_file).read_text().strip() if args.api_key_file else os.environ.get(KEY, "").strip()
    if args.api_key_file and not key:
        raise ValueError(f"{args.api_key_file}: empty; write the key into it")
    return key or None
