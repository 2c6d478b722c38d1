"""What makes answers: our own engine, or one that asks llama.cpp."""

from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any, Protocol

from luthier.serve.engine import Ask, Piece


class Underway(Protocol):
    """An answer on its way."""

    def cancel(self) -> None: ...


class Backend(Protocol):
    """See ``Engine``, whose methods these are."""

    @property
    def waiting(self) -> int: ...

    @property
    def running(self) -> int: ...

    @property
    def alive(self) -> bool: ...

    def uses(self, weights: Any, adapter: str | None) -> bool: ...

    def submit(
        self, asks: list[Ask], deliver: Callable[[int, Piece], None]
    ) -> Sequence[Underway]: ...

    def call(self, function: Callable[[], Any]) -> "Future[Any]": ...

    def close(self) -> None: ...
