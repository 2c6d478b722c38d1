"""What a run will take, predicted before it starts and kept in its plan.json."""

from collections.abc import Callable

from luthier.data.prepare import Prepared
from luthier.errors import UserError
from luthier.events import Note, OnEvent
from luthier.files import write_json
from luthier.models.load import load_config
from luthier.models.source import ResolvedModel
from luthier.plan.calibrate import load_calibration
from luthier.plan.estimate import make_plan
from luthier.plan.from_recipe import job_of_data
from luthier.plan.machine import resident_bytes, this_machine
from luthier.recipe import Recipe
from luthier.records import Plan
from luthier.run import Run
from luthier.train.setup import Setup


def forecast(
    recipe: Recipe, resolved: ResolvedModel, data: Prepared, setup: Setup, on_event: OnEvent
) -> Callable[[Run], None]:
    """Predict what a run will take on this machine; see ``luthier.train.session.Forecast``."""
    plan = _plan(recipe, resolved, data, setup, on_event)

    def keep(run: Run) -> None:
        if plan is None:
            run.plan_path.unlink(missing_ok=True)
        else:
            write_json(run.plan_path, plan.to_dict())

    return keep


def _plan(
    recipe: Recipe, resolved: ResolvedModel, data: Prepared, setup: Setup, on_event: OnEvent
) -> Plan | None:
    config = load_config(resolved.folder, recipe.model.trust_remote_code, recipe.model.rope_scaling)
    # What the run measures is resident memory on a CPU, and tensors alone on a GPU.
    framework = 0 if setup.device.type == "cuda" else resident_bytes()
    job = job_of_data(recipe, data, config, setup.dtype, setup.optim)
    try:
        plan = make_plan(job, this_machine(), load_calibration(setup.dtype), framework)
    except UserError as error:
        on_event(Note(f"the run could not be planned: {error}"))
        return None
    text = f"planned: {plan.memory.peak / 2**30:.2f} GiB at the peak, {plan.work.steps:,} steps"
    if plan.seconds is not None:
        text += f", {plan.seconds[1] / 60:,.1f} min of training"
    else:
        text += "; to predict the time too, run luthier plan --calibrate"
    on_event(Note(text))
    if not plan.fits:
        on_event(
            Note(
                f"the plan exceeds the {plan.device_bytes / 2**30:.1f} GiB of this machine: "
                "luthier plan RECIPE shows what would fit",
                warning=True,
            )
        )
    return plan
