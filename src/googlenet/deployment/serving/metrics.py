"""What a server counts, in Prometheus' text format."""

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
BATCHES = (1, 2, 4, 8, 16, 32, 64, 128)


class Metrics:
    """Counters of one server; a registry of its own, so that several may live in one process."""

    content_type = CONTENT_TYPE_LATEST

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        own = self.registry
        self.requests = Counter("googlenet_requests", "Requests answered", ["route", "status"], registry=own)
        self.seconds = Histogram(
            "googlenet_request_seconds",
            "Seconds from a request's head to its answer",
            ["route"],
            buckets=SECONDS,
            registry=own,
        )
        self.stages = Histogram(
            "googlenet_stage_seconds", "Seconds of a picture by stage", ["stage"], buckets=SECONDS, registry=own
        )
        self.pictures = Counter("googlenet_pictures", "Pictures answered", ["model"], registry=own)
        self.batches = Histogram(
            "googlenet_batch_pictures", "Pictures computed together", buckets=BATCHES, registry=own
        )
        self.versions = Gauge("googlenet_model_version", "The version that answers", ["model"], registry=own)
        self.reloads = Counter("googlenet_reloads", "New versions looked at", ["model", "outcome"], registry=own)

    def watch(self, name: str, what: str, value: Callable[[], float]) -> None:
        """A gauge whose value is asked for when the metrics are read."""
        Gauge(name, what, registry=self.registry).set_function(value)

    def text(self) -> bytes:
        """All of it, as Prometheus reads it."""
        return generate_latest(self.registry)
