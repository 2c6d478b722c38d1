"""The log in bounds: what repeats is said a few times, then counted."""

import logging
import time

_SAID = 3  # times within a period
_PERIOD = 60.0  # seconds
_KINDS = 1000


class Repeats(logging.Filter):
    """Lets a message of one kind through three times a minute; then says how many there were."""

    def __init__(self) -> None:
        super().__init__()
        self._seen: dict[tuple[str, str], tuple[float, int]] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether to write ``record``; it is told how often it was left out before."""
        kind = record.name, str(record.msg)[:200]
        now = time.monotonic()
        began, count = self._seen.get(kind, (now, 0))
        if now - began > _PERIOD:
            if count > _SAID:
                record.msg = f"{record.msg} (and {count - _SAID} times more in the last minute)"
            began, count = now, 0
        if len(self._seen) > _KINDS:
            self._seen.clear()
        self._seen[kind] = began, count + 1
        return count < _SAID
