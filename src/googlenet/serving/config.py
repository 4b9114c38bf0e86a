"""Settings of a server. Importable without FastAPI, so that ``googlenet serve --help`` works without it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


def _flag(default: float, description: str) -> Any:
    """Declare a setting that ``googlenet serve`` offers as a flag of the same name."""
    return field(default=default, metadata={"help": description})


@dataclass(frozen=True)
class Limits:
    """Limits of a server, each checked before the work that it limits.

    `max_queue` and `max_memory` (bytes) are totals of all unfinished requests, the others apply to one batch, request
    or image. Half of `max_memory` is for decoding images, which waits while that half is in use. `max_image_size` is
    the largest input height and width in pixels that a client may request. `max_json_bytes` limits the JSON of a
    tensor, whose values need several times their text's size when it is parsed.
    """

    max_batch_size: int = _flag(32, "images per batch")
    max_batch_delay_ms: float = _flag(5.0, "milliseconds that an image waits for others to join its batch")
    max_queue: int = _flag(256, "images in unfinished requests; requests above that get status 429")
    max_pixels: int = _flag(25_000_000, "pixels of an image, checked before it is decoded")
    max_body_bytes: int = _flag(20_000_000, "bytes of a request body")
    timeout: float = _flag(30.0, "seconds until a request gets status 504")
    max_memory: int = 1_024_000_000
    max_json_bytes: int = 4_000_000
    max_images: int = 32
    max_sizes: int = 8
    max_image_size: int = 1024


@dataclass(frozen=True)
class ServeConfig:
    """What a server serves.

    `models` maps names to runs, exported folders or weight files; the first is the default model. `engine` and
    `threads` are those of the predictors. `reload_interval` is in seconds, 0 to never check for changed files. Requests
    for another host than `allowed_hosts` (none: any) are rejected. `drain_seconds` is how long the server accepts
    requests after a shutdown signal, so that a load balancer can react to the failing health check. With `access_log`
    every request is logged.
    """

    models: Mapping[str, str]
    engine: str | None = None
    threads: int | None = None
    limits: Limits = Limits()
    api_key: str | None = None
    reload_interval: float = 1.0
    allowed_hosts: tuple[str, ...] = ()
    drain_seconds: float = 0.5
    access_log: bool = False
