"""``googlenet serve``: serve trained networks over HTTP."""

import argparse
import gc
import json
import logging
import math
import os
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING

from ..files import read_text
from ..serving.config import Limits, ServeConfig
from .common import add_engine_arguments, make_parser, positive_int

if TYPE_CHECKING:
    from ..serving.middleware import AdmissionMiddleware

API_KEY_VARIABLE = "GOOGLENET_API_KEY"
LOOPBACK = ("127.0.0.1", "localhost", "::1")


def run(argv: list[str]) -> None:
    """Serve until a shutdown signal."""
    parser = _make_parser()
    args = parser.parse_args(argv)
    if not 0 <= args.port < 65_536:
        parser.error("--port must be 0 to 65535")
    if args.timeout == 0:
        parser.error("--timeout must be greater than 0")
    # The network's threads share the cores with those that decode images and handle connections, so they must not
    # spin while they wait. OpenMP reads the variable once, when PyTorch is imported.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    # Threads that decode images must not delay those that handle connections by the 5 ms of the default.
    sys.setswitchinterval(0.0005)
    limits = Limits(**{field.name: getattr(args, field.name) for field in fields(Limits) if field.metadata})
    models, api_key = parse_model_args(parser, args.run), _read_api_key(args.api_key_file)
    hosts = tuple(host.lower() for host in args.allowed_host or ())
    if args.host in LOOPBACK:
        # Without this check, a web page could reach the server under a name that it lets point to this machine.
        hosts += LOOPBACK
    config = ServeConfig(
        models, args.engine, args.threads, limits, api_key, args.reload_interval, hosts, args.drain_seconds,
        args.access_log,
    )  # fmt: skip
    try:
        from ..serving.server import Server, listen, url_of
    except ModuleNotFoundError as error:
        raise ValueError(f"{error.name} is not installed; run: pip install 'googlenet[serve]'") from None

    listener = listen(args.host, args.port)
    url, names = url_of(listener), list(config.models)
    if config.api_key is None and args.host not in LOOPBACK:
        print(f"warning: {args.host} is reachable without an API key; see --api-key-file", file=sys.stderr)

    def on_started() -> None:
        # A collection of the imported libraries' objects would stop all threads for a third of a second.
        gc.freeze()
        print(json.dumps({"url": url, "models": names}) if args.json else f"{', '.join(names)} at {url}", flush=True)

    if args.replicas:
        host, port = listener.getsockname()[:2]
        listener.close()
        _serve_with_ray(config, args.api_key_file, args.replicas, (host, port), on_started)
    else:
        server = Server(build_app(config), on_started)
        server.run(sockets=[listener])
        if server.interrupted:
            raise KeyboardInterrupt


def build_app(config: ServeConfig) -> "AdmissionMiddleware":
    """Configure logging and build the application, in this process or in a replica."""
    from ..serving.app import build_asgi_app

    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(message)s", stream=sys.stderr)
    logging.getLogger("googlenet.serve").setLevel(logging.INFO)
    logging.getLogger("googlenet.access").setLevel(logging.INFO if config.access_log else logging.WARNING)
    return build_asgi_app(config)


def parse_model_args(parser: argparse.ArgumentParser, arguments: list[str]) -> dict[str, str]:
    """Parse ``[NAME=]RUN`` arguments to a dict of names and paths. The default name is that of the folder or file."""
    models: dict[str, str] = {}
    for text in arguments:
        before, equals, after = text.partition("=")
        has_name = bool(equals) and "/" not in before and not Path(text).exists()
        path = after if has_name else text
        name = before if has_name else Path(path).absolute().name.removesuffix(".safetensors")
        if not name or not path:
            parser.error(f"{text!r} is not NAME=RUN")
        if name in models:
            parser.error(f"duplicate model name {name}; use for example {name}={models[name]} other={path}")
        models[name] = path
    return models


def _make_parser() -> argparse.ArgumentParser:
    parser = make_parser(
        "serve",
        "Serve networks over HTTP: POST /v1/predict, /v1/explain and /v1/detect, the Open Inference Protocol at /v2,\n"
        "a web interface at /. Ctrl-C or SIGTERM completes the requests in progress, then stops.",
        "googlenet serve runs/demo small=runs/small --port 8000",
    )
    run_help = "a run, exported folder or .safetensors file; the first is the default model"
    parser.add_argument("run", nargs="+", metavar="[NAME=]RUN", help=run_help)
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: this machine only)")
    parser.add_argument("--port", type=int, default=8000, help="0 selects a free port (default: 8000)")
    add_engine_arguments(parser, default="auto")
    for field in fields(Limits):
        if field.metadata:
            flag, kind = f"--{field.name.replace('_', '-')}", positive_int if field.type is int else _non_negative
            help_text = f"{field.metadata['help']} (default: {field.default})"
            parser.add_argument(flag, type=kind, default=field.default, metavar="N", help=help_text)
    key_help = f"file with the API key that clients must send (or {API_KEY_VARIABLE})"
    parser.add_argument("--api-key-file", metavar="FILE", help=key_help)
    parser.add_argument(
        "--reload-interval", type=_non_negative, default=1.0, metavar="S",
        help="seconds between checks for changed models; 0: no checks (default: 1)",
    )  # fmt: skip
    hosts_help = "name under which clients reach the server; repeat for several (default: any, or this machine's names)"
    parser.add_argument("--allowed-host", action="append", metavar="NAME", help=hosts_help)
    parser.add_argument(
        "--drain-seconds", type=_non_negative, default=0.5, metavar="S",
        help="seconds in which requests are accepted after SIGTERM, while health checks fail (default: 0.5)",
    )  # fmt: skip
    access_help = "log client, path, status, bytes, time and id of every request to standard error"
    parser.add_argument("--access-log", action="store_true", help=access_help)
    replicas_help = "number of replicas under Ray Serve; MIN:MAX scales"
    parser.add_argument("--replicas", type=_replicas, metavar="N|MIN:MAX", help=replicas_help)
    return parser


def _serve_with_ray(
    config: ServeConfig, key_file: str | None, replicas: tuple[int, int], address: tuple[str, int],
    on_started: Callable[[], None],
) -> None:  # fmt: skip
    from ..distributed.ray_serve import Replicas, build_ray_application, start_ray_serve

    signals = {signal.SIGINT, signal.SIGTERM}
    bounds = Replicas(*replicas, num_cpus=config.threads or os.cpu_count() or 1)
    has_key, key_path = config.api_key is not None, key_file and str(Path(key_file).absolute())
    # Replicas run in another working directory. The key is not sent to them, because Ray would store it.
    models = {name: str(Path(path).absolute()) if Path(path).exists() else path for name, path in config.models.items()}
    shared = replace(config, models=models, api_key=None)

    def build_replica() -> "AdmissionMiddleware":
        key = _read_api_key(key_path)
        if has_key and key is None:
            raise ValueError(f"this machine has no API key: set {API_KEY_VARIABLE}, or copy the --api-key-file to it")
        return build_app(replace(shared, api_key=key))

    application = build_ray_application(build_replica, bounds, config.limits.max_queue)
    stop = start_ray_serve(application, *address)
    signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    on_started()
    received = signal.sigwait(signals)
    stop()
    if received == signal.SIGINT:
        raise KeyboardInterrupt


def _read_api_key(path: str | None) -> str | None:
    origin, key = path or API_KEY_VARIABLE, os.environ.get(API_KEY_VARIABLE, "").strip()
    if path is not None:
        key = read_text(Path(path)).strip()
        if not key:
            raise ValueError(f"{path}: empty; write the API key to this file")
    if not key.isascii() or any(character.isspace() for character in key):
        raise ValueError(f"{origin}: an API key consists of ASCII characters without spaces")
    return key or None


def _non_negative(text: str) -> float:
    with suppress(ValueError):
        if 0 <= (value := float(text)) < math.inf:
            return value
    raise argparse.ArgumentTypeError(f"must be a number of 0 or more, not {text!r}")


def _replicas(text: str) -> tuple[int, int]:
    """Parse "2" to (2, 2) and "1:4" to (1, 4)."""
    low, colon, high = text.partition(":")
    bounds = (int(low), int(high if colon else low)) if (low + high).isdecimal() and low else (0, 0)
    if not 1 <= bounds[0] <= bounds[1]:
        raise argparse.ArgumentTypeError(f"must be a number, or two such as 1:4, not {text!r}")
    return bounds
