"""What a sweep was asked for; every process that works on it gets the same."""

from dataclasses import dataclass

from luthier.recipe import Recipe
from luthier.records.sweep import Dimension
from luthier.sweep.folder import SweepFolder


@dataclass(frozen=True)
class Asked:
    """A sweep.

    Attributes:
        storage: URL of Optuna's storage.
        trials: how many are run, the default among them.
        budget_seconds: that all trials together may take, on all machines.
        price_per_hour: US dollars, of one trial's machine.
        jobs: trials at a time on this machine.
        keep_all: keep the weights of all trials, not only of the best and the default.
    """

    recipe: Recipe
    space: list[Dimension]
    folder: SweepFolder
    storage: str
    trials: int
    budget_seconds: float | None = None
    price_per_hour: float | None = None
    jobs: int = 1
    keep_all: bool = False
