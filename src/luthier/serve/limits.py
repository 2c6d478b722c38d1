"""How much a server takes on, so that no client can take it from the others."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """The bounds of a server; requests past them are refused, with the reason.

    Attributes:
        batch: answers that are made at once.
        queue: answers that wait for a place among them.
        context: tokens of prompt and answer together; None for the model's own positions.
        new_tokens: of one answer, and what it gets that does not say.
        choices: answers that one request may ask for (`n` times its prompts).
        connections: open at once; idle ones make room for new ones.
        idle_seconds: for a request to arrive, and for a connection to do nothing.
        body: bytes of a request.
        seconds: from a request's arrival to its last token.
        shutdown_seconds: for running answers to finish after a stop signal.
    """

    batch: int = 16
    queue: int = 64
    context: int | None = None
    new_tokens: int = 1024
    choices: int = 16
    connections: int = 512
    idle_seconds: float = 30.0
    body: int = 1 << 20
    seconds: float = 300.0
    shutdown_seconds: float = 30.0
