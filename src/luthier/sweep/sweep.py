"""A sweep from its question to its page: all of ``luthier sweep``."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from luthier.errors import UserError
from luthier.events import Event, Note, OnEvent, ignore
from luthier.extras import need
from luthier.files import user_path
from luthier.plan.machine import this_machine
from luthier.recipe import Recipe
from luthier.records.sweep import Dimension, Sweep
from luthier.sweep.asked import Asked
from luthier.sweep.defaults import default_space
from luthier.sweep.folder import SweepFolder
from luthier.sweep.forecast import forecast
from luthier.sweep.page import write_page
from luthier.sweep.results import conclude, keep_so_far
from luthier.sweep.shared import find_ground
from luthier.sweep.space import make_space, parse_space, shown
from luthier.sweep.study import begin, open_study
from luthier.sweep.work import work, work_together
from luthier.train.setup import resolve_model


def ask(
    recipe: Recipe,
    stem: str,
    *,
    space: Sequence[str] | Mapping[str, Any] = (),
    trials: int = 20,
    out: Path | None = None,
    budget_hours: float | None = None,
    budget_cost: float | None = None,
    price_per_hour: float | None = None,
    storage: str | None = None,
    jobs: int = 1,
    keep_all: bool = False,
    on_event: OnEvent = ignore,
) -> Asked:
    """The sweep that these options mean, checked as far as they go.

    Args:
        stem: begins the name of a folder that is not given.
        space: what is varied, see ``parse_space``, or a mapping of keys to lists or ranges; without
            any, ``default_space``.
        out: folder of the sweep.

    Raises:
        UserError: Optuna is not installed, or a key, a value or an option is wrong.
    """
    need("optuna", extra="sweep", what="luthier sweep")
    if trials < 2:
        raise UserError(
            "a sweep needs two trials at least: the recipe as it is given, and one other"
        )
    if budget_hours is not None and budget_cost is not None:
        raise UserError("give a budget in hours or in dollars, not both")
    price = price_per_hour if price_per_hour is not None else this_machine().price_per_hour
    budget = budget_hours
    if budget_cost is not None:
        if not price:
            raise UserError(
                "a budget in dollars needs the price of this machine: give --price-per-hour"
            )
        budget = budget_cost / price
    found: list[Dimension]
    if isinstance(space, Mapping):
        found = make_space([(key, spec, f"space {key}") for key, spec in space.items()], recipe)
    else:
        found = parse_space(space, recipe)
    if not found:
        found = default_space(recipe, resolve_model(recipe, on_event))
    root = user_path(str(out)) if out is not None else Path("sweeps") / _name(recipe, found, stem)
    folder = SweepFolder(root.absolute())
    return Asked(
        recipe=recipe,
        space=found,
        folder=folder,
        storage=storage or f"sqlite:///{folder.database_path.as_posix()}",
        trials=trials,
        budget_seconds=None if budget is None else budget * 3600,
        price_per_hour=price,
        jobs=jobs,
        keep_all=keep_all,
    )


def _name(recipe: Recipe, space: Sequence[Dimension], stem: str) -> str:
    """The same for the same question, so that the same command goes on."""
    asked = [recipe.settings(), [[dimension.key, shown(dimension)] for dimension in space]]
    text = json.dumps(asked, sort_keys=True)
    return f"{stem}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"


def run_sweep(asked: Asked, on_event: OnEvent = ignore) -> Sweep:
    """Run the trials that are left, judge the best, and write sweep.json, sweep.html and best.yaml.

    Raises:
        UserError: the recipe cannot be trained as it was given, or something cannot be read or
            written.
        Interrupted: the user stopped it; the trial that ran was saved, and the same call goes on.
    """
    from optuna.exceptions import StorageInternalError

    folder = asked.folder
    with folder.locked():
        study = open_study(asked)
        ground = find_ground(asked.recipe, on_event)
        begin(study, asked)
        planned = forecast(asked, ground, on_event)

        def told(event: Event) -> None:
            on_event(event)
            if isinstance(event, Note):  # a trial was drawn, or has ended
                # The record on the way is for those who look on: it stops no sweep.
                with suppress(UserError, StorageInternalError):
                    keep_so_far(study, asked, ground, planned)

        ended = work(asked, ground, told) if asked.jobs == 1 else work_together(asked, told)
        sweep = conclude(study, asked, ground, planned, ended, on_event)
        write_page(sweep, folder)
    return sweep
