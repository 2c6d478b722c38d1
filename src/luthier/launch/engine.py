"""What an engine that runs jobs elsewhere can do."""

from typing import Protocol

from luthier.launch.job import Job


class Engine(Protocol):
    """Something that a job can be submitted to."""

    def render(self, job: Job) -> str:
        """What would be submitted.

        Raises:
            UserError: it cannot run such a job.
        """
        ...

    def submit(self, job: Job) -> str:
        """Submit it; a sentence about where it is.

        Raises:
            UserError: it cannot be submitted.
        """
        ...
