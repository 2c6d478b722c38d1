"""What a run will take, predicted before it starts and kept in its plan.json."""

from collections.abc import Callable
from dataclasses import replace

from luthier.data.prepare import Prepared
from luthier.errors import UserError
from luthier.events import Note, OnEvent
from luthier.files import write_json
from luthier.models.load import load_config, refuse_quantised
from luthier.models.source import ResolvedModel, is_on_hub
from luthier.plan.calibrate import load_calibration
from luthier.plan.capacity import changes_to_fit
from luthier.plan.catalogues import find_config
from luthier.plan.estimate import make_plan, memory_of
from luthier.plan.from_recipe import dtype_on, job_of_data, job_of_shape
from luthier.plan.machine import framework_bytes, resident_bytes, this_machine
from luthier.recipe import Recipe
from luthier.records import Plan
from luthier.run import Run
from luthier.train.setup import Setup

_FEW = 8  # tokens of a row that asks for next to no memory


def refuse_what_cannot_fit(recipe: Recipe, on_event: OnEvent) -> None:
    """Stop before the weights are fetched from the hub, where no row could be trained on this machine.

    Only a certain case: the model, its gradients and its optimiser's states alone are too large. What
    depends on the rows is predicted once they are read; see ``forecast``.

    Raises:
        UserError: it is so, and the message says what would fit; or its weights are quantised in a
            way that nothing is trained on.
    """
    if not is_on_hub(recipe.model.source):
        return
    try:
        config = find_config(recipe.model.source, recipe.model.trust_remote_code)
    except UserError:  # what fetches the model says it better
        return
    if recipe.model.revision is None:
        refuse_quantised(recipe.model.source, config, recipe.method, recipe.kernels.fp8_base)
    device = this_machine()
    dtype = dtype_on(recipe.model.dtype, device, here=True)
    try:
        job = job_of_shape(recipe, dtype, 1, not device.is_cpu).here()
        job = replace(job, largest=(_FEW,))
        least = memory_of(job.step(job.largest), framework_bytes(device)).peak
        tried = changes_to_fit(job, device) if least > device.bytes else []
    except UserError as error:  # a model that cannot be simulated
        on_event(Note(f"whether the model fits could not be planned: {error}"))
        return
    if not tried:
        return
    said = (
        f"{recipe.model.source} does not fit, so its weights were not fetched: training it by "
        f"{recipe.method.name} with {job.optim} takes at least {least / 2**30:.1f} GiB, and "
        f"{device.name} has {device.bytes / 2**30:.1f} GiB"
    )
    last = tried[-1]
    would = f"{last.what} would ({last.setting}: at least {last.peak / 2**30:.1f} GiB)"
    raise UserError(f"{said}; {would}" if last.fits else f"{said}; take a smaller model")


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
    on_gpu = setup.device.type == "cuda"
    # What the run measures is resident memory on a CPU, and tensors alone on a GPU.
    framework = 0 if on_gpu else resident_bytes()
    job = job_of_data(recipe, data, config, setup.dtype, on_gpu, setup.optim).here()
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
