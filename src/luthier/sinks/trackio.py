"""Trackio: figures in a local database, or on a server that its environment variables name."""

import os
import sys
import uuid
from contextlib import redirect_stdout
from typing import Any

from luthier.events import Stopped
from luthier.extras import need
from luthier.recipe import Recipe
from luthier.run import Run
from luthier.sinks.tracker import PROJECT, Tracker


def trackio_sink(recipe: Recipe, run: Run) -> Tracker:
    """The sink of Trackio.

    Raises:
        UserError: it is not installed.
    """
    need("trackio", extra="trackers", what="train.report_to trackio")
    return Tracker("Trackio", _Client(), recipe, run)


class _Client:
    def start(self, run: Run, config: dict[str, Any], known: str | None) -> str:
        # Trackio finds a run by its name alone, which two run folders may share.
        name = known or f"{run.root.name}-{uuid.uuid4().hex[:4]}"
        with redirect_stdout(sys.stderr):  # stdout is for results
            import trackio

            self.run = trackio.init(
                project=os.environ.get("TRACKIO_PROJECT", PROJECT),
                name=name,
                config=config,
                resume="never" if known is None else "allow",
                embed=False,
            )
        return name

    def log(self, figures: dict[str, float], step: int) -> None:
        self.run.log(figures, step=step)

    def end(self, results: dict[str, float] | None, stopped: Stopped | None) -> None:
        import trackio

        if results is not None:
            last = int(results["steps"])
            self.run.log({f"measured/{name}": value for name, value in results.items()}, step=last)
        with redirect_stdout(sys.stderr):
            trackio.finish()
