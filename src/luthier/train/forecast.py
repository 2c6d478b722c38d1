"""What a run will take, said before it, and how far off that was, after it."""

import json
from typing import Any

from luthier.data.prepare import Prepared
from luthier.errors import UserError
from luthier.files import write_json
from luthier.models.load import load_config
from luthier.models.source import ResolvedModel
from luthier.plan.calibrate import load_calibration
from luthier.plan.estimate import Plan, make_plan
from luthier.plan.from_recipe import job_of_data
from luthier.plan.machine import resident_bytes, this_machine
from luthier.recipe import Recipe
from luthier.run import Run
from luthier.train.callbacks import Display
from luthier.train.setup import Setup


def forecast(
    recipe: Recipe, resolved: ResolvedModel, data: Prepared, setup: Setup, display: Display
) -> Plan | None:
    """The plan of the run on this machine; None, and a note, for a model that cannot be planned."""
    config = load_config(resolved.folder, recipe.model.trust_remote_code)
    # What the run measures is resident memory on a CPU, and tensors alone on a GPU.
    framework = 0 if setup.device.type == "cuda" else resident_bytes()
    job = job_of_data(recipe, data, config, setup.dtype, setup.optim)
    try:
        plan = make_plan(job, this_machine(), load_calibration(setup.dtype), framework)
    except UserError as error:
        display.note(f"no plan: {error}")
        return None
    text = f"planned: {plan.memory.peak / 2**30:.2f} GiB at the peak, {plan.work.steps:,} steps"
    if plan.seconds is not None:
        text += f", {plan.seconds[1] / 60:,.1f} min of training"
    else:
        text += "; for the time: luthier plan --calibrate"
    display.note(text)
    if not plan.fits:
        display.note(
            f"that is more than the {plan.device_bytes / 2**30:.1f} GiB here: "
            "luthier plan RECIPE shows what would fit"
        )
    return plan


def write_plan(run: Run, plan: Plan | None) -> None:
    """Keep the plan beside the recipe."""
    if plan is None:
        run.plan_path.unlink(missing_ok=True)
    else:
        write_json(run.plan_path, plan.to_dict())


def plan_errors(run: Run, peak_bytes: int, tokens_per_second: float) -> dict[str, float] | None:
    """Planned over measured, less one, of what was planned; None where there is no plan."""
    if not run.plan_path.is_file():
        return None
    plan: dict[str, Any] = json.loads(run.plan_path.read_text("utf-8"))
    errors = {"peak_memory": round(plan["memory"]["peak"] / peak_bytes - 1, 4)}
    speed = plan["tokens_per_second"]
    if speed is not None and speed[0] == speed[1]:  # measured rates, not a range
        errors["tokens_per_second"] = round(speed[0] / tokens_per_second - 1, 4)
    return errors
