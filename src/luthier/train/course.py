"""When a run logs, evaluates, saves and ends."""

import math
from dataclasses import dataclass

from luthier.recipe import TrainGroup


@dataclass(frozen=True, slots=True)
class Due:
    """What follows a step."""

    log: bool = False
    evaluate: bool = False
    save: bool = False


@dataclass
class Course:
    """The plan of a run over its steps.

    Attributes:
        validates: whether there are validation rows.
        patience: evaluations in a row without a lower loss that end the run.
        most_forgetting: fall of the probe's accuracy that ends it.
    """

    max_steps: int
    logging_steps: int
    eval_steps: int
    save_steps: int
    validates: bool
    patience: int | None = None
    most_forgetting: float | None = None
    _owed: Due = Due()

    def due(self, step: int, stop_requested: bool) -> Due:
        """What follows ``step``; a stop request saves."""
        last = step >= self.max_steps
        evaluate = self.validates and (last or step % self.eval_steps == 0)
        save = last or stop_requested or step % self.save_steps == 0
        # A resumed run must not need the loss of steps before its checkpoint.
        return Due(evaluate or save or step % self.logging_steps == 0, evaluate, save)

    def postponed(self, due: Due, step: int, skipped: bool) -> Due:
        """``due``, and what was postponed; after a skipped step evaluation and checkpoint wait.

        A checkpoint among the steps that end a run would keep their gap when it is resumed.
        """
        evaluate, save = due.evaluate or self._owed.evaluate, due.save or self._owed.save
        if skipped and step < self.max_steps:
            self._owed = Due(evaluate=evaluate, save=save)
            return Due(log=due.log)
        self._owed = Due()
        return Due(due.log or evaluate or save, evaluate, save)


def plan_course(train: TrainGroup, steps_per_epoch: int, validates: bool) -> Course:
    """The course of a recipe; shares of all steps become steps."""
    max_steps = train.max_steps
    if max_steps <= 0:
        max_steps = math.ceil(train.num_train_epochs * steps_per_epoch)

    def steps(value: float) -> int:
        return math.ceil(max_steps * value) if value < 1 else int(value)

    return Course(
        max_steps=max_steps,
        logging_steps=train.logging_steps,
        eval_steps=steps(train.eval_steps),
        save_steps=steps(train.save_steps),
        validates=validates,
        patience=train.early_stopping_patience,
        most_forgetting=train.stop_on_forgetting,
    )
