"""The server's metrics in Prometheus' format.

No metric describes the content of a photo or identifies a client.
"""

import importlib.metadata

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

__all__ = ["CONTENT_TYPE_LATEST", "Metrics"]

SECONDS_BUCKETS = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0)
BATCH_BUCKETS = (1, 2, 4, 8, 16)


class Metrics:
    """The metrics of one server; two servers in one process share none."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        self.requests = Counter(
            "ikebana_requests", "Requests by path and status.", ("path", "status"), registry=registry
        )
        self.photos = Counter(
            "ikebana_photos",
            "Photos by outcome (named, not sure, unknown, unusable) and by predicted class.",
            ("outcome", "label"),
            registry=registry,
        )
        self.received_bytes = Counter("ikebana_received_bytes", "Bytes of uploads.", registry=registry)
        self.predict_seconds = Histogram(
            "ikebana_predict_seconds", "Seconds from request to response.", buckets=SECONDS_BUCKETS, registry=registry
        )
        self.decode_seconds = Histogram(
            "ikebana_decode_seconds", "Seconds to decode a photo.", buckets=SECONDS_BUCKETS, registry=registry
        )
        self.network_seconds = Histogram(
            "ikebana_network_seconds", "Seconds to classify a batch.", buckets=SECONDS_BUCKETS, registry=registry
        )
        self.batch_photos = Histogram(
            "ikebana_batch_photos", "Photos per batch.", buckets=BATCH_BUCKETS, registry=registry
        )
        self.waiting_photos = Gauge(
            "ikebana_waiting_photos", "Photos accepted but not yet answered.", registry=registry
        )
        self.held_bytes = Gauge("ikebana_held_bytes", "Bytes of uploads in memory.", registry=registry)
        self.open_requests = Gauge("ikebana_open_requests", "Uploads being received or answered.", registry=registry)
        # NaN while they are not known.
        self.drift_p_value = Gauge(
            "ikebana_drift_p_value",
            "Probability that photos like the training photos look as unfamiliar as the last 1,000.",
            registry=registry,
        )
        self.median_familiarity = Gauge(
            "ikebana_median_familiarity", "Median familiarity of the last 1,000 photos.", registry=registry
        )
        info = Gauge("ikebana_info", "Always 1; the label is the version.", ("version",), registry=registry)
        info.labels(importlib.metadata.version("ikebana")).set(1)

    def count_photo(self, outcome: str, label: str = "") -> None:
        """Count one answered photo.

        Args:
            outcome: "named", "not sure", "unknown" or "unusable".
            label: the predicted class.
        """
        self.photos.labels(outcome, label).inc()

    def render(self) -> bytes:
        """Render all metrics in Prometheus' text format."""
        return generate_latest(self.registry)
