"""What is to be run elsewhere: a recipe, the machine that it needs, and the commands in a shell."""

import shlex
from collections.abc import Sequence
from dataclasses import dataclass

from luthier.errors import UserError
from luthier.recipe import Recipe

_PORT = 29400  # where the processes of several nodes find each other (torchrun's default)


@dataclass(frozen=True)
class Needs:
    """What a job asks for, of each node; None leaves it to the engine.

    Attributes:
        nproc: processes per node.
        memory: as the engine writes it, such as 64G.
        time: longest time, as the engine writes it, such as 12:00:00.
    """

    nodes: int = 1
    nproc: int = 1
    gpus: int = 0
    cpus: int | None = None
    memory: str | None = None
    time: str | None = None

    @property
    def processes(self) -> int:
        return self.nodes * self.nproc


@dataclass(frozen=True)
class Job:
    """One training.

    Attributes:
        recipe: with its run's name, so that a job that is run again goes on in the same folder.
        workdir: folder in which it runs; relative paths of the recipe are from there.
        python: interpreter there, which has Luthier.
        setup: lines of shell before it, such as `module load cuda`.
    """

    recipe: Recipe
    needs: Needs
    workdir: str
    python: str
    setup: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        assert self.recipe.run.name is not None
        return self.recipe.run.name

    @property
    def beside(self) -> str:
        """Path that names of files beside the run folder begin with."""
        return f"{self.recipe.run.dir}/.{self.name}"


def make_job(
    recipe: Recipe,
    stem: str,
    needs: Needs,
    *,
    workdir: str,
    python: str,
    setup: Sequence[str] = (),
) -> Job:
    """The job that trains ``recipe``.

    Args:
        stem: begins the name of a run that the recipe does not name.

    Raises:
        UserError: a number is not positive.
    """
    for name, value in (("nodes", needs.nodes), ("processes", needs.nproc)):
        if value < 1:
            raise UserError(f"a job needs at least one of its {name}, not {value}")
    name = recipe.run.name or recipe.default_name(stem)
    return Job(recipe.changed(run={"name": name}), needs, workdir, python, tuple(setup))


def writing(job: Job) -> list[str]:
    """Lines of shell that write the recipe down."""
    text, end = job.recipe.to_yaml(), "RECIPE"
    while end in text.splitlines():
        end += "_"
    return [
        going_there(job),
        f"mkdir -p {_quoted(job.recipe.run.dir)} || exit 2",
        f"cat > {_quoted(recipe_file(job))} <<'{end}'",
        *text.splitlines(),
        end,
    ]


def going_there(job: Job) -> str:
    """The line of shell that enters the job's folder."""
    return f"cd {_quoted(job.workdir)} || exit 2"


def training(job: Job, head: str = "localhost") -> str:
    """The command that trains: on each node once, which starts the processes there.

    Args:
        head: in shell, the node where the processes of several nodes meet.
    """
    needs, module = job.needs, ["luthier.cli.main", "train", recipe_file(job)]
    if needs.processes == 1:
        return shlex.join([job.python, "-m", *module])
    command = [job.python, "-m", "torch.distributed.run"]
    command += ["--nnodes", str(needs.nodes), "--nproc-per-node", str(needs.nproc)]
    if needs.nodes == 1:
        return shlex.join([*command, "--standalone", "-m", *module])
    command += ["--rdzv-backend", "c10d", "--rdzv-id", job.name, "--rdzv-endpoint"]
    return f'{shlex.join(command)} "{head}:{_PORT}" {shlex.join(["-m", *module])}'


def recipe_file(job: Job) -> str:
    """Where ``writing`` writes the recipe."""
    return f"{job.beside}.recipe.yaml"


def _quoted(path: str) -> str:
    """For the shell, which expands a leading ~."""
    return f"~/{shlex.quote(path[2:])}" if path.startswith("~/") else shlex.quote(path)
