"""What Prometheus is told."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from ftbench.serving.engine import Engine

_SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)


class Metrics:
    """Counters of one server; gauges read the engine when asked."""

    def __init__(self, engine: Engine) -> None:
        registry = CollectorRegistry()
        self._registry = registry
        self.requests = Counter(
            "ftbench_requests", "Chat requests, by model and outcome.", ["model", "outcome"], registry=registry
        )
        self.tokens = Counter("ftbench_tokens", "Tokens read and written.", ["model", "kind"], registry=registry)
        self.first = Histogram(
            "ftbench_first_token_seconds",
            "From a request to its first text.",
            ["model"],
            registry=registry,
            buckets=_SECONDS,
        )
        self.whole = Histogram(
            "ftbench_reply_seconds",
            "From a request to the end of its reply.",
            ["model"],
            registry=registry,
            buckets=_SECONDS,
        )
        for name, about, value in (
            ("ftbench_waiting", "Requests without a place.", lambda: engine.waiting),
            ("ftbench_writing", "Replies that are being written.", lambda: engine.writing),
            ("ftbench_cache_tokens", "Tokens that there is memory of keys and values for.", lambda: engine.held_tokens),
        ):
            Gauge(name, about, registry=registry).set_function(value)

    def text(self) -> bytes:
        """All of it, in Prometheus' text format."""
        return generate_latest(self._registry)
