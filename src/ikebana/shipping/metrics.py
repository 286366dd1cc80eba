"""What the server counts, as Prometheus reads it. Nothing of it says what was in a photo, or who sent it."""

import importlib.metadata

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

__all__ = ["CONTENT_TYPE_LATEST", "Metrics"]

SECONDS = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0)
BATCHES = (1, 2, 4, 8, 16)


class Metrics:
    """The counters of one server; two in one process do not share any."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        self.requests = Counter(
            "ikebana_requests", "Requests by path and status.", ("path", "status"), registry=registry
        )
        self.photos = Counter(
            "ikebana_photos",
            "Photos by outcome (named, not sure, unusable) and by the class that was named.",
            ("outcome", "label"),
            registry=registry,
        )
        self.received = Counter("ikebana_received_bytes", "Bytes of uploads.", registry=registry)
        self.request = Histogram(
            "ikebana_predict_seconds", "From request to answer.", buckets=SECONDS, registry=registry
        )
        self.decode = Histogram("ikebana_decode_seconds", "To open a photo.", buckets=SECONDS, registry=registry)
        self.network = Histogram("ikebana_network_seconds", "To look at a batch.", buckets=SECONDS, registry=registry)
        self.batch = Histogram("ikebana_batch_photos", "Photos in a batch.", buckets=BATCHES, registry=registry)
        self.waiting = Gauge("ikebana_waiting_photos", "Photos accepted and not answered yet.", registry=registry)
        self.held = Gauge("ikebana_held_bytes", "Bytes of uploads in memory.", registry=registry)
        self.open = Gauge("ikebana_open_requests", "Uploads being received or answered.", registry=registry)
        about = Gauge("ikebana_info", "Always 1; its label says the version.", ("version",), registry=registry)
        about.labels(importlib.metadata.version("ikebana")).set(1)

    def answered(self, outcome: str, label: str = "") -> None:
        """One more photo.

        outcome  named, not sure or unusable
        label    the class that was named
        """
        self.photos.labels(outcome, label).inc()

    def text(self) -> bytes:
        """Everything, in Prometheus' text format."""
        return generate_latest(self.registry)
