"""Metrics for Prometheus, with the names of text-embeddings-inference, so that its dashboards work."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING

import prometheus_client
from prometheus_client import CollectorRegistry, Gauge, Histogram, multiprocess

from ..aio import Observer

if TYPE_CHECKING:
    from .endpoint import Call
    from .errors import Refusal

__all__ = ["Batches", "answered", "failed", "waiting", "written"]

prometheus_client.disable_created_metrics()

DURATIONS = [1e-5 * 1.5**i for i in range(1, 36)]  # seconds: those of text-embeddings-inference, so that its panels fit
POWERS = [2.0**i for i in range(21)]


def _counter(name: str, about: str, *labels: str) -> Gauge:
    """A counter with exactly this name: prometheus_client would put _total behind that of a Counter."""
    return Gauge(name, about, labels, multiprocess_mode="sum")


REQUESTS = _counter("te_request_count", "Requests.", "method")
SUCCESSES = _counter("te_request_success", "Requests that were answered.", "method")
FAILURES = _counter("te_request_failure", "Requests that got an error.", "err")
TRUNCATED = _counter("te_truncated_texts", "Texts that were cut to what the model reads.")
QUEUE = Gauge("te_queue_size", "Texts that wait or are computed.", multiprocess_mode="livesum")
DURATION = Histogram("te_request_duration", "Seconds of a request.", buckets=DURATIONS)
TOKENIZATION = Histogram("te_request_tokenization_duration", "Seconds of making tokens.", buckets=DURATIONS)
QUEUED = Histogram("te_request_queue_duration", "Seconds before the first batch of a request.", buckets=DURATIONS)
INFERENCE = Histogram("te_request_inference_duration", "Seconds of the batches of a request.", buckets=DURATIONS)
LENGTH = Histogram("te_request_input_length", "Tokens of a text.", buckets=POWERS)
BATCH_TEXTS = Histogram("te_batch_next_size", "Texts of a batch.", buckets=POWERS[:13])
BATCH_TOKENS = Histogram("te_batch_next_tokens", "Tokens of a batch.", buckets=POWERS)


def answered(call: Call) -> None:
    """Count a request that was answered."""
    REQUESTS.labels(call.method).inc()
    SUCCESSES.labels(call.method).inc()
    DURATION.observe(time.perf_counter() - call.began)
    TOKENIZATION.observe(call.tokenized)
    QUEUED.observe(call.waited)
    INFERENCE.observe(call.computed)
    if call.cut:
        TRUNCATED.inc(call.cut)


def failed(call: Call, refusal: Refusal) -> None:
    """Count a request that got an error."""
    REQUESTS.labels(call.method).inc()
    FAILURES.labels(refusal.kind.lower()).inc()


def waiting(texts: int) -> None:
    """Add to the texts that wait or are computed."""
    QUEUE.inc(texts)


class Batches(Observer):
    """Counts the batches of a Batcher. `request` is left to a subclass."""

    def batch(self, texts: int, tokens: int) -> None:
        BATCH_TEXTS.observe(texts)
        BATCH_TOKENS.observe(tokens)


def written() -> tuple[bytes, str]:
    """(all metrics in the text format of Prometheus, its media type). With several workers, theirs are added up."""
    registry = prometheus_client.REGISTRY
    if "PROMETHEUS_MULTIPROC_DIR" in os.environ:
        registry = CollectorRegistry()
        multiprocess.MultiProcessCollector(registry)
    return prometheus_client.generate_latest(registry), prometheus_client.CONTENT_TYPE_LATEST
