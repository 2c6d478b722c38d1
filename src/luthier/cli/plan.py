"""`luthier plan`."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from luthier import api
from luthier.cli.app import Json, Overrides, app, err, out, print_json
from luthier.cli.terminal import terminal
from luthier.errors import UserError
from luthier.events import tracked
from luthier.recipe import MethodName, load_recipe, model_recipe, parse_overrides

if TYPE_CHECKING:
    from luthier.api import Accelerator, Capacity, Change, Job, Plan, Range, RankPlan, Ranks


@app.command()
def plan(
    recipe_path: Annotated[
        Path | None, typer.Argument(metavar="[RECIPE]", help="A recipe; without one give --model.")
    ] = None,
    overrides: Overrides = None,
    model: Annotated[
        str | None, typer.Option("--model", "-m", help="Catalogue name, folder or hub id.")
    ] = None,
    method: Annotated[str | None, typer.Option(help="all, full, lora or qlora.")] = None,
    seq_len: Annotated[int, typer.Option(min=8, help="Tokens per row, without a recipe.")] = 1024,
    batch_size: Annotated[
        int, typer.Option(min=1, help="Rows per micro-batch, without a recipe.")
    ] = 4,
    rows: Annotated[int, typer.Option(min=1, help="Training rows, without a recipe.")] = 1000,
    lora_r: Annotated[int, typer.Option(min=1, help="LoRA rank, without a recipe.")] = 16,
    optim: Annotated[str | None, typer.Option(help="Optimiser; default: the method's.")] = None,
    dtype: Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16.")] = "auto",
    gradient_checkpointing: Annotated[
        bool, typer.Option("--gradient-checkpointing", help="Recompute activations.")
    ] = False,
    gpu: Annotated[
        str | None, typer.Option(help="A device of the catalogue; default: this machine.")
    ] = None,
    memory: Annotated[float | None, typer.Option(min=0.1, help="Or GPU memory in GB.")] = None,
    hardware: Annotated[
        Path | None,
        typer.Option(help="YAML file that adds to the hardware catalogue: prices, devices."),
    ] = None,
    price: Annotated[float | None, typer.Option(min=0, help="US dollars per hour.")] = None,
    sweep: Annotated[int, typer.Option(min=1, help="Also the cost of this many runs.")] = 1,
    api_price: Annotated[
        float | None,
        typer.Option(min=0, help="API price per million tokens, for the break-even point."),
    ] = None,
    nproc: Annotated[
        int | None, typer.Option(min=1, help="Also plan for so many processes on a machine.")
    ] = None,
    nodes: Annotated[int, typer.Option(min=1, help="Machines, of --nproc processes each.")] = 1,
    link: Annotated[
        float | None,
        typer.Option(min=0.001, help="GB/s between devices of a machine; default: the device's."),
    ] = None,
    network: Annotated[
        float | None,
        typer.Option(
            min=0.001, help="GB/s of each device to other machines; default: its maker's."
        ),
    ] = None,
    scaling: Annotated[
        bool,
        typer.Option("--scaling", help="Processes from 1 to 1,024, --nproc (8) on each machine."),
    ] = False,
    calibrate: Annotated[
        bool,
        typer.Option("--calibrate", help="First measure this machine's speed (half a minute)."),
    ] = False,
    tables: Annotated[
        bool, typer.Option("--tables", help="Show the classic memory tables, computed.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Predict a run's memory, time and cost before it starts, and which devices it fits on.

    One step of the real training loop is simulated on fake tensors, which have shapes but no storage;
    no weights are downloaded. With a RECIPE, the rows of its own data are used.

    Examples: `luthier plan recipes/lora.yaml`, or
    `luthier plan --model llama-3.1-8b --method all --gpu rtx-4090`
    """
    if calibrate:
        _calibrate(as_json and recipe_path is None and model is None)
        if recipe_path is None and model is None:
            return
    if tables:
        _show_tables(as_json)
        return
    if (recipe_path is None) == (model is None):
        raise UserError("give either a RECIPE or --model NAME (luthier plan --help)")
    methods = _chosen(method or "all")
    target = api.find_target(gpu, memory, hardware, price)
    with terminal() as on_event:
        if recipe_path is not None:
            recipe = load_recipe(recipe_path, overrides or [])
            jobs = api.jobs_of_recipe(recipe, target, methods if method else (), on_event)
        else:
            assert model is not None
            changes = parse_overrides(overrides or [])
            jobs = []
            for name in methods:
                shape = model_recipe(
                    model,
                    model={"dtype": dtype},
                    method={"name": name, "lora_r": lora_r},
                    data={"max_length": seq_len},
                    train={
                        "per_device_train_batch_size": batch_size,
                        "gradient_checkpointing": gradient_checkpointing,
                        "optim": optim,
                    },
                )
                jobs.append(api.job_without_data(shape.changed(**changes), rows, target))
        ranks = _ranks(target.device, nproc, nodes, link, network, scaling)
        planned = api.plan_jobs(jobs, target, sweep, api_price, on_event, ranks)
    if as_json:
        print_json(planned.to_dict())
        return
    _show_memory(planned.plans)
    _show_time(planned.plans, sweep)
    for planned_for, found in planned.ranks.items():
        _show_ranks(planned_for, found)
    for changed, tried in planned.changes.items():
        _show_changes(changed, tried, target.device)
    _show_room(planned.fits, jobs[0])
    for paying, even in planned.break_even.items():
        _say_break_even(paying, even, target.device)
    if target.here and not planned.calibrated:
        out.print(
            "to predict the time, measure this machine first: luthier plan --calibrate (half a minute)",
            highlight=False,
        )


def _ranks(
    device: "Accelerator",
    nproc: int | None,
    nodes: int,
    link: float | None,
    network: float | None,
    scaling: bool,
) -> "list[Ranks]":
    if nproc is None and not scaling:
        if nodes > 1:
            raise UserError("--nodes needs --nproc, the processes on each of them")
        return []
    asked = api.Ranks(nproc or 8, nodes, link or device.link, network or device.network)
    return list(api.rank_sizes(asked)) if scaling else [asked]


def _chosen(method: str) -> "tuple[MethodName, ...]":
    methods: tuple[MethodName, ...] = ("full", "lora", "qlora")
    if method == "all":
        return methods
    found = tuple(name for name in methods if name == method)
    if not found:
        raise UserError(f"--method must be all, full, lora or qlora, not '{method}'")
    return found


def _calibrate(as_json: bool) -> None:
    from luthier.api import calibrate

    with terminal() as on_event:
        found = calibrate(on_event)
    if as_json:
        print_json(asdict(found))
        return
    err.print(
        f"calibrated in {found.dtype}: median error on the timed steps {found.error:.0%}",
        highlight=False,
    )


def _show_memory(plans: "list[Plan]") -> None:
    first = plans[0]
    out.print(
        f"{first.model}, {first.dtype}, on {first.device} ({_size(first.device_bytes)}): "
        f"micro-batches of {first.rows} rows, {first.largest_batch_tokens:,} tokens at most"
        + (", activations recomputed" if first.gradient_checkpointing else ""),
        highlight=False,
        soft_wrap=True,
    )
    for plan in plans:
        if plan.reference is not None:
            out.print(f"reference of {plan.method}: {plan.reference}", highlight=False)
    table = Table("memory", *(p.method for p in plans))
    for column in table.columns[1:]:
        column.justify = "right"
    names = {
        "weights": "weights, frozen and trainable",
        "adapter": "adapter",
        "gradients": "gradients",
        "optimizer": "optimiser state",
        "activations": "activations",
        "logits_and_loss": "logits and loss",
        "temporary": "temporary",
    }
    for key, title in names.items():
        table.add_row(title, *(_size(p.memory.parts[key]) for p in plans))
    table.add_row("framework", *(_size(p.memory.framework) for p in plans), end_section=True)
    for phase in ("load", "forward", "backward", "step"):
        table.add_row(f"while: {phase}", *(_size(p.memory.phases[phase]) for p in plans))
    table.add_section()
    table.add_row("peak", *(_size(p.memory.peak) for p in plans), style="bold")
    table.add_row("fits", *("[green]yes" if p.fits else "[red]no" for p in plans))
    out.print(table)
    out.print(
        "the parts are not all in memory at once, so the peak is less than their sum", style="dim"
    )


def _show_time(plans: "list[Plan]", sweep: int) -> None:
    table = Table("work and time", *(p.method for p in plans))
    for column in table.columns[1:]:
        column.justify = "right"

    def row(title: str, *cells: str) -> None:
        table.add_row(title, *cells)

    row(
        "trainable parameters",
        *(
            f"{p.trainable_parameters:,} ({p.trainable_parameters / p.total_parameters:.2%})"
            for p in plans
        ),
    )
    row("optimiser", *(p.optim for p in plans))
    row("steps, tokens", *(f"{p.work.steps:,}, {p.work.tokens:,}" for p in plans))
    row("operations per token", *(f"{p.work.flops_per_token / 1e9:,.2f} GFLOP" for p in plans))
    row(
        "  by the rule (6N, 4N)",
        *(f"{p.work.by_rule / p.work.tokens / 1e9:,.2f} GFLOP" for p in plans),
    )
    row("  share of attention", *(f"{p.work.attention_share:.0%}" for p in plans))
    row("operations in total", *(f"{p.work.flops / 1e15:,.3f} PFLOP" for p in plans))
    row("tokens/s", *(_range(p.tokens_per_second, "{:,.0f}") for p in plans))
    row("time", *(_hours(p.seconds) for p in plans))
    row("cost", *(_range(p.cost, "${:,.2f}") for p in plans))
    row("energy", *(_range(p.energy, "{:,.2f} kWh") for p in plans))
    if sweep > 1:
        row(
            f"{sweep} runs",
            *(_range(p.cost and (p.cost[0] * sweep, p.cost[1] * sweep), "${:,.2f}") for p in plans),
        )
    out.print(table)
    out.print(f"times are {plans[0].basis}", style="dim", highlight=False)


def _show_ranks(method: str, found: "list[RankPlan]") -> None:
    table = Table(title=f"{method} in several processes, each with the recipe's micro-batches")
    for column in (
        "",
        "ranks",
        "GiB a rank",
        "sent a step",
        "sending",
        "step",
        "thousand tokens/s",
    ):
        table.add_column(column, justify="left" if not column else "right", overflow="fold")
    table.add_column("of ideal", justify="right", overflow="fold")
    for before, plan in zip([None, *found], found, strict=False):
        if before is not None and before.ranks != plan.ranks:
            table.add_section()
        table.add_row(
            plan.strategy,
            f"{plan.ranks:,}" + (f" on {plan.nodes:,}" if plan.nodes > 1 else ""),
            f"{plan.peak / 2**30:,.1f}" + ("" if plan.fits else " [red]no"),
            _size(round(plan.traffic.bytes)),
            "unknown" if plan.sending is None else f"{plan.sending:,.3f} s",
            _range(plan.step, "{:,.3f} s"),
            _thousands(plan.tokens_per_second),
            _range(plan.efficiency, "{:.0%}"),
        )
    out.print(table)
    if len({plan.ranks for plan in found}) > 2:
        _draw_efficiency(found)
    out.print(
        f"computing takes {_range(found[0].computing, '{:,.3f} s')} of each step. By ring formulas "
        "(docs/plan.md): the least step hides all sending behind computing, the most hides none. `luthier train --nproc` runs DDP, ZeRO-2 and FSDP2 by train.parallel",
        style="dim",
    )


def _draw_efficiency(found: "list[RankPlan]") -> None:
    """Bars of the share of the ideal speed by number of ranks, a row for each strategy."""
    table = Table("", "no sending hidden", "all of it", box=None, padding=(0, 2))
    for strategy in dict.fromkeys(plan.strategy for plan in found):
        shares = [plan.efficiency for plan in found if plan.strategy == strategy]
        table.add_row(strategy, *("".join(_bar(s and s[end]) for s in shares) for end in (0, 1)))
    sizes = sorted({plan.ranks for plan in found})
    out.print(f"of the ideal speed, {sizes[0]:,} to {sizes[-1]:,} ranks; a full bar is all of it")
    out.print(table)


def _thousands(tokens: "Range | None") -> str:
    return _range(tokens and (tokens[0] / 1e3, tokens[1] / 1e3), "{:,.0f}")


def _bar(share: float | None) -> str:
    return "?" if share is None else "▁▂▃▄▅▆▇█"[min(7, int(8 * share))]


def _show_changes(method: str, tried: "list[Change]", device: "Accelerator") -> None:
    table = Table(f"{method} does not fit; changes, tried one after another", "peak", "", "how")
    table.columns[1].justify = "right"
    table.columns[3].overflow = "fold"
    for change in tried:
        table.add_row(
            change.what, _size(change.peak), "[green]fits" if change.fits else "no", change.setting
        )
    out.print(table)
    if any("FSDP" in change.what for change in tried):
        out.print(
            "sharding over GPUs is computed by formula (ZeRO stage 3); train.parallel: fsdp2 is of that kind",
            style="dim",
        )
    if not tried[-1].fits:
        out.print(f"no change makes it fit on {device.name}: use a larger device", style="yellow")


def _show_room(room: "dict[str, list[Capacity]]", job: "Job") -> None:
    longest = max(job.largest)
    table = Table("what fits", *(f"{name}: rows of {longest:,}, longest row" for name in room))
    for column in table.columns[1:]:
        column.justify = "right"
    for found in zip(*room.values(), strict=True):
        cells = (f"{c.rows:,}, {c.sequence:,}" if c.tokens else "–" for c in found)
        table.add_row(found[0].device, *cells)
    out.print(table)


def _say_break_even(method: str, even: Any, device: "Accelerator") -> None:
    if even is None:
        text = f"{method}: the break-even point needs the price and bandwidth of {device.name}"
    elif even.tokens is None:
        text = (
            f"{method}: never breaks even: serving on {device.name} costs ${even.own_price:,.2f} per "
            f"million tokens, the API ${even.api_price:,.2f}"
        )
    else:
        text = (
            f"{method}: breaks even after {_range(even.tokens, '{:,.0f}')} tokens (per million tokens: "
            f"${even.own_price:,.2f} on a busy {device.name}, ${even.api_price:,.2f} from the API)"
        )
    out.print(text, highlight=False, soft_wrap=True)


def _show_tables(as_json: bool) -> None:
    from luthier.api import ASSUMPTIONS, classic_tables

    with terminal() as on_event:
        rows = list(tracked(classic_tables(), "simulating", on_event))
    if as_json:
        print_json({"assumptions": ASSUMPTIONS, "rows": [asdict(row) for row in rows]})
        return
    table = Table("model", "method", "least GiB", "usual GiB", "published", "verdict")
    for row in rows:
        table.add_row(
            row.model,
            row.method,
            f"{row.least:,.1f}",
            f"{row.usual:,.1f}",
            f"{row.published:g} GB ({row.source})",
            row.verdict,
            end_section=row.method == "qlora",
        )
    out.print(table)
    out.print(ASSUMPTIONS, highlight=False)


def _size(count: int) -> str:
    return f"{count / 2**30:,.2f} GiB" if count >= 2**27 else f"{count / 2**20:,.1f} MiB"


def _range(values: "Range | None", form: str) -> str:
    if values is None:
        return "unknown"
    low, high = (form.format(value) for value in values)
    return low if low == high else f"{low} – {high}"


def _hours(seconds: "Range | None") -> str:
    if seconds is None:
        return "unknown"
    if seconds[1] < 2 * 3600:
        return _range((seconds[0] / 60, seconds[1] / 60), "{:,.1f} min")
    return _range((seconds[0] / 3600, seconds[1] / 3600), "{:,.1f} h")
