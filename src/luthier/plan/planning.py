"""Jobs planned on a device: memory, time, what fits, what would make it fit, break-even."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from luthier.errors import UserError
from luthier.events import Note, OnEvent, during, ignore
from luthier.kernels.fp8_base import CARDS, refuse_device
from luthier.models.dtype import pick_device
from luthier.plan.calibrate import load_calibration
from luthier.plan.capacity import Capacity, Change, capacities, changes_to_fit
from luthier.plan.catalogues import Accelerator, accelerators, find_accelerator
from luthier.plan.estimate import make_plan
from luthier.plan.from_recipe import dtype_on, job_of_recipe, job_of_shape
from luthier.plan.job import Job
from luthier.plan.machine import framework_bytes, this_machine
from luthier.plan.money import BreakEven, break_even
from luthier.plan.ranks import RankPlan, Ranks, plan_ranks, seconds_of_a_step
from luthier.recipe import MethodName, Recipe
from luthier.records.plan import Plan
from luthier.tables import Tabular


@dataclass(frozen=True)
class Target:
    """A device to plan for; ``here``: it is this machine, whose speed can be measured."""

    device: Accelerator
    here: bool
    hardware: Path | None = None

    @property
    def on_gpu(self) -> bool:
        return not self.device.is_cpu


def find_target(
    gpu: str | None = None,
    memory: float | None = None,
    hardware: Path | None = None,
    price: float | None = None,
) -> Target:
    """This machine, or another device.

    Args:
        gpu: a name of the catalogue.
        memory: of a GPU that is not in it, in GB.
        hardware: a YAML file laid over the catalogue.
        price: US dollars per hour.

    Raises:
        UserError: no such device, or two of them.
    """
    if gpu is not None and memory is not None:
        raise UserError("give a GPU by name or by its memory, not both")
    if gpu is not None:
        device = find_accelerator(gpu, hardware)
    elif memory is not None:
        device = Accelerator(f"a GPU of {memory:g} GB", memory)
    else:
        device = this_machine()
    if price is not None:
        device = replace(device, price_per_hour=price)
    return Target(device, gpu is None and memory is None, hardware)


def jobs_of_recipe(
    recipe: Recipe, target: Target, methods: Sequence[MethodName] = (), on_event: OnEvent = ignore
) -> list[Job]:
    """The job of a recipe with its own data, by its own method or by each of ``methods``.

    Raises:
        UserError: the recipe's model or data is wrong.
    """
    dtype = dtype_on(recipe.model.dtype, target.device, target.here)
    job, assumed = job_of_recipe(recipe, dtype, target.on_gpu, on_event)
    job = job.here() if target.here else job
    if assumed:
        on_event(Note(assumed, warning=True))
    return [job.with_method(name) for name in methods] if methods else [job]


def job_without_data(recipe: Recipe, rows: int, target: Target) -> Job:
    """The job of a recipe without data: ``rows`` rows of ``data.max_length`` tokens.

    Raises:
        UserError: no such model, or it has fewer positions.
    """
    dtype = dtype_on(recipe.model.dtype, target.device, target.here)
    job = job_of_shape(recipe, dtype, rows, on_gpu=target.on_gpu)
    return job.here() if target.here else job


@dataclass(frozen=True)
class Planned(Tabular):
    """What jobs of one model take.

    Attributes:
        plans: one for each method.
        fits: by method, the largest micro-batch and row on each device.
        changes: by method that does not fit, what would make it fit.
        sweep: runs that ``costs`` counts.
        break_even: by method, the break-even point against an API.
        calibrated: whether times rest on this machine's measured speed.
        ranks: by method, each strategy on several processes, where they were asked for.
    """

    plans: list[Plan]
    fits: dict[str, list[Capacity]]
    changes: dict[str, list[Change]]
    sweep: int
    break_even: dict[str, BreakEven | None]
    calibrated: bool
    ranks: dict[str, list[RankPlan]] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        costs = {p.method: p.cost and [c * self.sweep for c in p.cost] for p in self.plans}
        return {
            "plans": [p.to_dict() for p in self.plans],
            "fits": {name: [asdict(c) for c in found] for name, found in self.fits.items()},
            "changes": {name: [asdict(c) for c in tried] for name, tried in self.changes.items()},
            "sweep": {name: {"runs": self.sweep, "cost": cost} for name, cost in costs.items()},
            "ranks": {name: [asdict(r) for r in found] for name, found in self.ranks.items()},
            "break_even": {name: even and asdict(even) for name, even in self.break_even.items()},
        }


def _trainable(jobs: Sequence[Job], on_event: OnEvent) -> list[Job]:
    """Those whose method trains on the base as it is stored."""
    found = []
    for number, job in enumerate(jobs, 1):
        try:
            job.check_base()
            found.append(job)
        except UserError as error:
            if number == len(jobs) and not found:
                raise
            on_event(Note(f"{job.method.name} is left out: {error}", warning=True))
    return found


def plan_jobs(
    jobs: Sequence[Job],
    target: Target,
    sweep: int = 1,
    api_price: float | None = None,
    on_event: OnEvent = ignore,
    ranks: Sequence[Ranks] = (),
    capacity: bool = True,
) -> Planned:
    """Simulate a step of each job and predict what it takes on ``target``.

    Args:
        sweep: number of runs that the cost covers.
        api_price: price of an API, US dollars per million tokens.
        ranks: processes to plan each job for, besides one.
        capacity: whether to look for the largest micro-batch and row on each device, too.

    Raises:
        UserError: a model cannot be planned for (see ``simulate``), its weights are quantised in a way that
            none of the methods trains on, or ``target`` lacks 8-bit products that a job asks for.
    """
    jobs = _trainable(jobs, on_event)
    in_fp8 = any(job.kernels.fp8_base for job in jobs)
    if in_fp8 and target.here:
        refuse_device(pick_device())
    if in_fp8 and target.device.lacks_float8:
        raise UserError(
            f"kernels.fp8_base: {target.device.name} does not multiply 8-bit numbers as it needs (it takes "
            f"{CARDS}); set kernels.fp8_base=false"
        )
    calibration = load_calibration(jobs[0].dtype) if target.here else None
    devices = [target.device]
    if target.here:
        devices += accelerators(target.hardware).values()
    plans: list[Plan] = []
    fits: dict[str, list[Capacity]] = {}
    changes: dict[str, list[Change]] = {}
    on_ranks: dict[str, list[RankPlan]] = {}
    for job in jobs:
        name = job.method.name
        with during(f"simulating a step, {name}", on_event):
            steps = job.steps_of_both()
            plans.append(make_plan(job, target.device, calibration, steps=steps))
        if ranks:
            computing = seconds_of_a_step(plans[-1])
            framework = framework_bytes(target.device)
            on_ranks[name] = [
                planned
                for each in ranks
                for planned in plan_ranks(job, steps, computing, each, target.device, framework)
            ]
        with during(f"looking for what fits, {name}", on_event):
            if capacity:
                able = [d for d in devices if not (job.kernels.fp8_base and d.lacks_float8)]
                found = {room.device: room for room in capacities(job, able)}
                fits[name] = [found.get(d.name, Capacity(d.name, 0, 0, 0)) for d in devices]
            if not plans[-1].fits:
                changes[name] = changes_to_fit(job, target.device)
    pays = {
        p.method: break_even(
            (p.cost[0] * sweep, p.cost[1] * sweep), api_price, target.device, p.weight_bytes
        )
        for p in plans
        if api_price is not None and p.cost is not None
    }
    return Planned(plans, fits, changes, sweep, pays, calibration is not None, on_ranks)
