"""The folders that the board was given: it reads and writes nothing elsewhere."""

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from luthier.api import ComparisonFolder, SweepFolder
from luthier.errors import UserError
from luthier.files import user_path
from luthier.recipe import Recipe
from luthier.run import Run

_OWN = ".board"
_NAME = re.compile(r"[\w][\w .+=@-]*")


@dataclass(frozen=True)
class Study:
    """A comparison or a sweep, and what it is called here."""

    name: str
    folder: ComparisonFolder | SweepFolder

    @property
    def is_sweep(self) -> bool:
        return isinstance(self.folder, SweepFolder)

    @property
    def runs_path(self) -> Path:
        """Where its runs are."""
        folder = self.folder
        return folder.trials_path if isinstance(folder, SweepFolder) else folder.runs_path

    def runs(self) -> list[Run]:
        """Its runs so far, by name."""
        found = [Run(root) for root in _folders(self.runs_path)]
        return [run for run in found if run.recipe_path.is_file()]

    def run_name(self, run: Run) -> str:
        """What ``Folders.run`` finds a run of this study by."""
        return f"{self.name}:{run.root.name}"


def _folders(place: Path) -> list[Path]:
    """The folders in ``place`` by name, links and hidden ones left out."""
    try:
        with os.scandir(place) as entries:
            return sorted(
                Path(entry.path)
                for entry in entries
                if entry.name[0] != "." and entry.is_dir(follow_symlinks=False)
            )
    except OSError:
        return []


def _kind(root: Path) -> type[ComparisonFolder] | type[SweepFolder] | None:
    """What ``luthier compare`` or ``luthier sweep`` has made of a folder, as soon as it began."""
    sweep, comparison = SweepFolder(root), ComparisonFolder(root)
    if sweep.record_path.is_file() or sweep.trials_path.is_dir():
        return SweepFolder
    begun = (comparison.record_path.is_file(), comparison.answers_path.is_file())
    return ComparisonFolder if any(begun) or comparison.runs_path.is_dir() else None


@dataclass(frozen=True)
class Folders:
    """Where runs are, and where else data and models may be read; absolute, links resolved.

    Attributes:
        results: folders that are, or hold, comparisons and sweeps.
    """

    runs: Path
    data: tuple[Path, ...] = ()
    results: tuple[Path, ...] = ()

    @property
    def own(self) -> Path:
        """What the board keeps: tags, uploads, preferences."""
        return self.runs / _OWN

    @property
    def uploads(self) -> Path:
        return self.own / "uploads"

    @property
    def tags(self) -> Path:
        return self.own / "tags.json"

    @property
    def index(self) -> Path:
        """What the list shows of finished runs, so that not all are read again."""
        return self.own / "index.json"

    @property
    def preferences(self) -> Path:
        """Answers that a person preferred, one JSON object a line."""
        return self.own / "preferences.jsonl"

    def run(self, name: str) -> Run:
        """The run called ``name``: one in the folder of runs, or ``STUDY:NAME``, one of a study.

        Raises:
            UserError: there is none.
        """
        study, colon, inner = name.partition(":")
        folder = self.runs
        if colon and not self._is_run(folder, name):
            folder, name = self.study(study).runs_path, inner
        if not self._is_run(folder, name):
            raise UserError(f"there is no run {name!r} in {folder}")
        run = Run(folder / name)
        for path in (
            *(run.recipe_path, run.provenance_path, run.plan_path, run.metrics_path),
            *(run.events_path, run.measured_path, run.evaluation_path, run.answered_rows_path),
        ):
            if not self._within(path, (run.root,)):
                raise UserError(f"{path} is a link that leads out of its run, so it is not shown")
        return run

    def _is_run(self, folder: Path, name: str) -> bool:
        inside = "/" not in name and "\\" not in name and not name.startswith(".")
        root = folder / name
        try:
            # A link may lead anywhere.
            there = inside and root.resolve().parent == folder and root.is_dir()
        except (OSError, ValueError):
            return False
        return there and Run(root).recipe_path.is_file()

    def studies(self) -> list[Study]:
        """The comparisons and sweeps, each under a name of its own."""
        found: dict[str, Study] = {}
        for place in self.results:
            for root in (place, *_folders(place)):
                kind = _kind(root)
                if kind is not None and self._within(kind(root).record_path, (root,)):
                    name, number = root.name, 2
                    while name in found:
                        name, number = f"{root.name}-{number}", number + 1
                    found[name] = Study(name, kind(root))
        return list(found.values())

    def study(self, name: str) -> Study:
        """The comparison or sweep called ``name``.

        Raises:
            UserError: there is none.
        """
        for study in self.studies():
            if study.name == name:
                return study
        places = ", ".join(map(str, self.results)) or "no folder of results"
        raise UserError(f"there is no comparison or sweep {name!r} in {places}")

    def best_recipe(self, sweep: Study) -> str:
        """The best trial's recipe of a sweep.

        Raises:
            UserError: it cannot be read, or is a link that leads elsewhere.
        """
        assert isinstance(sweep.folder, SweepFolder)
        path = sweep.folder.best_path
        if not self._within(path, (sweep.folder.root,)):
            raise UserError(f"{path} is a link that leads out of its sweep, so it is not shown")
        try:
            return path.read_text("utf-8", "replace")
        except OSError as error:
            raise UserError(f"cannot read {path}: {error.strerror}") from error

    def starting(self, name: str) -> Run | None:
        """A run that was started here and has no settings yet: its process still imports, or failed."""
        run = Run(self.runs / name)
        return run if _NAME.fullmatch(name) and run.output_path.is_file() else None

    def files(self, run: Run) -> Iterator[Path]:
        """The files of a run, links left out."""
        for path in sorted(run.root.rglob("*")):
            if path.is_file() and not path.is_symlink() and self._within(path, (run.root,)):
                yield path

    def file(self, run: Run, relative: str) -> Path:
        """A file of ``run``.

        Raises:
            UserError: there is none, or it leads out of the run.
        """
        path = run.root / relative
        try:
            if path.is_file() and self._within(path, (run.root,)):
                return path
        except (OSError, ValueError):
            pass
        raise UserError(f"there is no file {relative!r} in {run.root}")

    def readable(self, text: str) -> Path:
        """The path that a person typed.

        Raises:
            UserError: it is in none of the folders that the board was given.
        """
        path = user_path(text)
        try:
            allowed = self._within(path, (self.runs, *self.data))
        except (OSError, ValueError):
            allowed = False
        if not allowed:
            places = ", ".join(map(str, (self.runs, *self.data)))
            raise UserError(
                f"{text} is not in a folder that the board may read ({places}); upload it, or start "
                "the board with --data DIR"
            )
        return path

    def check(self, recipe: Recipe) -> Recipe:
        """``recipe`` for a run in the folder of runs; all its paths must be readable here.

        Raises:
            UserError: one leads elsewhere, or its name is not one for a folder.
        """
        name = recipe.run.name
        if name is not None and not _NAME.fullmatch(name):
            raise UserError(f"run.name: {name!r} is not a name for a folder")
        full = recipe.changed(run={"dir": str(self.runs)}).with_absolute_paths()
        replay = [full.data.replay.source] if full.data.replay else []
        named = [
            full.model.source,
            full.objective.teacher,
            *full.train_files,
            full.data.validation,
            *replay,
        ]
        named += [full.evaluate.sql_databases, full.evaluate.json_schema, *full.evaluate.metrics]
        for text in named:
            if text is not None and Path(text).is_absolute():
                self.readable(text)
        return full

    def upload(self, name: str) -> Path:
        """Where an uploaded file goes: under its own name, with a number where that is taken.

        Raises:
            UserError: its name is not one for a file.
        """
        if not _NAME.fullmatch(name) or len(name) > 120:
            raise UserError(
                f"{name!r} is not a name for a file here; rename it and upload it again"
            )
        path, number = self.uploads / name, 2
        while path.exists():
            path = self.uploads / f"{Path(name).stem}-{number}{Path(name).suffix}"
            number += 1
        return path

    def _within(self, path: Path, folders: tuple[Path, ...]) -> bool:
        real = path.resolve()
        return any(real.is_relative_to(folder.resolve()) for folder in folders)
