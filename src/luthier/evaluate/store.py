"""Results that cost time or money are kept: answers and grades, one per line, found again by key."""

import hashlib
import json
import threading
from pathlib import Path
from typing import Any

from luthier.files import write_jsonl


def key_of(*parts: object) -> str:
    """A short name for ``parts`` (plain data) that the same parts always get."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:24]


class Store:
    """Values by key in a JSON-lines file that grows as they come.

    A process that is killed leaves at most half a last line, which the next one drops.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.Lock()  # judges are asked in parallel
        self._values: dict[str, Any] = {}
        if not path.is_file():
            return
        *lines, rest = path.read_bytes().split(b"\n")
        whole = []
        for line in lines:
            try:
                entry = json.loads(line)
                self._values[entry["key"]] = entry["value"]
            except (ValueError, KeyError, TypeError):
                continue
            whole.append(entry)
        if rest or len(whole) != len(lines):
            write_jsonl(path, whole)

    def __contains__(self, key: str) -> bool:
        return key in self._values

    def __getitem__(self, key: str) -> Any:
        return self._values[key]

    def add(self, entries: dict[str, Any]) -> None:
        """Keep ``entries``; they are on disk when this returns."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        lines = [
            json.dumps({"key": key, "value": value}, ensure_ascii=False) + "\n"
            for key, value in entries.items()
        ]
        with self._lock, self.path.open("a", encoding="utf-8") as file:
            file.writelines(lines)
            self._values |= entries
