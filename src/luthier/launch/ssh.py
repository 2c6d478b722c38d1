"""SSH: a machine of one's own, where the training outlives the connection."""

import shlex
import subprocess
from dataclasses import dataclass

from luthier.errors import UserError
from luthier.launch.job import Job, training, writing


@dataclass(frozen=True)
class Ssh:
    """Starts on ``host`` by the OpenSSH client, with what the user's ssh configuration says of it.

    Attributes:
        retries: how often a training that ended otherwise than done, wrong or stopped is begun again:
            it goes on from its last checkpoint.
    """

    host: str
    retries: int = 3

    def render(self, job: Job) -> str:
        """The script, for a shell on the host."""
        if job.needs.nodes > 1:
            raise UserError("ssh starts on one machine: leave out --nodes, or use --on slurm")
        keeps_on = (
            "tries=0\n"
            f"until {training(job)}; do\n"
            "    code=$?\n"
            # 2: the recipe or the data is wrong; 130: stopped by a person.
            f'    if [ "$code" = 2 ] || [ "$code" = 130 ] || [ "$tries" -ge {self.retries} ]; then\n'
            '        exit "$code"\n'
            "    fi\n"
            "    tries=$((tries + 1))\n"
            "done"
        )
        log = shlex.quote(self._log(job))
        return "\n".join(
            [
                *writing(job),
                *job.setup,
                f"nohup setsid sh -c {shlex.quote(keeps_on)} >> {log} 2>&1 < /dev/null &",
                "echo $!",
                "",
            ]
        )

    def submit(self, job: Job) -> str:
        """Start it; what to tell of it.

        Raises:
            UserError: the host cannot be reached, or its shell cannot run the script.
        """
        try:
            done = subprocess.run(
                ["ssh", self.host, "bash -s"],  # noqa: S607  # the user's
                input=self.render(job),
                capture_output=True,
                text=True,
            )
        except FileNotFoundError:
            raise UserError(
                "there is no `ssh` on this machine: install the OpenSSH client"
            ) from None
        if done.returncode != 0:
            raise UserError(f"{self.host} did not start the job: {done.stderr.strip()}")
        log = shlex.quote(f"{job.workdir}/{self._log(job)}")
        return f"process {done.stdout.strip()} on {self.host}; see it with `ssh {self.host} tail -f {log}`"

    def _log(self, job: Job) -> str:
        return f"{job.beside}.out.txt"
