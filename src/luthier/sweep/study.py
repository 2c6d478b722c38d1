"""Optuna's study of a sweep: where it is kept, who proposes, who prunes, what is run again.

The proposals of a sweep depend on its seed and the trials before alone, so that one that was killed
and goes on proposes what it would have proposed. (With parallel jobs they also depend on what has
finished by then.)
"""

import warnings
from collections.abc import Sequence
from datetime import datetime
from statistics import median
from typing import TYPE_CHECKING, Any

import numpy as np

from luthier.credentials import masked
from luthier.errors import UserError
from luthier.recipe import Recipe
from luthier.recipe.keys import yaml_value
from luthier.records.sweep import Choice
from luthier.sweep.asked import Asked
from luthier.sweep.space import holds, own_value, place_of, shown

if TYPE_CHECKING:
    from optuna import Study
    from optuna.samplers import BaseSampler
    from optuna.storages import BaseStorage
    from optuna.trial import FrozenTrial

_HEARTBEAT = 30  # seconds between signs of life of a trial
_GRACE = 150  # seconds without one, after which it counts as killed
_MOST_TRIES = 3  # of a trial that is killed
_FAILURES = 3  # trials in a row that fail and end a sweep

# Median pruning: a trial ends where its best loss so far is above the median of the finished trials'
# losses at the same evaluation. It has no budget to set beforehand, as Hyperband has, whose brackets
# need more trials than a sweep of a fine-tuning run affords; half of what is as good as the others is
# kept by its rule. The first evaluation does not count: the learning rate has only just risen.
_PRUNED_FROM, _COMPARED_WITH = 2, 4


def open_study(asked: Asked) -> "Study":
    """The study, made or continued.

    Raises:
        UserError: the storage cannot be opened, or holds a sweep of this name with other settings.
    """
    import optuna

    optuna.logging.set_verbosity(optuna.logging.CRITICAL)  # what it says, the trials' records say
    settings = {
        "recipe": asked.recipe.settings(),
        "space": {dimension.key: shown(dimension) for dimension in asked.space},
    }
    try:
        storage = _storage(asked)
        study = _make(storage, asked)
        changes = _changes(study.user_attrs.get("settings"), settings, asked)
        if changes and not _has_begun(study):
            optuna.delete_study(study_name=study.study_name, storage=storage)
            study, changes = _make(storage, asked), []
        if not changes:
            study.set_user_attr("settings", settings)
    except UserError:
        raise
    except Exception as error:  # of SQLAlchemy, of the database's driver, of Optuna
        told = masked(str(error)).splitlines()
        raise UserError(
            f"the storage {masked(asked.storage)} cannot be opened: "
            f"{told[0] if told else type(error).__name__}; it takes a database URL of SQLAlchemy "
            "(sqlite:///sweep.db, postgresql://user@host/name), whose driver must be installed"
        ) from error
    if changes:
        raise UserError(
            f"the sweep {study.study_name} was started with other settings:\n  "
            + "\n  ".join(changes)
            + "\nchoose another folder with --out to start a new one"
        )
    return study


def _storage(asked: Asked) -> "BaseStorage":
    import optuna

    engine = {"connect_args": {"timeout": 60}} if asked.storage.startswith("sqlite") else {}
    with warnings.catch_warnings():  # heartbeats are experimental to it
        warnings.simplefilter("ignore")
        return optuna.storages.RDBStorage(
            asked.storage,
            engine_kwargs=engine,
            heartbeat_interval=_HEARTBEAT,
            grace_period=_GRACE,
            heartbeat_stale_trial_callback=run_again,
        )


def _make(storage: "BaseStorage", asked: Asked) -> "Study":
    import optuna

    return optuna.create_study(
        study_name=asked.folder.root.name,
        storage=storage,
        load_if_exists=True,
        pruner=optuna.pruners.MedianPruner(_COMPARED_WITH, _PRUNED_FROM),
    )


def _changes(kept: dict[str, Any] | None, settings: dict[str, Any], asked: Asked) -> list[str]:
    """What differs from a sweep that is continued, a line each."""
    if kept is None:
        return []
    recipe = Recipe.from_tree(kept["recipe"], "the recipe of the sweep")
    before, now = kept["space"], settings["space"]
    return recipe.differences(asked.recipe) + [
        f"--space {key}: {before.get(key)} -> {now.get(key)}"
        for key in {**before, **now}
        if before.get(key) != now.get(key)
    ]


def _has_begun(study: "Study") -> bool:
    """Whether there is a trial that came to something, or may."""
    from optuna.trial import TrialState

    states = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.RUNNING)
    return bool(study.get_trials(deepcopy=False, states=states))


def begin(study: "Study", asked: Asked) -> None:
    """Put the default first, and again in line what was killed in this folder.

    Only whoever holds the folder's lock may call it: nothing else is at work in it.
    """
    from optuna.trial import TrialState

    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        if trial.user_attrs.get("place") == asked.folder.place:
            study.tell(trial.number, state=TrialState.FAIL)
            run_again(study, trial)
    defaults = [trial for trial in present(study) if trial.user_attrs.get("default")]
    if not defaults:
        study.enqueue_trial(_own_values(asked), user_attrs={"default": True})
    elif defaults[-1].state == TrialState.FAIL:
        attrs = {"default": True, "folder": folder_of(defaults[-1])}
        study.enqueue_trial(_own_values(asked), user_attrs=attrs)


def _own_values(asked: Asked) -> dict[str, Any]:
    """What the recipe has for the keys of the space, where that is one of their values.

    Optuna learns from those of the default; choices are known to it by their text.
    """
    values: dict[str, Any] = {}
    for dimension in asked.space:
        value = own_value(asked.recipe, dimension.key)
        if isinstance(dimension, Choice):
            place = place_of(dimension, value)
            if place is not None:
                values[dimension.key] = yaml_value(dimension.choices[place])
        elif holds(dimension, value):
            values[dimension.key] = value
    return values


def run_again(study: "Study", trial: "FrozenTrial", *, counts: bool = True) -> None:
    """Put a trial that was cut off in line again; it goes on in the same run folder.

    Args:
        counts: as a try, of which there are few: a trial may be what kills its process.
    """
    tries = trial.user_attrs.get("tries", 1)
    if counts and tries >= _MOST_TRIES:
        return
    kept: dict[str, Any] = {
        key: trial.user_attrs[key] for key in ("default", "folder") if key in trial.user_attrs
    }
    values = {**trial.system_attrs.get("fixed_params", {}), **trial.params}
    study.enqueue_trial(values, user_attrs={**kept, "tries": tries + counts})


def proposer(asked: Asked, trials: int) -> "BaseSampler":
    """Who proposes the values of the next trial, after ``trials`` others: a TPE (Bergstra 2011)."""
    import optuna

    seed = int(np.random.SeedSequence([asked.recipe.train.seed, trials]).generate_state(1)[0])
    return optuna.samplers.TPESampler(
        seed=seed, n_startup_trials=min(10, max(4, asked.trials // 3))
    )


def folder_of(trial: "FrozenTrial") -> str:
    """The name of its run folder: that of the first try."""
    name: str = trial.user_attrs.get("folder", f"{trial.number:03}")
    return name


def present(study: "Study") -> "list[FrozenTrial]":
    """The trials as they stand, each by its last try, in order."""
    found = {int(folder_of(trial)): trial for trial in study.get_trials(deepcopy=False)}
    return [found[number] for number in sorted(found)]


def seconds_of(trial: "FrozenTrial") -> float:
    """What a try took so far; of one that was killed, until its last sign."""
    from optuna.trial import TrialState

    if trial.state == TrialState.FAIL:
        return float(trial.user_attrs.get("seconds", 0.0))
    if trial.datetime_start is None:
        return 0.0
    ended = trial.datetime_complete or datetime.now()
    return max(0.0, (ended - trial.datetime_start).total_seconds())


def spent(study: "Study") -> float:
    """Seconds that all tries of all trials took so far, on all machines."""
    return sum(map(seconds_of, study.get_trials(deepcopy=False)))


def reason_to_end(study: "Study", asked: Asked) -> str | None:
    """Why no further trial is started; None where one is."""
    from optuna.trial import TrialState

    trials = present(study)
    waiting = [trial for trial in trials if trial.state == TrialState.WAITING]
    if not waiting and len(trials) >= asked.trials:
        return f"all {asked.trials} trials were run"
    over = [trial for trial in trials if trial.state.is_finished()]
    last = over[-_FAILURES:]
    if len(last) == _FAILURES and all(is_failed(trial) for trial in last):
        return f"the last {_FAILURES} trials failed: {last[-1].user_attrs.get('why', 'killed')}"
    if asked.budget_seconds is None:
        return None
    used = spent(study)
    finished = [trial for trial in trials if trial.state == TrialState.COMPLETE]
    expected = median(map(seconds_of, finished)) if finished else 0.0
    if used + expected <= asked.budget_seconds:
        return None
    return (
        f"{used / 3600:.2f} of {asked.budget_seconds / 3600:.2f} hours of the budget are used, and a "
        f"trial takes about {expected / 60:.1f} min"
    )


def is_failed(trial: "FrozenTrial") -> bool:
    """Whether it could not be trained. Optuna counts those as pruned, so that it avoids their like."""
    from optuna.trial import TrialState

    return trial.state == TrialState.FAIL or bool(trial.user_attrs.get("failed"))


def best_of(trials: "Sequence[FrozenTrial]") -> "FrozenTrial | None":
    """The finished trial with the lowest loss; the first of several."""
    from optuna.trial import TrialState

    finished = [t for t in trials if t.state == TrialState.COMPLETE and t.value is not None]
    return min(finished, key=lambda t: float(t.value or 0.0), default=None)


def values_of(trial: "FrozenTrial", asked: Asked) -> dict[str, Any]:
    """The varied keys and the values that the trial had for them."""
    if trial.user_attrs.get("default"):
        return {d.key: own_value(asked.recipe, d.key) for d in asked.space}
    return dict(trial.user_attrs.get("values", {}))
