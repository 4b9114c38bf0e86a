"""Prometheus metrics of a server."""

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

DURATION_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
BATCH_BUCKETS = (1, 2, 4, 8, 16, 32, 64, 128)


class Metrics:
    """Metrics of one server. Each instance has its own registry, so that a process can run several servers."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        self.requests = Counter("googlenet_requests", "Requests", ["route", "status"], registry=registry)
        self.request_duration = Histogram(
            "googlenet_request_duration_seconds", "Time from request headers to response", ["route"],
            buckets=DURATION_BUCKETS, registry=registry,
        )  # fmt: skip
        self.stage_duration = Histogram(
            "googlenet_stage_duration_seconds", "Time per image and stage", ["stage"],
            buckets=DURATION_BUCKETS, registry=registry,
        )  # fmt: skip
        self.images = Counter("googlenet_images", "Images with a prediction", ["model"], registry=registry)
        self.batch_size = Histogram("googlenet_batch_size", "Batch size", buckets=BATCH_BUCKETS, registry=registry)
        self.version = Gauge("googlenet_model_version", "Current version", ["model"], registry=registry)
        self.reloads = Counter("googlenet_reloads", "Reloads of a model", ["model", "outcome"], registry=registry)

    def add_gauge(self, name: str, description: str, get_value: Callable[[], float]) -> None:
        """Add a gauge whose value is computed when the metrics are read."""
        Gauge(name, description, registry=self.registry).set_function(get_value)
