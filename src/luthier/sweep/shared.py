"""What all trials share: rows, tokenised once, a frozen base, loaded once, a teacher, asked once."""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from transformers import PreTrainedModel

from luthier.data.prepare import Prepared, prepare
from luthier.data.split import choose_held_out, split_key
from luthier.data.token_rows import count_tokens
from luthier.data.tokens import TokenRow
from luthier.errors import UserError
from luthier.events import OnEvent, ignore
from luthier.files import link_file
from luthier.models.load import load_model
from luthier.models.source import ResolvedModel
from luthier.recipe import Recipe
from luthier.run import Run
from luthier.sweep.folder import SweepFolder
from luthier.train.session import Materials
from luthier.train.setup import load_prepared_tokenizer, resolve_model
from luthier.train.teaching import Asking


@dataclass(frozen=True)
class Ground:
    """The model and the rows of a sweep.

    Attributes:
        prepared: training rows, and those validation rows that choose among trials.
        judging: the other validation rows, which no trial sees.
    """

    resolved: ResolvedModel
    prepared: Prepared
    judging: list[TokenRow]

    @property
    def judging_rows(self) -> int:
        return _rows(self.judging)


def find_ground(recipe: Recipe, on_event: OnEvent = ignore) -> Ground:
    """Read and tokenise the data once, and divide the validation rows into two halves.

    One half is what trials validate on: it ends them early, prunes them, keeps their best weights and
    chooses among them. The lowest of many losses on it is low by luck too, so the other half judges.

    Raises:
        UserError: the recipe's model or data is wrong, or has too few validation rows.
    """
    if not recipe.has_validation:
        raise UserError(
            "a sweep chooses by the validation loss: set data.validation or data.validation_fraction"
        )
    if recipe.data.streaming:
        raise UserError(
            "a sweep tokenises the rows once and keeps them for all trials, and data.streaming keeps none: "
            "take it out, and set data.max_rows if there are too many rows"
        )
    resolved = resolve_model(recipe, on_event)
    tokenizer = load_prepared_tokenizer(recipe, resolved.folder, None, on_event).tokenizer
    whole = prepare(recipe, tokenizer, on_event)
    keys = [split_key(row.conversation) for row in whole.validation]
    judges = choose_held_out(keys, 0.5, recipe.train.seed)
    choosing = [row for row, key in zip(whole.validation, keys, strict=True) if key not in judges]
    judging = [row for row, key in zip(whole.validation, keys, strict=True) if key in judges]
    if not choosing or not judging:
        raise UserError(
            f"a sweep needs validation rows of two prompts at least, one half to choose and one to "
            f"judge, and there are {_rows(whole.validation)}: raise data.validation_fraction, or give "
            "more rows in data.validation"
        )
    report = whole.report.model_copy(
        update={
            "rows": whole.report.rows.model_copy(update={"validation": _rows(choosing)}),
            "tokens": whole.report.tokens.model_copy(update={"validation": count_tokens(choosing)}),
        }
    )
    return Ground(resolved, Prepared(whole.train, choosing, report), judging)


def _rows(rows: list[TokenRow]) -> int:
    return len({row.source for row in rows})


class Shared:
    """The materials of trials. A trial trains the same to the bit as a run that read its own."""

    def __init__(self, ground: Ground, folder: SweepFolder) -> None:
        self.ground, self.folder = ground, folder
        self._base: PreTrainedModel | None = None
        self._key: tuple[Any, ...] = ()

    def materials(self, recipe: Recipe) -> Materials:
        """For a trial by ``recipe``, which differs from the others in method and training alone."""
        method = recipe.method
        frozen = (
            method.name != "full"
            and method.bias == "none"
            and method.init_lora_weights in (True, "gaussian", "eva")
        )
        load: Callable[..., PreTrainedModel] = self._frozen if frozen else load_model
        return Materials(prepare=lambda *_: self.ground.prepared, load=load, teach=self._teach)

    def _teach(self, run: Run, dtype: str, load: Callable[[], Asking]) -> Asking:
        """As an earlier trial was taught: rows and teacher are the same in all. Of jobs that begin
        together one asks, and the others wait for it.
        """
        if self._taught(dtype) is not None:
            return lambda: self._share(run, dtype)
        ask = load()

        def write() -> None:
            with FileLock(self.folder.teaching_path):
                if self._taught(dtype) is None:
                    ask()
                else:
                    self._share(run, dtype)

        return write

    def _taught(self, dtype: str) -> Path | None:
        """What a teacher that computed in ``dtype`` told a trial, where one was told."""
        for root in sorted(self.folder.trials_path.glob("*")):
            trial = Run(root)
            if trial.teacher_path.is_file() and trial.provenance().dtype == dtype:
                return trial.teacher_path
        return None

    def _share(self, run: Run, dtype: str) -> None:
        found = self._taught(dtype)
        assert found is not None
        if found != run.teacher_path:
            link_file(found, run.teacher_path)

    def _frozen(
        self, folder: Path, dtype: torch.dtype, *, on_event: OnEvent = ignore, **how: Any
    ) -> PreTrainedModel:
        """The base with modules of its own, for an adapter, over tensors that all trials share."""
        key = (folder, dtype, repr(how))
        if self._base is None or key != self._key:
            self._base = None  # never two of them in memory
            self._base = load_model(folder, dtype, on_event=on_event, **how)
            self._key = key
        base = self._base
        tensors = {id(t): t for t in chain(base.parameters(), base.buffers())}
        return copy.deepcopy(base, tensors)
