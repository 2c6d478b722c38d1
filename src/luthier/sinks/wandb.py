"""Weights & Biases."""

import os
import uuid
from typing import Any

from luthier.errors import UserError
from luthier.events import Stopped
from luthier.extras import need
from luthier.recipe import Recipe
from luthier.run import Run
from luthier.sinks.tracker import PROJECT, Tracker


def wandb_sink(recipe: Recipe, run: Run) -> Tracker:
    """The sink of Weights & Biases.

    Raises:
        UserError: it is not installed, or nobody is logged in.
    """
    need("wandb", extra="trackers", what="train.report_to wandb")
    import wandb

    # `wandb.init` would ask on the terminal, in the middle of a run.
    if wandb.setup().settings.mode == "online" and not wandb.login(prompt=False):
        raise UserError(
            "train.report_to wandb: you are not logged in to Weights & Biases; run `wandb login`, "
            "or set WANDB_MODE=offline to keep the figures in the run folder"
        )
    return Tracker("Weights & Biases", _Client(), recipe, run)


class _Client:
    def start(self, run: Run, config: dict[str, Any], known: str | None) -> str:
        import wandb

        found = known or uuid.uuid4().hex[:8]
        self.run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            name=run.root.name,
            id=found,
            resume="allow",
            config=config,
            dir=os.environ.get("WANDB_DIR", str(run.root)),
            settings=wandb.Settings(console="off"),
        )
        return found

    def log(self, figures: dict[str, float], step: int) -> None:
        self.run.log(figures, step=step)

    def end(self, results: dict[str, float] | None, stopped: Stopped | None) -> None:
        if results is not None:
            self.run.summary.update(results)
        self.run.finish(exit_code=0 if results is not None else 1)
