"""What a sweep will take, before it starts."""

from luthier.errors import UserError
from luthier.events import Note, OnEvent
from luthier.models.load import load_config
from luthier.plan.calibrate import load_calibration
from luthier.plan.estimate import make_plan
from luthier.plan.from_recipe import job_of_data
from luthier.plan.machine import this_machine
from luthier.records.sweep import Choice, SweepForecast
from luthier.sweep.asked import Asked
from luthier.sweep.shared import Ground
from luthier.train.setup import choose_setup


def forecast(asked: Asked, ground: Ground, on_event: OnEvent) -> SweepForecast:
    """The training steps of all trials, by the plan of the default, none of them pruned.

    Epochs that are varied count by their mean; rank and targets as the default has them. Validation
    is not in it.
    """
    recipe, setup = asked.recipe, choose_setup(asked.recipe)
    config = load_config(
        ground.resolved.folder, recipe.model.trust_remote_code, recipe.model.rope_scaling
    )
    calibration = load_calibration(setup.dtype)
    try:
        on_gpu = setup.device.type == "cuda"
        job = job_of_data(recipe, ground.prepared, config, setup.dtype, on_gpu, setup.optim)
        plan = make_plan(job.here(), this_machine(), calibration)
    except UserError as error:
        return _unknown(asked, f"the recipe could not be planned: {error}", on_event)
    if plan.seconds is None:
        return _unknown(
            asked,
            "this machine has not been measured, which luthier plan --calibrate does",
            on_event,
        )
    count = 1 + (asked.trials - 1) * _mean_epochs(asked) / recipe.train.num_train_epochs
    seconds = (plan.seconds[0] * count, plan.seconds[1] * count)
    price = asked.price_per_hour
    cost = None if price is None else (seconds[0] * price / 3600, seconds[1] * price / 3600)
    on_event(
        Note(
            f"planned: {asked.trials} trials, {seconds[1] / 3600:.2f} hours of training if none is "
            f"pruned{f', {cost[1]:.2f} dollars' if cost else ''} ({plan.basis})"
        )
    )
    return SweepForecast(trials=asked.trials, seconds=seconds, cost=cost, basis=plan.basis)


def _unknown(asked: Asked, basis: str, on_event: OnEvent) -> SweepForecast:
    on_event(Note(f"how long {asked.trials} trials take is not known before the first: {basis}"))
    return SweepForecast(trials=asked.trials, basis=basis)


def _mean_epochs(asked: Asked) -> float:
    key = "train.num_train_epochs"
    own = asked.recipe.train.num_train_epochs
    if asked.recipe.train.max_steps > 0:
        return own  # steps decide
    for dimension in asked.space:
        if dimension.key == key:
            if isinstance(dimension, Choice):
                return sum(map(float, dimension.choices)) / len(dimension.choices)
            return (dimension.low + dimension.high) / 2
    return own
