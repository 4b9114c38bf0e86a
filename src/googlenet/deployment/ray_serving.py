"""The application of `serving` under Ray Serve: replicas, on one machine or many, as many as there is work for."""

import logging
from collections.abc import Callable
from typing import Any, NamedTuple

from starlette.types import ASGIApp

# A replica has about so much to do before another is started; its own queue batches what comes.
TARGET_REQUESTS = 16


class Replicas(NamedTuple):
    """How many: between `least` and `most`, by what is asked. `threads` of the network each."""

    least: int
    most: int
    threads: int


def ray_application(build: Callable[[], ASGIApp], replicas: Replicas, queue: int) -> Any:
    """What ``serve.run`` takes. `build` makes the application in each replica, so it must be something Ray can send.

    Each replica reads the runs, joins its own batches, and has `queue` requests at most; ValueError where Ray is not
    installed.
    """
    try:
        from ray import serve
    except ModuleNotFoundError:
        raise ValueError("replicas need Ray; run: pip install 'googlenet[scale]'") from None
    scale: dict[str, Any] = {"num_replicas": replicas.least}
    if replicas.most > replicas.least:
        scale = {
            "autoscaling_config": {
                "min_replicas": replicas.least,
                "max_replicas": replicas.most,
                "target_ongoing_requests": TARGET_REQUESTS,
            }
        }
    made = serve.deployment(
        name="googlenet",
        max_ongoing_requests=queue,
        ray_actor_options={"num_cpus": replicas.threads},
        graceful_shutdown_timeout_s=60,
        **scale,
    )
    return made(serve.ingress(build)()).bind()


def run_under_ray(application: Any, host: str, port: int) -> Callable[[], None]:
    """Start it on a local cluster, or on the one that ``RAY_ADDRESS`` names; what stops it in order."""
    import ray
    from ray import serve

    ray.init(ignore_reinit_error=True, log_to_driver=False, include_dashboard=False, logging_level=logging.WARNING)
    serve.start(http_options={"host": host, "port": port}, logging_config={"log_level": "WARNING"})
    serve.run(application, name="googlenet", route_prefix="/")

    running: list[Any] = [serve, ray]  # their ends have no types

    def stop() -> None:
        for one in running:
            one.shutdown()

    return stop
