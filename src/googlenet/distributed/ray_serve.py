"""Serve the application of `serving` with Ray Serve: several replicas, on one machine or a cluster."""

import logging
from collections.abc import Callable
from typing import Any, NamedTuple

from starlette.types import ASGIApp

# Ray Serve starts another replica if each has more requests than this. A replica batches the requests that it has.
TARGET_ONGOING_REQUESTS = 16


class Replicas(NamedTuple):
    """Bounds of the number of replicas, which Ray Serve adapts to the load, and the CPUs of each."""

    min_replicas: int
    max_replicas: int
    num_cpus: int


def build_ray_application(build_app: Callable[[], ASGIApp], replicas: Replicas, max_queue: int) -> Any:
    """Build the argument of ``serve.run``.

    `build_app` is sent to each replica, which loads the models and handles up to `max_queue` requests concurrently.
    Raises ValueError if Ray is not installed.
    """
    try:
        from ray import serve
    except ModuleNotFoundError:
        raise ValueError("--replicas requires Ray; run: pip install 'googlenet[scale]'") from None
    bounds = {"min_replicas": replicas.min_replicas, "max_replicas": replicas.max_replicas}
    deployment = serve.deployment(
        name="googlenet",
        max_ongoing_requests=max_queue,
        autoscaling_config={**bounds, "target_ongoing_requests": TARGET_ONGOING_REQUESTS},
        ray_actor_options={"num_cpus": replicas.num_cpus},
        graceful_shutdown_timeout_s=60,
    )
    return deployment(serve.ingress(build_app)()).bind()


def start_ray_serve(application: Any, host: str, port: int) -> Callable[[], None]:
    """Start the application on a local cluster, or that of ``RAY_ADDRESS``. Return a function that stops it."""
    import ray
    from ray import serve

    ray.init(ignore_reinit_error=True, log_to_driver=False, include_dashboard=False, logging_level=logging.WARNING)
    serve.start(http_options={"host": host, "port": port}, logging_config={"log_level": "WARNING"})
    serve.run(application, name="googlenet", route_prefix="/")

    def stop() -> None:
        modules: list[Any] = [serve, ray]  # their functions `shutdown` are not typed
        for module in modules:
            module.shutdown()

    return stop
