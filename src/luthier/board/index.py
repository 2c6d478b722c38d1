"""All runs at a glance, reading as little of each as its line needs.

A run is read again only when one of a few files has changed, and then the ends of the files that
grow. What does not fit a call's time is left for the next one, and shown by name until then.
"""

import json
import os
import threading
import time
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from pydantic import TypeAdapter, ValidationError

from luthier import __version__
from luthier.board.folders import Folders
from luthier.board.following import last_lines
from luthier.errors import UserError
from luthier.records import Evaluation, MetricsLine
from luthier.run import Run

State = Literal["running", "finished", "stopped", "failed", "…"]

_NEAR = 8  # lines of metrics in which both losses are looked for
_OFTEN = 1.0  # seconds between two looks at the folder, however many pages ask
_REST = 5  # times what a look took, before the next
_SLICE = 0.05  # seconds of reading at a time, while nobody asks
_WORTH_KEEPING = 100  # runs that were read, for the index to be written
_ANY = Run(Path())
_WORKER = Run(Path("x")).worker_path.name.removeprefix(".x")
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


@dataclass(frozen=True)
class _Entry:
    """What is known of a run.

    Attributes:
        folder: when its folder last changed, in ns since 1970. Each record is written beside its place
            and renamed, so of a finished run, whose metrics grow no more, this alone tells.
        signature: of the files that a summary is made of; empty where only the name is known.
    """

    folder: int
    signature: _Signature
    summary: Summary

    @property
    def settled(self) -> bool:
        return bool(self.signature) and self.summary.state == "finished"


_KEPT: TypeAdapter[dict[str, _Entry]] = TypeAdapter(dict[str, _Entry])


class Index:
    """The runs in a folder, remembered between calls, and of finished runs between boards."""

    def __init__(self, folders: Folders) -> None:
        self._folders = folders
        self._known: dict[str, _Entry] = {}
        self._waiting: list[tuple[str, str]] = []  # names and folders to read, newest first
        self._look_after = 0.0
        self._unkept = 0  # runs that were read since the index was written
        self._lock = threading.Lock()  # several pages look at once
        self._opened = False

    def rows(self, seconds: float = 1.0) -> list[Summary]:
        """Every run, the one that changed last first.

        Args:
            seconds: to spend on runs that are new or have changed; the rest keep what was known.
        """
        with self._lock:
            if time.monotonic() >= self._look_after:
                self._look()
            self._read(time.monotonic() + seconds)
            if not self._waiting and self._unkept >= _WORTH_KEEPING:
                self._keep()
            found = [entry.summary for entry in self._known.values()]
        tags = read_tags(self._folders)
        if tags:
            found = [
                replace(row, tags=tags[row.name]) if row.name in tags else row for row in found
            ]
        return sorted(found, key=lambda row: -row.changed)

    @property
    def complete(self) -> bool:
        """Whether all that ``rows`` gave is what the files say."""
        return not self._waiting

    def read_all(self) -> None:
        """Read what there is, a little at a time, so that pages are answered meanwhile."""
        while True:
            self.rows(_SLICE)
            if self.complete:
                return
            time.sleep(_SLICE)

    def any(self) -> bool:
        """Whether there is a run."""
        try:
            with os.scandir(self._folders.runs) as entries:
                return any(
                    Run(Path(entry.path)).recipe_path.is_file()
                    for entry in entries
                    if entry.name[0] != "." and entry.is_dir(follow_symlinks=False)
                )
        except OSError:
            return False

    def _look(self) -> None:
        """Which runs are there, and which of them are to be read."""
        began = time.monotonic()
        if not self._opened:
            self._known, self._opened = self._kept(), True
        seen: dict[str, _Entry] = {}
        waiting = []
        roots, worked_on = self._roots()
        for name, root, folder in roots:
            known = self._known.get(name)
            busy = name in worked_on
            if known is not None and known.settled and known.folder == folder and not busy:
                seen[name] = known
                continue
            if known is not None and not known.signature:  # it waits to be read already
                waiting.append((known.summary.changed, name, root))
                seen[name] = replace(known, folder=folder)
                continue
            signature = _signature(root)
            if not any(entry[0] == _ANY.recipe_path.name for entry in signature):
                continue
            if known is None:
                known = _Entry(folder, (), Summary(name, "…", changed=_changed(signature)))
            if known.signature != signature or busy or known.summary.state == "running":
                waiting.append((known.summary.changed, name, root))
            seen[name] = replace(known, folder=folder)
        self._known = seen
        self._waiting = [
            (name, root) for _, name, root in sorted(waiting)
        ]  # the last is read first
        now = time.monotonic()
        self._look_after = now + max(_OFTEN, _REST * (now - began))

    def _read(self, until: float) -> None:
        while self._waiting and time.monotonic() < until:
            name, root = self._waiting.pop()
            signature = _signature(root)
            summary = summarise(Run(Path(root)), signature)
            self._known[name] = replace(self._known[name], signature=signature, summary=summary)
            self._unkept += summary.state == "finished"

    def _kept(self) -> dict[str, _Entry]:
        """What an earlier board knew."""
        try:
            told = json.loads(self._folders.index.read_bytes())
            return _KEPT.validate_python(told["runs"]) if told["version"] == __version__ else {}
        except (OSError, ValueError, KeyError, TypeError):
            return {}  # none yet, or another version's: all is read again

    def _keep(self) -> None:
        from luthier.files import write_json

        settled = {name: entry for name, entry in self._known.items() if entry.settled}
        told = {"version": __version__, "runs": _KEPT.dump_python(settled, mode="json")}
        self._unkept = 0
        with suppress(UserError):  # the next board is slower for it
            write_json(self._folders.index, told)

    def _roots(self) -> tuple[list[tuple[str, str, int]], set[str]]:
        """(name, folder, when it changed) of what may be runs, and the names of those worked on."""
        try:
            with os.scandir(self._folders.runs) as entries:
                found = list(entries)
        except OSError:
            return [], set()
        worked_on = {
            entry.name[1 : -len(_WORKER)]
            for entry in found
            if entry.name.endswith(_WORKER) and entry.name[0] == "."
        }
        roots = []
        for entry in found:
            if entry.name[0] != "." and entry.is_dir(follow_symlinks=False):
                with suppress(FileNotFoundError):  # deleted meanwhile
                    roots.append((entry.name, entry.path, entry.stat().st_mtime_ns))
        return roots, worked_on


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


def summarise(run: Run, signature: _Signature | None = None) -> Summary:
    """One run's line: the last of its metrics, its small records; never a whole curve."""
    if signature is None:
        signature = _signature(str(run.root))
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
