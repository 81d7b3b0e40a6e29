"""What the server counts and times, as text that Prometheus reads."""

_TOKEN_SECONDS = (0.001, 0.002, 0.003, 0.004, 0.005, 0.0075, 0.01, 0.015, 0.02, 0.03, 0.05)
_SECONDS = (0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)


class Metrics:
    """What was counted so far; changed on the server's event loop only.

    Each has a registry of its own, so that a process may serve more than once.
    """

    def __init__(self) -> None:
        """Nothing was counted yet."""
        # Only here: who does not serve need not have it.
        from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

        registry = CollectorRegistry()
        self._registry = registry
        self.requests = Counter(
            "secateur_requests",
            "Answered HTTP requests by path and status.",
            ("path", "status"),
            registry=registry,
        )
        self.prompt_tokens = Counter(
            "secateur_prompt_tokens", "Tokens of prompts that were accepted.", registry=registry
        )
        self.generated_tokens = Counter(
            "secateur_generated_tokens", "Tokens that were generated.", registry=registry
        )
        self.sequences = Counter(
            "secateur_sequences", "Sequences that ended, by reason.", ("reason",), registry=registry
        )
        self.first_token_seconds = Histogram(
            "secateur_time_to_first_token_seconds",
            "From acceptance to the first token.",
            buckets=(*_TOKEN_SECONDS, *_SECONDS),
            registry=registry,
        )
        self.inter_token_seconds = Histogram(
            "secateur_inter_token_seconds",
            "From one token of a sequence to the next.",
            buckets=(*_TOKEN_SECONDS, *_SECONDS),
            registry=registry,
        )
        self._running = Gauge(
            "secateur_running", "Sequences in a slot of the engine.", registry=registry
        )
        self._waiting = Gauge(
            "secateur_waiting", "Sequences that wait for a slot.", registry=registry
        )

    def text(self, running: int, waiting: int) -> bytes:
        """The text of `/metrics`.

        Args:
            running: sequences in a slot now.
            waiting: sequences without one.
        """
        from prometheus_client import generate_latest

        self._running.set(running)
        self._waiting.set(waiting)
        return generate_latest(self._registry)
