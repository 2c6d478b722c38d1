"""What `/metrics` tells Prometheus."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from luthier.serve.backend import Backend

_SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)


class Metrics:
    """The counters of one server."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        labels = ("endpoint", "model")
        self.requests = Counter(
            "luthier_requests",
            "Requests answered, by HTTP status.",
            (*labels, "status"),
            registry=self.registry,
        )
        self.prompt_tokens = Counter(
            "luthier_prompt_tokens", "Prompt tokens processed.", ("model",), registry=self.registry
        )
        self.generated_tokens = Counter(
            "luthier_generated_tokens", "Tokens made.", ("model",), registry=self.registry
        )
        self.seconds = Histogram(
            "luthier_request_seconds",
            "From a request's arrival to its last token.",
            labels,
            buckets=_SECONDS,
            registry=self.registry,
        )
        self.first_token_seconds = Histogram(
            "luthier_first_token_seconds",
            "From a request's arrival to its first token.",
            labels,
            buckets=_SECONDS,
            registry=self.registry,
        )
        self.rows = Histogram(
            "luthier_step_rows",
            "Answers that shared a step.",
            buckets=(1, 2, 4, 8, 16, 32, 64),
            registry=self.registry,
        )

    def watch(self, engine: Backend) -> None:
        """Show how much ``engine`` has to do."""
        running = Gauge("luthier_running", "Answers being generated.", registry=self.registry)
        running.set_function(lambda: engine.running)
        waiting = Gauge("luthier_waiting", "Answers in the queue.", registry=self.registry)
        waiting.set_function(lambda: engine.waiting)

    def text(self) -> bytes:
        """In Prometheus' text format."""
        return generate_latest(self.registry)
