"""The run folder: names, what exists, who may write. The contract between the commands.

See the table in docs/run-folder.md; nothing else in the project spells these names.
"""

import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import TypeVar

from filelock import FileLock, Timeout
from pydantic import ValidationError

from luthier.errors import UserError
from luthier.files import is_unfinished, remove_unfinished, user_path, write_json, write_text
from luthier.recipe import Recipe, stored_recipe
from luthier.recipe.json_schema import schema_comment
from luthier.records import (
    AnsweredRow,
    DataReport,
    Evaluation,
    Measured,
    MetricsLine,
    Plan,
    Provenance,
    Record,
    ScoredPair,
)
from luthier.tables import as_html
from luthier.trust import consent, require
from luthier.yaml_text import parse_yaml

_STEP = re.compile(r"step-(\d+)")
_CLOCKS = 2.0  # seconds by which two processes may read the start of a third differently

R = TypeVar("R", bound=Record)


@dataclass(frozen=True)
class WorkFolder:
    """A folder at ``root`` that one process at a time works on."""

    root: Path

    @property
    def worker_path(self) -> Path:
        """Which process works on the folder, beside it."""
        return self.root.parent / f".{self.root.name}.worker.json"

    def worker(self) -> int | None:
        """The id of the process that works on the folder; None where none does.

        A number is not enough: the process may have been killed, and its number given to another.
        """
        import psutil

        try:
            told = json.loads(self.worker_path.read_bytes())
            process = psutil.Process(int(told["pid"]))
            same = abs(process.create_time() - float(told["started"])) < _CLOCKS
            alive = same and process.status() != psutil.STATUS_ZOMBIE
        except (OSError, ValueError, KeyError, TypeError, psutil.Error):
            return None
        return process.pid if alive else None

    def note_worker(self, process: int) -> None:
        """Keep that ``process`` works on the folder, for ``worker``.

        Raises:
            UserError: it cannot be written.
        """
        import psutil

        with suppress(psutil.NoSuchProcess):  # it has ended already
            started = psutil.Process(process).create_time()
            write_json(self.worker_path, {"pid": process, "started": started})

    @contextmanager
    def worked_on(self) -> Iterator[None]:
        """This process works on the folder until the block ends."""
        with suppress(UserError):  # a full disk is told by what has to be written
            self.note_worker(os.getpid())
        try:
            yield
        finally:
            self.worker_path.unlink(missing_ok=True)


@dataclass(frozen=True)
class Run(WorkFolder):
    """A run folder at ``root``; whether its parts exist depends on how far the run got."""

    def __str__(self) -> str:
        return str(self.root)

    def _repr_html_(self) -> str:
        """In a notebook: where it is, and what was measured once it has finished."""
        took = as_html(self.measured()) if self.finished else "<p>not finished</p>"
        return f"<p>run <code>{escape(str(self.root))}</code></p>{took}"

    @property
    def recipe_path(self) -> Path:
        return self.root / "recipe.yaml"

    @property
    def provenance_path(self) -> Path:
        return self.root / "provenance.json"

    @property
    def train_path(self) -> Path:
        return self.root / "data" / "train.jsonl"

    @property
    def validation_path(self) -> Path:
        return self.root / "data" / "validation.jsonl"

    @property
    def data_report_path(self) -> Path:
        return self.root / "data" / "data-report.json"

    @property
    def reference_path(self) -> Path:
        """Log-probabilities of the rows by the reference model of a preference, where they are kept."""
        return self.root / "data" / "reference.safetensors"

    @property
    def teacher_path(self) -> Path:
        """What the teacher of a distillation finds likely at each supervised token."""
        return self.root / "data" / "teacher.safetensors"

    @property
    def checkpoints_path(self) -> Path:
        return self.root / "checkpoints"

    @property
    def adapter_path(self) -> Path:
        return self.root / "adapter"

    @property
    def model_path(self) -> Path:
        return self.root / "model"

    @property
    def metrics_path(self) -> Path:
        return self.root / "metrics.jsonl"

    @property
    def events_path(self) -> Path:
        return self.root / "events.jsonl"

    @property
    def plan_path(self) -> Path:
        return self.root / "plan.json"

    @property
    def measured_path(self) -> Path:
        return self.root / "measured.json"

    @property
    def evaluation_path(self) -> Path:
        return self.root / "evaluation.json"

    @property
    def answered_rows_path(self) -> Path:
        """What `luthier evaluate` asked, with both answers and their scores."""
        return self.root / "evaluation" / "rows.jsonl"

    @property
    def scored_pairs_path(self) -> Path:
        """What a reward model makes of each pair that `luthier evaluate` shows it."""
        return self.root / "evaluation" / "pairs.jsonl"

    @property
    def probe_answers_path(self) -> Path:
        """What the probe of general skill asked, with both answers."""
        return self.root / "evaluation" / "probe.jsonl"

    @property
    def answers_path(self) -> Path:
        """Answers that need not be made again."""
        return self.root / "evaluation" / "answers.jsonl"

    @property
    def grades_path(self) -> Path:
        """Grades that a judge need not give again."""
        return self.root / "evaluation" / "judge.jsonl"

    @property
    def report_path(self) -> Path:
        return self.root / "report.html"

    @property
    def tensorboard_path(self) -> Path:
        return self.root / "tensorboard"

    @property
    def trackers_path(self) -> Path:
        """What experiment trackers know this run as, by tracker."""
        return self.root / "trackers.json"

    @property
    def bad_batch_path(self) -> Path:
        return self.root / "bad-batch.json"

    @property
    def log_path(self) -> Path:
        return self.root / "log.txt"

    @property
    def output_path(self) -> Path:
        """What a process printed that was started to work on the run in the background."""
        return self.root.parent / f".{self.root.name}.out.txt"

    def export_path(self, shape: str) -> Path:
        """Where `luthier export` puts a form of the model, unless another place is given."""
        return self.root / shape

    @property
    def llama_cpp_path(self) -> Path:
        """What `luthier serve --engine llama-cpp` made of the run."""
        return self.root / "llama-cpp"

    def weights_path(self, recipe: Recipe) -> Path:
        """Where the best weights go: ``model/`` for full fine-tuning, else ``adapter/``."""
        return self.model_path if recipe.method.name == "full" else self.adapter_path

    def recipe(self) -> Recipe:
        """The resolved recipe of the run, to act on.

        Raises:
            UserError: this is not a run folder.
            Untrusted: it comes from elsewhere, and asks for what needs the user's consent.
        """
        self.require_trust()
        return self.read_recipe()

    def read_recipe(self) -> Recipe:
        """The recipe as the folder has it, to be shown and compared; ``recipe`` is to act on.

        Raises:
            UserError: this is not a run folder.
        """
        if not self.recipe_path.is_file():
            raise UserError(f"{self.root} is not a run folder: it has no recipe.yaml")
        return stored_recipe(self.recipe_path)

    def require_trust(self, *, to_train: bool = False) -> None:
        """Raise unless this user consented to what the run asks for (``trust.require``).

        Raises:
            UserError: this is not a run folder.
            Untrusted: a key is named with its value and what it would do.
        """
        require(self.read_recipe(), self.root, to_train=to_train)

    def trust(self, *, to_train: bool = False) -> None:
        """Keep, outside the run, that this user trusts what it asks for (``trust.consent``).

        Raises:
            UserError: this is not a run folder.
        """
        consent(self.read_recipe(), self.root, to_train=to_train)

    def provenance(self) -> Provenance:
        """What the recipe became. Version 0.1 kept it inside recipe.yaml.

        Raises:
            UserError: it is missing or damaged.
        """
        if self.provenance_path.is_file():
            return Provenance.from_file(self.provenance_path)
        told = parse_yaml(self.recipe_path.read_text("utf-8"), str(self.recipe_path))
        found = told.get("provenance") if isinstance(told, dict) else None
        if found is None:
            raise UserError(f"{self.provenance_path} is missing, so {self.root} cannot be used")
        try:
            return Provenance.model_validate(found)
        except ValidationError:
            raise UserError(
                f"the provenance in {self.recipe_path} is damaged, so the run cannot be used"
            ) from None

    def plan(self) -> Plan | None:
        """What was predicted; None where the run could not be planned.

        Raises:
            UserError: the file is damaged.
        """
        return Plan.from_file(self.plan_path) if self.plan_path.is_file() else None

    def data_report(self) -> DataReport | None:
        """What became of each row; None before the data is split.

        Raises:
            UserError: the file is damaged.
        """
        return (
            DataReport.from_file(self.data_report_path) if self.data_report_path.is_file() else None
        )

    def measured(self) -> Measured:
        """What the finished run took.

        Raises:
            UserError: it has not finished, or the file is damaged.
        """
        self.require_finished()
        return Measured.from_file(self.measured_path)

    def evaluation(self) -> Evaluation | None:
        """Base against tuned; None where `luthier evaluate` did not run yet.

        Raises:
            UserError: the file is damaged.
        """
        return (
            Evaluation.from_file(self.evaluation_path) if self.evaluation_path.is_file() else None
        )

    def answered_rows(self) -> list[AnsweredRow]:
        """All rows that the evaluation answered, none where there is no file yet.

        Raises:
            UserError: a line is damaged.
        """
        return _read_lines(AnsweredRow, self.answered_rows_path)

    def scored_pairs(self) -> list[ScoredPair]:
        """All pairs that the evaluation of a reward model scored, none where there is no file yet.

        Raises:
            UserError: a line is damaged.
        """
        return _read_lines(ScoredPair, self.scored_pairs_path)

    def metrics(self) -> list[MetricsLine]:
        """The lines of metrics.jsonl, none where there is no file yet; a last line that a kill cut
        off is not one.

        Raises:
            UserError: another line is damaged.
        """
        return _read_lines(MetricsLine, self.metrics_path)

    def checkpoints(self) -> dict[int, Path]:
        """The complete checkpoints by step, in rising order."""
        found = {
            int(match[1]): folder
            for folder in self.checkpoints_path.glob("step-*")
            if (match := _STEP.fullmatch(folder.name)) and folder.is_dir()
        }
        return dict(sorted(found.items()))

    def checkpoint_path(self, step: int) -> Path:
        return self.checkpoints_path / f"step-{step}"

    @property
    def finished(self) -> bool:
        """True once the best weights were written; ``measured.json`` is the last file of a run."""
        return self.measured_path.is_file()

    def require_finished(self) -> None:
        """Raise UserError unless the run is finished."""
        if not self.finished:
            raise UserError(
                f"{self.root} has not finished training; run `luthier train` with the same recipe again"
            )

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the run for this process alone.

        Raises:
            UserError: another process is using it, or the folder cannot be written.
        """
        folder = self.root.parent
        path = folder / f".{self.root.name}.lock"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            lock = FileLock(path, timeout=0)
            lock.acquire()
        except Timeout:
            raise UserError(
                f"another process is using {self.root}; wait for it to finish or choose another run.name"
            ) from None
        except OSError as error:
            raise UserError(f"cannot write in {folder}: {error}") from error
        try:
            if self.root.is_dir():
                remove_unfinished(self.root)
                remove_unfinished(self.teacher_path.parent)
                remove_unfinished(self.checkpoints_path)
            with self.worked_on():
                yield
        finally:
            lock.release()
            if not self.root.exists():  # nothing came of it: leave nothing behind
                path.unlink(missing_ok=True)


def _read_lines(kind: type[R], path: Path) -> list[R]:
    """The records of a JSON-lines file but for a last line that a kill cut off."""
    if not path.is_file():
        return []
    # Not splitlines: a text may hold line ends of other kinds.
    *texts, rest = path.read_bytes().split(b"\n")
    lines = []
    for number, text in enumerate([*texts, rest] if rest else texts, 1):
        try:
            lines.append(kind.model_validate_json(text))
        except ValidationError:
            if number > len(texts):
                break
            raise UserError(f"{path}:{number} is damaged") from None
    return lines


def open_run(root: Path | str) -> Run:
    """The run at ``root``, which must exist.

    Raises:
        UserError: there is no run folder there.
    """
    root = user_path(str(root))
    run = Run(root)
    try:
        found = root.is_dir()
    except (OSError, ValueError) as error:  # a name that is too long, or holds a null character
        raise UserError(f"no run folder at {str(root)[:80]!r}: {error.args[-1]}") from None
    if not found:
        siblings = sorted(p.parent.name for p in root.parent.glob("*/recipe.yaml"))
        known = f"; runs there: {', '.join(siblings)}" if siblings else ""
        raise UserError(f"no run folder at {root}{known}")
    run.read_recipe()
    return run


def claim_run(recipe: Recipe, stem: str) -> Run:
    """The folder for ``recipe``: a new one, or the one it was started in.

    A run counts as started from its first checkpoint on; before that it is overwritten. Who gives a
    recipe to train by consents to what it asks for.

    Raises:
        UserError: the folder holds a run of other settings, or is not a run folder.
    """
    name = recipe.run.name or recipe.default_name(stem)
    run = Run(Path(recipe.run.dir) / name)
    if run.root.exists() and not run.root.is_dir():
        raise UserError(f"{run.root} is a file; choose another run.name")
    if run.recipe_path.is_file():
        if run.checkpoints() or run.finished:
            _check_same(run, recipe)
    elif run.root.is_dir() and not all(map(is_unfinished, run.root.iterdir())):
        raise UserError(f"{run.root} exists and is not a run folder; choose another run.name")
    # Not to code that lies in the folder already: the recipe does not say what is in it.
    consent(recipe.with_absolute_paths(), run.root, to_train=True, code=False)
    return run


def _check_same(run: Run, recipe: Recipe) -> None:
    changes = run.read_recipe().differences(recipe.with_absolute_paths())
    if changes:
        raise UserError(
            f"{run.root} was started with other settings:\n  "
            + "\n  ".join(changes)
            + "\nchoose another run.name, or delete that folder to start over"
        )


def save_recipe(run: Run, recipe: Recipe) -> None:
    """Write the resolved recipe, the file that makes a folder a run."""
    write_text(run.recipe_path, f"{schema_comment()}\n{recipe.to_yaml()}")
