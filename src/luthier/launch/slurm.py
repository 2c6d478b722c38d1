"""SLURM: a batch script for `sbatch`."""

import shlex
import subprocess
from dataclasses import dataclass

from luthier.errors import UserError
from luthier.launch.job import Job, training, writing

_NOTICE = 180  # seconds before the end of its time at which a job is told to save


@dataclass(frozen=True)
class Slurm:
    """Submits to the cluster that `sbatch` on this machine speaks to.

    Workers and this machine see the same files. A job that loses its node is queued again by SLURM; one
    whose time ends saves, and queues itself again. Either way it goes on from its last checkpoint.
    """

    partition: str | None = None
    account: str | None = None

    def render(self, job: Job) -> str:
        """The script."""
        needs = job.needs
        options = {
            "job-name": job.name,
            "nodes": needs.nodes,
            "ntasks-per-node": 1,
            "gpus-per-node": needs.gpus or None,
            "cpus-per-task": needs.cpus,
            "mem": needs.memory,
            "time": needs.time,
            "partition": self.partition,
            "account": self.account,
            "chdir": job.workdir,
            "output": _log(job, "%j"),
            "open-mode": "append",
            "signal": f"B:TERM@{_NOTICE}",
        }
        lines = [f"#SBATCH --{key}={value}" for key, value in options.items() if value is not None]
        command = training(job, "$head")
        if needs.nodes > 1:
            lines += ["", 'head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)']
            command = f"srun --kill-on-bad-exit=1 {command}"
        return "\n".join(
            [
                "#!/bin/bash",
                "#SBATCH --requeue",
                *lines,
                "",
                *writing(job),
                *job.setup,
                "",
                "# Told to stop, it saves; then the job queues itself again and goes on.",
                "told=",
                "trap 'told=1; kill -TERM \"$training\"' TERM",
                f"{command} &",
                "training=$!",
                'wait "$training"',
                "code=$?",
                'if [ -n "$told" ]; then',
                '    wait "$training"',
                "    code=$?",
                '    [ "$code" = 0 ] || scontrol requeue "$SLURM_JOB_ID"',
                "fi",
                'exit "$code"',
                "",
            ]
        )

    def submit(self, job: Job) -> str:
        """Hand it in; what to tell of it.

        Raises:
            UserError: there is no `sbatch` here, or it refuses the job.
        """
        try:
            done = subprocess.run(
                ["sbatch", "--parsable"],  # noqa: S607  # the user's
                input=self.render(job),
                capture_output=True,
                text=True,
            )
        except FileNotFoundError:
            raise UserError(
                "there is no `sbatch` on this machine: run this on a login node of the cluster, or see "
                "the script with --dry-run"
            ) from None
        if done.returncode != 0:
            raise UserError(f"sbatch refused the job: {done.stderr.strip()}")
        number = done.stdout.strip().partition(";")[0]
        log = shlex.quote(f"{job.workdir}/{_log(job, number)}")
        return f"job {number}; see it with `squeue -j {number}` and `tail -f {log}`"


def _log(job: Job, number: str) -> str:
    """In the folder of the job, since SLURM makes none."""
    return f"{job.name}.slurm-{number}.txt"
