"""Counters of the server, as text that Prometheus reads."""

from collections import Counter
from dataclasses import dataclass, field

_PREFIX = "secateur"

_HELP = {
    "requests": ("counter", "Answered HTTP requests by path and status."),
    "prompt_tokens": ("counter", "Tokens of prompts that were accepted."),
    "generated_tokens": ("counter", "Tokens that were generated."),
    "sequences": ("counter", "Sequences that ended, by reason."),
    "time_to_first_token_seconds": ("summary", "From acceptance to the first token."),
    "running": ("gauge", "Sequences in a slot of the engine."),
    "waiting": ("gauge", "Sequences that wait for a slot."),
}


@dataclass
class Metrics:
    """What was counted so far; changed on the server's event loop only."""

    requests: Counter[tuple[str, int]] = field(default_factory=Counter)
    """By path and status."""
    prompt_tokens: int = 0
    generated_tokens: int = 0
    sequences: Counter[str] = field(default_factory=Counter)
    """By reason of their end."""
    first_tokens: int = 0
    first_token_seconds: float = 0.0

    def text(self, running: int, waiting: int) -> str:
        """The text of `/metrics`.

        Args:
            running: sequences in a slot now.
            waiting: sequences without one.
        """
        first = "time_to_first_token_seconds"
        lines = [
            *_header("requests"),
            *(
                f'{_PREFIX}_requests_total{{path="{path}",status="{status}"}} {count}'
                for (path, status), count in sorted(self.requests.items())
            ),
            *_header("prompt_tokens"),
            f"{_PREFIX}_prompt_tokens_total {self.prompt_tokens}",
            *_header("generated_tokens"),
            f"{_PREFIX}_generated_tokens_total {self.generated_tokens}",
            *_header("sequences"),
            *(
                f'{_PREFIX}_sequences_total{{reason="{reason}"}} {count}'
                for reason, count in sorted(self.sequences.items())
            ),
            *_header(first),
            f"{_PREFIX}_{first}_sum {self.first_token_seconds:.6f}",
            f"{_PREFIX}_{first}_count {self.first_tokens}",
            *_header("running"),
            f"{_PREFIX}_running {running}",
            *_header("waiting"),
            f"{_PREFIX}_waiting {waiting}",
        ]
        return "\n".join(lines) + "\n"


def _header(name: str) -> tuple[str, str]:
    kind, text = _HELP[name]
    full = f"{_PREFIX}_{name}" + ("_total" if kind == "counter" else "")
    return f"# HELP {full} {text}", f"# TYPE {full} {kind}"
