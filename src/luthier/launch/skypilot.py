"""SkyPilot: a managed job on a cloud or on Kubernetes, for its client `sky`."""

import shlex
import subprocess
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from luthier.errors import UserError
from luthier.launch.job import Job, training, writing

_THERE = "~/sky_workdir"  # where SkyPilot puts the folder of the job


@dataclass(frozen=True)
class SkyPilot:
    """Submits to the clouds that `sky` on this machine may use.

    SkyPilot copies the job's folder to the machines, and begins the job again on others where they are
    lost: it goes on from the last checkpoint, for which the run folder must outlive them.

    Attributes:
        storage: that holds ``run.dir``: a bucket, such as s3://name, or the name of a volume.
        accelerator: kind of GPU, as `sky gpus list` names it, such as H100.
        infra: cloud, region or Kubernetes context, as SkyPilot writes it; None: the cheapest it finds.
        retries: how often a job that failed is begun again; lost machines do not count.
    """

    storage: str
    accelerator: str | None = None
    infra: str | None = None
    retries: int = 3

    def render(self, job: Job) -> str:
        """The task, in SkyPilot's YAML."""
        needs = job.needs
        if needs.time is not None:
            raise UserError("SkyPilot sets no longest time: leave out --time")
        if needs.gpus and self.accelerator is None:
            raise UserError(
                f"SkyPilot must know which {needs.gpus} GPUs: name them with --accelerator, such as H100"
            )
        resources = {
            "infra": self.infra,
            "accelerators": f"{self.accelerator}:{needs.gpus}" if needs.gpus else None,
            "cpus": needs.cpus,
            "memory": needs.memory,
            "job_recovery": {"max_restarts_on_errors": self.retries},
        }
        task = {
            "name": job.name,
            "workdir": job.workdir,
            "num_nodes": needs.nodes,
            "resources": {key: value for key, value in resources.items() if value is not None},
            **self._mounts(job),
            "run": _script(replace(job, workdir=_THERE)),
        }
        return yaml.dump(task, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=1000)

    def submit(self, job: Job) -> str:
        """Hand it in; what to tell of it.

        Raises:
            UserError: there is no `sky` here, or it refuses the job.
        """
        with tempfile.TemporaryDirectory() as folder:
            task = Path(folder) / "task.yaml"
            task.write_text(self.render(job), encoding="utf-8")
            try:
                done = subprocess.run(
                    ["sky", "jobs", "launch", "--yes", "--detach-run", str(task)],  # noqa: S607
                    capture_output=True,
                    text=True,
                )
            except FileNotFoundError:
                raise UserError(
                    "there is no `sky` on this machine: install SkyPilot in an environment of its own, such "
                    "as `uv tool install skypilot`, or see the task with --dry-run"
                ) from None
        if done.returncode != 0:
            said = done.stderr.strip() or done.stdout.strip()
            raise UserError(f"sky refused the job: {said}")
        name = shlex.quote(job.name)
        return f"job {job.name}; see it with `sky jobs queue` and `sky jobs logs --name {name}`"

    def _mounts(self, job: Job) -> dict[str, Any]:
        folder = job.recipe.run.dir
        target = folder if folder.startswith(("/", "~")) else f"{_THERE}/{folder}"
        if "://" not in self.storage:
            return {"volumes": {target: self.storage}}
        if job.needs.nodes > 1:
            raise UserError(
                "several nodes read what the first writes, which a bucket shows too late: give --storage the "
                "name of a volume"
            )
        return {"file_mounts": {target: {"source": self.storage, "mode": "MOUNT_CACHED"}}}


def _script(job: Job) -> str:
    head = ['head=$(head -n 1 <<< "$SKYPILOT_NODE_IPS")'] if job.needs.nodes > 1 else []
    return "\n".join([*writing(job), *job.setup, *head, training(job, "$head"), ""])


class _Dumper(yaml.SafeDumper):
    """Texts of several lines as blocks, for people."""


_Dumper.add_representer(
    str,
    lambda dumper, text: dumper.represent_scalar(
        "tag:yaml.org,2002:str", text, style="|" if "\n" in text else None
    ),
)
