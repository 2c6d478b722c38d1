"""The progress of a run: the part of a checkpoint that is not tensors."""

import json
import math
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from luthier.errors import UserError
from luthier.files import write_json
from luthier.records.data import StreamPlace

_NAME = "state.json"


@dataclass
class State:
    """Counters and decisions of a run up to a step.

    Attributes:
        epoch: passes over the training rows so far, with the fraction of the present one.
        tokens: that went through the model in training.
        seconds: of the run, all its sessions together.
        step_seconds: of those, spent in training steps.
        best_step: whose weights have the lowest validation loss (``best_loss``) so far.
        not_better: evaluations in a row without a lower one.
        probe_start: the probe's accuracy before the first step.
        forgot: the probe's accuracy has fallen past ``train.stop_on_forgetting``.
        ended: by early stopping of either kind.
        place: of a stream.
    """

    step: int = 0
    epoch: float = 0.0
    tokens: int = 0
    seconds: float = 0.0
    step_seconds: float = 0.0
    peak_memory: int = 0
    best_step: int | None = None
    best_loss: float | None = None
    not_better: int = 0
    probe_start: float | None = None
    forgot: bool = False
    ended: bool = False
    place: StreamPlace | None = None

    def take_evaluation(
        self, figures: dict[str, float], patience: int | None, most_forgetting: float | None
    ) -> bool:
        """Note what an evaluation measured; True where the weights are the best so far.

        Weights that have forgotten are never the best, whatever their loss.

        Args:
            patience: evaluations in a row without a lower loss that end the run; None: none do.
            most_forgetting: fall of the probe's accuracy since the first that ends it.
        """
        accuracy = figures.get("eval_probe_accuracy")
        if accuracy is not None and most_forgetting is not None:
            if self.probe_start is None:
                self.probe_start = accuracy
            self.forgot = self.probe_start - accuracy > most_forgetting
        if "eval_loss" not in figures:
            return False
        loss = figures["eval_loss"]
        better = loss < (math.inf if self.best_loss is None else self.best_loss)
        self.not_better = 0 if better else self.not_better + 1
        self.ended = self.forgot or (patience is not None and self.not_better >= patience)
        if better and not self.forgot:
            self.best_step, self.best_loss = self.step, loss
            return True
        return False

    def save(self, folder: Path) -> None:
        write_json(folder / _NAME, asdict(self) | {"place": self.place and self.place.to_dict()})


def load_state(folder: Path) -> State:
    """The state that the checkpoint in ``folder`` was written at.

    Raises:
        UserError: a version of Luthier before 0.2 wrote it, or it is damaged.
    """
    path = folder / _NAME
    if not path.is_file() and (folder / "trainer_state.json").is_file():
        raise UserError(
            f"{folder} was written by luthier 0.1, whose unfinished runs this version cannot go on "
            "with; finish the run with luthier 0.1, or choose another run.name to start over"
        )
    try:
        found = json.loads(path.read_text("utf-8"))
        place = found.get("place")
        told = {field.name: found[field.name] for field in fields(State) if field.name != "place"}
        return State(**told, place=StreamPlace.model_validate(place) if place else None)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is damaged: {error!r}") from error
