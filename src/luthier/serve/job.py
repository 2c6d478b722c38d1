"""One request's answers: handed to the engine, their pieces brought back to the event loop."""

import asyncio
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import suppress

from starlette.requests import Request

from luthier.serve.backend import Backend, Underway
from luthier.serve.engine import Ask, Busy, Closed, Piece
from luthier.serve.errors import ApiError, failed
from luthier.serve.metrics import Metrics
from luthier.serve.models import Served

_LOOK = 0.25  # seconds between looks at whether the client is still there


class ClientGone(Exception):
    """The connection was closed before the answer was there."""


class Job:
    """The answers to one request.

    Attributes:
        prompt_tokens: of the prompts, each counted once.
    """

    def __init__(self, served: Served, endpoint: str, metrics: Metrics, prompt_tokens: int) -> None:
        self.served = served
        self.prompt_tokens = prompt_tokens
        self._metrics = metrics
        self._labels = endpoint, served.name
        self._arrived = time.monotonic()
        self._pieces: asyncio.Queue[tuple[int, Piece]] = asyncio.Queue()
        self._answers: Sequence[Underway] = []
        self._open = 0
        self._made: dict[int, int] = {}
        self._looked = 0.0

    @property
    def generated_tokens(self) -> int:
        return sum(self._made.values())

    def submit(self, engine: Backend, asks: Sequence[Ask]) -> None:
        """Queue the answers.

        Raises:
            ApiError: 429 where too many wait, 503 where the server ends.
        """
        loop = asyncio.get_running_loop()

        def deliver(number: int, piece: Piece) -> None:
            with suppress(RuntimeError):  # the loop has ended, and there is no listener
                loop.call_soon_threadsafe(self._pieces.put_nowait, (number, piece))

        try:
            self._answers = engine.submit(list(asks), deliver)
        except Busy:
            raise ApiError(
                429,
                "the queue is full; try again later",
                kind="rate_limit_error",
                code="rate_limit_exceeded",
                headers={"Retry-After": "1"},
            ) from None
        except Closed:
            raise ApiError(503, "the server is shutting down", kind="server_error") from None
        self._open = len(asks)

    async def pieces(self, request: Request | None) -> AsyncGenerator[tuple[int, Piece]]:
        """The pieces of all answers, as they come, with the number of each answer.

        However it ends, nothing of the job keeps running.

        Args:
            request: looked at now and then for whether its client is still there; None where
                somebody else does that.

        Raises:
            ApiError: an answer failed.
            ClientGone: the client went away.
        """
        try:
            while self._open:
                number, piece = await self._next(request)
                if not self._made:
                    seconds = time.monotonic() - self._arrived
                    self._metrics.first_token_seconds.labels(*self._labels).observe(seconds)
                self._made[number] = piece.made
                if piece.finish is not None:
                    self._open -= 1
                    error = failed(piece.finish)
                    if error is not None:
                        raise error
                yield number, piece
        finally:
            self._end()

    async def _next(self, request: Request | None) -> tuple[int, Piece]:
        while True:
            if request is not None and time.monotonic() - self._looked > _LOOK:
                self._looked = time.monotonic()
                if await request.is_disconnected():
                    raise ClientGone
            with suppress(TimeoutError):
                return await asyncio.wait_for(self._pieces.get(), _LOOK if request else None)

    def _end(self) -> None:
        for answer in self._answers:
            answer.cancel()
        _, model = self._labels
        self._metrics.prompt_tokens.labels(model).inc(self.prompt_tokens)
        self._metrics.generated_tokens.labels(model).inc(self.generated_tokens)
        self._metrics.seconds.labels(*self._labels).observe(time.monotonic() - self._arrived)
