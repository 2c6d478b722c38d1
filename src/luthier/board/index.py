"""All runs at a glance, reading as little of each as its line needs.

A run is read again only when one of a few files has changed, and then the ends of the files that
grow. What does not fit a call's time is left for the next one, and shown by name until then.
"""

import json
import os
import threading
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError

from luthier.board.folders import Folders
from luthier.board.following import last_lines
from luthier.errors import UserError
from luthier.records import Evaluation, MetricsLine
from luthier.run import Run

State = Literal["running", "finished", "stopped", "failed", "…"]

_NEAR = 8  # lines of metrics in which both losses are looked for
_ANY = Run(Path())
_WATCHED = frozenset(
    path.name
    for path in (
        *(_ANY.recipe_path, _ANY.plan_path, _ANY.metrics_path),
        *(_ANY.events_path, _ANY.measured_path, _ANY.evaluation_path),
    )
)


@dataclass(frozen=True)
class Summary:
    """One run in the list; None where it is not known.

    Attributes:
        verdict: of the evaluation: better, worse, mixed, no evidence; empty before it.
        forgetting: kept, some forgetting, forgot; empty where it was not measured.
        changed: seconds since 1970.
    """

    name: str
    state: State
    verdict: str = ""
    forgetting: str = ""
    model: str = ""
    method: str = ""
    step: int | None = None
    steps: int | None = None
    loss: float | None = None
    eval_loss: float | None = None
    tokens_per_second: float | None = None
    memory_bytes: int | None = None
    seconds: float | None = None
    changed: float = 0.0
    tags: tuple[str, ...] = ()


_Signature = tuple[tuple[str, int, int], ...]


class Index:
    """The runs in a folder, remembered between calls."""

    def __init__(self, folders: Folders) -> None:
        self._folders = folders
        self._known: dict[str, tuple[_Signature, Summary]] = {}
        self._lock = threading.Lock()  # several pages look at once

    def rows(self, seconds: float = 1.0) -> list[Summary]:
        """Every run, the one that changed last first.

        Args:
            seconds: to spend on runs that are new or have changed; the rest keep what was known.
        """
        with self._lock:
            seen = self._read(time.monotonic() + seconds)
            self._known = seen
        tags = read_tags(self._folders)
        rows = [replace(row, tags=tags.get(row.name, ())) for _, row in seen.values()]
        return sorted(rows, key=lambda row: -row.changed)

    def _read(self, until: float) -> dict[str, tuple[_Signature, Summary]]:
        seen: dict[str, tuple[_Signature, Summary]] = {}
        for name, root in self._roots():
            signature = _signature(root)
            if not any(entry[0] == _ANY.recipe_path.name for entry in signature):
                continue
            known = self._known.get(name)
            if known is not None and known[0] == signature and known[1].state != "running":
                seen[name] = known
            elif time.monotonic() < until:
                seen[name] = (signature, summarise(Run(Path(root)), signature))
            elif known is not None:
                seen[name] = ((), known[1])
            else:
                seen[name] = ((), Summary(name, "…", changed=_changed(signature)))
        return seen

    @property
    def complete(self) -> bool:
        """Whether all that ``rows`` gave is what the files say."""
        return all(signature for signature, _ in self._known.values())

    def _roots(self) -> list[tuple[str, str]]:
        try:
            with os.scandir(self._folders.runs) as entries:
                return [
                    (entry.name, entry.path)
                    for entry in entries
                    if entry.name[0] != "." and entry.is_dir(follow_symlinks=False)
                ]
        except FileNotFoundError:
            return []


def _signature(root: str) -> _Signature:
    found = []
    try:
        with os.scandir(root) as entries:
            for entry in entries:
                if entry.name in _WATCHED and not entry.is_symlink():
                    status = entry.stat()
                    found.append((entry.name, status.st_mtime_ns, status.st_size))
    except OSError:
        return ()
    return tuple(sorted(found))


def _changed(signature: _Signature) -> float:
    return max((when for _, when, _ in signature), default=0) / 1e9


def summarise(run: Run, signature: _Signature) -> Summary:
    """One run's line: the last of its metrics, its small records; never a whole curve."""
    there = {name for name, _, _ in signature}
    plan = _json(run.plan_path) if run.plan_path.name in there else {}
    measured = _json(run.measured_path) if run.measured_path.name in there else {}
    verdict = forgetting = ""
    if run.evaluation_path.name in there:
        verdict, forgetting = _verdicts(run)
    line = _last_metrics(run) if run.metrics_path.name in there else None
    work = plan.get("work") or {}
    return Summary(
        name=run.root.name,
        state=state_of(run, finished=run.measured_path.name in there),
        verdict=verdict,
        forgetting=forgetting,
        model=_model(plan),
        method=str(plan.get("method", "")),
        step=measured.get("steps", line.step if line else None),
        steps=measured.get("steps", work.get("steps")),
        loss=line.loss if line else None,
        eval_loss=measured.get("best_eval_loss", line.eval_loss if line else None),
        tokens_per_second=measured.get(
            "tokens_per_second", line.tokens_per_second if line else None
        ),
        memory_bytes=measured.get("peak_memory_bytes", line.memory_bytes if line else None),
        seconds=measured.get("seconds", line.seconds if line else None),
        changed=_changed(signature),
    )


def state_of(run: Run, finished: bool | None = None) -> State:
    """What a run is doing: running where a process works on it, else how it ended."""
    if run.worker_path.exists() and run.worker() is not None:
        return "running"
    if run.finished if finished is None else finished:
        return "finished"
    told = _parsed((last_lines(run.events_path) or [b""])[-1])
    failed = told.get("event") == "stopped" and not told.get("interrupted")
    return "failed" if failed else "stopped"


def _verdicts(run: Run) -> tuple[str, str]:
    from luthier.api import headline

    try:
        evaluation: Evaluation | None = run.evaluation()
    except UserError:
        return "", ""
    if evaluation is None:
        return "", ""
    found = headline(evaluation)
    return found.verdict, found.forgetting or ""


def _last_metrics(run: Run) -> MetricsLine | None:
    """The last line, with the last validation loss and the last training figures near it."""
    found: MetricsLine | None = None
    for text in last_lines(run.metrics_path)[: -_NEAR - 1 : -1]:
        try:
            line = MetricsLine.model_validate_json(text)
        except ValidationError:
            continue
        if found is None:
            found = line
        missing = {
            name: getattr(line, name)
            for name in ("loss", "eval_loss", "tokens_per_second")
            if getattr(found, name) is None
        }
        found = found.model_copy(update=missing)
        if found.loss is not None and found.eval_loss is not None:
            break
    return found


def _model(plan: dict[str, Any]) -> str:
    """Its name, without the folders of a path."""
    text = str(plan.get("model", ""))
    return text.rstrip("/").rpartition("/")[2] if text.startswith("/") else text


def _json(path: Path) -> dict[str, Any]:
    try:
        return _parsed(path.read_bytes())
    except OSError:
        return {}


def _parsed(text: bytes) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def read_tags(folders: Folders) -> dict[str, tuple[str, ...]]:
    """The tags of each run."""
    found = _json(folders.tags)
    return {
        name: tuple(str(tag) for tag in tags)
        for name, tags in found.items()
        if isinstance(tags, list)
    }


def write_tags(folders: Folders, tags: dict[str, tuple[str, ...]]) -> None:
    """Keep the tags of each run.

    Raises:
        UserError: the folder cannot be written.
    """
    from luthier.files import write_json

    write_json(folders.tags, {name: list(found) for name, found in tags.items() if found})
