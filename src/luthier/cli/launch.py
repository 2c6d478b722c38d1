"""`luthier launch`."""

import sys
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from luthier.cli.app import Json, Overrides, app, out, print_json
from luthier.errors import UserError
from luthier.recipe import load_recipe

if TYPE_CHECKING:
    from luthier.api import Engine


class Engines(StrEnum):
    """Where a job can go."""

    slurm = "slurm"
    ray = "ray"
    skypilot = "skypilot"
    ssh = "ssh"


_JOB, _ONE = "What the job needs, of each node", "Of one engine"


@app.command()
def launch(
    recipe_path: Annotated[Path, typer.Argument(metavar="RECIPE", help="A recipe file.")],
    on: Annotated[Engines, typer.Option(help="Where to train.")],
    overrides: Overrides = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print what would be submitted, and submit nothing.")
    ] = False,
    workdir: Annotated[
        Path | None,
        typer.Option(
            help="Folder there in which it runs, from which the recipe's paths are; by default this one. "
            "SkyPilot copies it from here."
        ),
    ] = None,
    python: Annotated[
        str | None,
        typer.Option(
            help="Interpreter there that has Luthier; by default this one, over ssh and SkyPilot python3."
        ),
    ] = None,
    setup: Annotated[
        list[str] | None,
        typer.Option(
            help="A line of shell before the training, such as 'module load cuda'; repeatable."
        ),
    ] = None,
    nodes: Annotated[int, typer.Option(min=1, rich_help_panel=_JOB, help="Machines.")] = 1,
    nproc: Annotated[int, typer.Option(min=1, rich_help_panel=_JOB, help="Processes.")] = 1,
    gpus: Annotated[int, typer.Option(min=0, rich_help_panel=_JOB, help="GPUs.")] = 0,
    cpus: Annotated[int | None, typer.Option(min=1, rich_help_panel=_JOB, help="Cores.")] = None,
    memory: Annotated[
        str | None,
        typer.Option(
            rich_help_panel=_JOB, help="Memory, as SLURM (64G) or SkyPilot (64+) writes it."
        ),
    ] = None,
    time: Annotated[
        str | None,
        typer.Option(rich_help_panel=_JOB, help="SLURM: longest time, such as 12:00:00."),
    ] = None,
    partition: Annotated[str | None, typer.Option(rich_help_panel=_ONE, help="SLURM.")] = None,
    account: Annotated[str | None, typer.Option(rich_help_panel=_ONE, help="SLURM.")] = None,
    host: Annotated[
        str | None,
        typer.Option(
            rich_help_panel=_ONE, help="ssh: the machine, as your ssh configuration knows it."
        ),
    ] = None,
    address: Annotated[
        str,
        typer.Option(rich_help_panel=_ONE, help="Ray: the cluster; auto is that of this machine."),
    ] = "auto",
    storage: Annotated[
        str | None,
        typer.Option(
            rich_help_panel=_ONE,
            help="SkyPilot: what keeps run.dir: a bucket (s3://name) or the name of a volume.",
        ),
    ] = None,
    accelerator: Annotated[
        str | None,
        typer.Option(rich_help_panel=_ONE, help="SkyPilot: the kind of GPU, such as H100."),
    ] = None,
    infra: Annotated[
        str | None,
        typer.Option(
            rich_help_panel=_ONE,
            help="SkyPilot: where, such as aws/us-east-1 or k8s; by default the cheapest.",
        ),
    ] = None,
    retries: Annotated[
        int,
        typer.Option(
            min=0,
            rich_help_panel=_ONE,
            help="ssh, Ray, SkyPilot: how often a lost training is begun again.",
        ),
    ] = 3,
    as_json: Json = False,
) -> None:
    """Train on another machine, submitted by the client of what runs there.

    The job is `luthier train` with this recipe, in a folder of that machine which holds the data. A job
    that is lost goes on from its last checkpoint: the run has the same folder each time.

    Example: `luthier launch recipes/lora.yaml --on slurm --gpus 1 --time 12:00:00 --dry-run`
    """
    from luthier.api import Needs, OnRay, SkyPilot, Slurm, Ssh, make_job

    engine: Engine
    if on is Engines.slurm:
        engine = Slurm(partition, account)
    elif on is Engines.ray:
        engine = OnRay(address, retries)
    elif on is Engines.skypilot:
        if storage is None:
            raise UserError(
                "--on skypilot needs --storage, a bucket or volume that keeps the run when its machines go"
            )
        engine = SkyPilot(storage, accelerator, infra, retries)
    else:
        if host is None:
            raise UserError("--on ssh needs --host, the machine to train on")
        if workdir is None:
            raise UserError("--on ssh needs --workdir, the folder on that machine to train in")
        engine = Ssh(host, retries)
    job = make_job(
        load_recipe(recipe_path, overrides or []),
        recipe_path.stem,
        Needs(nodes, nproc, gpus, cpus, memory, time),
        workdir=str(workdir or Path.cwd()),
        python=python or ("python3" if on in (Engines.ssh, Engines.skypilot) else sys.executable),
        setup=setup or (),
    )
    script = engine.render(job)
    if dry_run and not as_json:
        print(script, end="")
        return
    told = None if dry_run else engine.submit(job)
    if as_json:
        print_json({"name": job.name, "on": on.value, "script": script, "submitted": told})
        return
    out.print(told, highlight=False, markup=False, soft_wrap=True)
