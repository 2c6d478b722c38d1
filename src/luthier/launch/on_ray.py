"""Ray: tasks in a cluster that Ray runs, all begun again where one is lost."""

import ctypes
import os
import signal
import socket
import subprocess
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from luthier.errors import UserError
from luthier.extras import need
from luthier.launch.job import Job, Needs, going_there, training, writing

# How `luthier train` ends where another try would end the same: done, wrong, stopped by a person.
_FINAL = (0, 2, 130)


@dataclass(frozen=True)
class OnRay:
    """Trains in the cluster at ``address``, by a task for each process.

    The tasks see the same files as this machine, and have the same Python, Ray and Luthier.

    Attributes:
        address: as of ``ray.init``: auto for the cluster of this machine, or ray://host:10001.
        retries: how often all tasks are begun again where one of them, or its node, is lost: they go on from
            the last checkpoint.
    """

    address: str = "auto"
    retries: int = 3

    def render(self, job: Job) -> str:
        """What the tasks run, below what is asked for each."""
        asked = ", ".join(f"{count} {name}" for name, count in _resources(job).items())
        told = f"# Ray at {self.address}, tasks: {job.needs.processes}, each with {asked}"
        return "\n".join([told, *writing(job), *_alone(job), ""])

    def submit(self, job: Job) -> str:
        """Run it, and wait; what to tell of it.

        Raises:
            UserError: Ray is not installed, there is no cluster, or the job fails.
        """
        need("ray", extra="ray", what="luthier launch --on ray")
        import ray

        asked = _resources(job)
        try:
            ray.init(address=self.address, log_to_driver=True)
        except (ConnectionError, ValueError) as error:
            raise UserError(
                f"there is no Ray cluster at {self.address}: start one with `ray start --head`, or give "
                f"its address with --address ({error})"
            ) from None
        try:
            code = self._code(job, asked)
        except ray.exceptions.RayError as error:
            raise UserError(f"Ray could not finish the job: {error}") from error
        finally:
            ray.shutdown()
        if code != 0:
            raise UserError(
                f"the training of {job.name} ended with exit code {code}; its output is above, and the "
                "same command goes on"
            )
        return f"finished: {job.recipe.run.dir}/{job.name}"

    def _code(self, job: Job, asked: dict[str, int]) -> int:
        from ray.exceptions import RayError

        for _ in range(self.retries):
            try:
                return _run(job, asked)
            except RayError:  # which Ray has told of
                continue
        return _run(job, asked)


def _run(job: Job, asked: dict[str, int]) -> int:
    """Run all tasks of ``job``; how they ended.

    Raises:
        RayError: one was lost. The others are ended.
    """
    import ray
    from ray.util.placement_group import placement_group, remove_placement_group
    from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

    size = job.needs.processes
    group = placement_group([asked] * size)

    def task(function: Callable[..., Any], rank: int, **resources: int) -> Callable[..., Any]:
        place = PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=rank)
        asked = {"max_retries": 0, "scheduling_strategy": place, **resources}
        made: Callable[..., Any] = ray.remote(function).options(**asked).remote
        return made

    try:
        meets = ray.get(task(begin, 0, num_cpus=0)("\n".join(writing(job))))
        resources = {"num_cpus": asked["CPU"], "num_gpus": asked.get("GPU", 0)}
        script = "\n".join(_alone(job))
        codes = ray.get(
            [task(train_one, rank, **resources)(script, rank, size, meets) for rank in range(size)]
        )
    finally:
        remove_placement_group(group)
    return max(codes)


def _resources(job: Job) -> dict[str, int]:
    """Of each task, in Ray's words."""
    needs = job.needs
    if needs.gpus % needs.nproc:
        raise UserError(
            f"{needs.nproc} processes cannot share {needs.gpus} GPUs evenly: give --gpus a multiple of --nproc"
        )
    asked = {"CPU": max(1, (needs.cpus or 0) // needs.nproc), "GPU": needs.gpus // needs.nproc}
    return {name: count for name, count in asked.items() if count}


def _alone(job: Job) -> list[str]:
    """Lines of shell of one task."""
    return [going_there(job), *job.setup, f"exec {training(replace(job, needs=Needs()))}"]


def begin(script: str) -> tuple[str, int]:
    """Run ``script``, in the task of rank 0; where the processes meet."""
    from ray.util import get_node_ip_address

    subprocess.run(["bash", "-c", script], check=True)  # noqa: S607  # the user's
    with socket.socket() as free:
        free.bind(("", 0))
        return get_node_ip_address(), free.getsockname()[1]


def train_one(script: str, rank: int, size: int, meets: tuple[str, int]) -> int:
    """Be one of the processes that train; its exit code, where another try would have the same.

    Raises:
        RuntimeError: it was lost.
    """
    here = {} if size == 1 else {
        "RANK": str(rank),
        "WORLD_SIZE": str(size),
        "LOCAL_RANK": "0",  # a task sees its own GPUs alone
        "MASTER_ADDR": meets[0],
        "MASTER_PORT": str(meets[1]),
    }  # fmt: skip
    code = _ended_with_us(script, {**os.environ, **here})
    if code not in _FINAL:
        raise RuntimeError(f"the training of rank {rank} ended with exit code {code}")
    return code


def _ended_with_us(script: str, environment: dict[str, str]) -> int:
    """The exit code of ``script``, which is killed with this process, so that nobody trains twice."""
    ends_with_its_parent = 1  # PR_SET_PDEATHSIG of <linux/prctl.h>
    libc = ctypes.CDLL(None)
    return subprocess.run(
        ["bash", "-c", script],  # noqa: S607  # the user's
        env=environment,
        stdout=2,  # standard output is for what the command tells
        preexec_fn=partial(libc.prctl, ends_with_its_parent, signal.SIGKILL),
    ).returncode
