"""What a sweep found: its trials, what mattered, the best recipe, the verdict."""

import warnings
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import yaml

from luthier.credentials import masked
from luthier.errors import UserError
from luthier.events import OnEvent
from luthier.files import write_json, write_text
from luthier.recipe.json_schema import schema_comment
from luthier.recipe.keys import yaml_value
from luthier.recipe.schema import given
from luthier.records.sweep import Sweep, SweepForecast, SweepTrial, SweepVerdict, TrialState
from luthier.sweep.asked import Asked
from luthier.sweep.shared import Ground
from luthier.sweep.space import ALPHA_RATIO, own_value, with_values
from luthier.sweep.study import (
    best_of,
    folder_of,
    is_failed,
    present,
    seconds_of,
    spent,
    values_of,
)
from luthier.sweep.verdict import judge

if TYPE_CHECKING:
    from optuna import Study
    from optuna.trial import FrozenTrial

_LEAST = 4  # finished trials, below which importances say nothing


def conclude(
    study: "Study",
    asked: Asked,
    ground: Ground,
    planned: SweepForecast,
    ended: str,
    on_event: OnEvent,
) -> Sweep:
    """Judge the best trial, write its recipe, and keep all of it in ``sweep.json``.

    Raises:
        UserError: a file cannot be written.
    """
    trials = present(study)
    best = best_of(trials)
    verdict, why = _verdict(
        [_trial(trial, asked) for trial in trials], best, asked, ground, on_event
    )
    if best is not None:
        write_text(asked.folder.best_path, best_recipe(best, asked, study.study_name))
    return _keep(
        study, asked, ground, planned, ended=ended, verdict=verdict, why=why, trials=trials
    )


def keep_so_far(study: "Study", asked: Asked, ground: Ground, planned: SweepForecast) -> None:
    """Write sweep.json while trials run, for those who look on; a verdict from before stays in it.

    Raises:
        UserError: it cannot be written.
    """
    before = _verdict_before(asked)
    why = None if before is not None else "the sweep has not ended"
    _keep(study, asked, ground, planned, ended=None, verdict=before, why=why, trials=present(study))


def _keep(
    study: "Study",
    asked: Asked,
    ground: Ground,
    planned: SweepForecast,
    *,
    ended: str | None,
    verdict: SweepVerdict | None,
    why: str | None,
    trials: "list[FrozenTrial]",
) -> Sweep:
    folder, best = asked.folder, best_of(trials)
    seconds = spent(study)
    price = asked.price_per_hour
    sweep = Sweep(
        name=study.study_name,
        folder=str(folder.root),
        storage=masked(asked.storage),
        model=asked.recipe.model.source,
        method=asked.recipe.method.name,
        train_rows=ground.prepared.report.rows.train,
        choosing_rows=ground.prepared.report.rows.validation,
        judging_rows=ground.judging_rows,
        space=asked.space,
        trials=[_trial(trial, asked) for trial in trials],
        best=None if best is None else int(folder_of(best)),
        recipe=None if best is None or ended is None else str(folder.best_path),
        importance=importance(trials) if ended is not None else {},
        forecast=planned,
        seconds=round(seconds, 1),
        cost=None if price is None else seconds / 3600 * price,
        ended=ended,
        verdict=verdict,
        no_verdict=why,
        when=datetime.now(UTC).isoformat(timespec="seconds"),
    )
    write_json(folder.record_path, sweep.to_dict())
    return sweep


def _trial(trial: "FrozenTrial", asked: Asked) -> SweepTrial:
    from optuna.trial import TrialState as Found

    curve = [loss for _, loss in sorted(trial.intermediate_values.items())]
    state: TrialState = "running"  # or in line
    if is_failed(trial):
        state = "failed"
    elif trial.state == Found.COMPLETE:
        state = "finished"
    elif trial.state == Found.PRUNED:
        state = "pruned"
    name = folder_of(trial)
    return SweepTrial(
        number=int(name),
        state=state,
        default=bool(trial.user_attrs.get("default")),
        values=values_of(trial, asked),
        loss=trial.value if state == "finished" else curve[-1] if curve else None,
        curve=curve,
        seconds=round(seconds_of(trial), 1),
        folder=f"trials/{name}",
        place=trial.user_attrs.get("place", ""),
        why=trial.user_attrs.get("why"),
    )


def _verdict(
    trials: list[SweepTrial],
    best: "FrozenTrial | None",
    asked: Asked,
    ground: Ground,
    on_event: OnEvent,
) -> tuple[SweepVerdict | None, str | None]:
    """The verdict, or why there is none."""
    default = next((trial for trial in trials if trial.default), None)
    if best is None or default is None or default.state != "finished":
        return (
            None,
            "the recipe as it was given has not finished, so there is nothing to compare with",
        )
    number = int(folder_of(best))
    if number == default.number:
        return None, "no trial reached a lower validation loss than the recipe as it was given"
    places = {default.place, best.user_attrs.get("place", "")}
    if places != {asked.folder.place}:
        return None, (
            "the best trial and the default ran in different places, and only what is here can be "
            f"judged: {', '.join(sorted(places))}; train {asked.folder.best_path.name} here to compare"
        )
    before = _verdict_before(asked)
    looks = 1 if before is None else before.looks + (before.trial != number)
    first, second = (asked.folder.trial(f"{found:03}") for found in (default.number, number))
    return judge(asked.folder, first, second, ground.judging, looks, on_event), None


def _verdict_before(asked: Asked) -> SweepVerdict | None:
    if not asked.folder.record_path.is_file():
        return None
    try:
        return Sweep.from_file(asked.folder.record_path).verdict
    except UserError:  # damaged: it is written anew
        return None


def importance(trials: "list[FrozenTrial]") -> dict[str, float]:
    """The share of each key in being among the best trials, by PED-ANOVA (Watanabe et al. 2023).

    It compares where the best trials lie with where all do. Pruned and failed trials were not among
    the best, which is all that it needs to know of them. The best are a tenth, or four where those are
    more, and half at most.
    """
    import optuna
    from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances
    from optuna.trial import TrialState

    finished = [t for t in trials if t.state == TrialState.COMPLETE and t.value is not None]
    if len(finished) < _LEAST:
        return {}
    worst = max(float(trial.value or 0.0) for trial in trials if trial.value is not None)
    copied = optuna.create_study()
    for trial in trials:
        if not trial.state.is_finished() or not trial.params:
            continue
        value = trial.value if trial in finished else worst + 1
        copied.add_trial(
            optuna.create_trial(params=trial.params, distributions=trial.distributions, value=value)
        )
    share = min(0.5, max(0.1, 4 / len(copied.trials)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = get_param_importances(
            copied, evaluator=PedAnovaImportanceEvaluator(target_quantile=share)
        )
    return {key: float(value) for key, value in found.items()}


def best_recipe(best: "FrozenTrial", asked: Asked, name: str) -> str:
    """The recipe as it was given with the best trial's values, and where each is from."""
    values = {} if best.user_attrs.get("default") else values_of(best, asked)
    recipe = with_values(asked.recipe, values)
    tree = {group: keys for group, keys in given(recipe).items() if keys}
    tree.get("run", {}).pop("name", None)  # of the recipe as it was given, and its run
    tree = {group: keys for group, keys in tree.items() if keys}
    notes = {}
    for key in values:
        told = "method.lora_alpha" if key == ALPHA_RATIO else key
        before = own_value(asked.recipe, told)
        was = "as it was" if before == own_value(recipe, told) else f"it was {yaml_value(before)}"
        notes[told] = f"trial {folder_of(best)} of the sweep {name}; {was}"
    lines = [
        schema_comment(),
        f"# The best of the sweep {name}: trial {folder_of(best)}, validation loss {best.value:.4f}.",
        "# sweep.html, beside this file, says whether there is evidence that it is better.",
    ]
    for group, keys in tree.items():
        lines.append(f"{group}:")
        for key, value in keys.items():
            text = yaml.safe_dump({key: value}, allow_unicode=True, sort_keys=False).rstrip("\n")
            note = notes.get(f"{group}.{key}")
            first, *more = text.splitlines()
            lines.append(f"  {first}{f' # {note}' if note else ''}")
            lines += [f"  {line}" for line in more]
    return "\n".join(lines) + "\n"
