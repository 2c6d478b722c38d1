"""The learning rate's schedules: Transformers' own, and the arguments that each of them takes.

``transformers.get_scheduler`` makes them. Its arguments are checked here, when a recipe is read, so
that a wrong one is told before a model is loaded.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

_MOST = 1e12  # infinity and what is no number are beyond it
_SHAPES = ("linear", "cosine", "1-sqrt")


@dataclass(frozen=True)
class Argument:
    """What an argument of a schedule may be: a number within bounds, or one of some words."""

    least: float = 0
    above: bool = False
    most: float = _MOST
    whole: bool = False
    words: tuple[str, ...] = ()
    needed: bool = False

    def accepts(self, value: Any) -> bool:
        if self.words:
            return value in self.words
        if isinstance(value, bool) or not isinstance(value, int if self.whole else (int, float)):
            return False
        if self.above and value == self.least:
            return False
        return self.least <= value <= self.most

    @property
    def described(self) -> str:
        if self.words:
            return f"one of {', '.join(self.words)}"
        bound = f"{'above' if self.above else 'of at least'} {self.least:g}"
        most = f" and at most {self.most:g}" if self.most < _MOST else ""
        return f"a {'whole ' if self.whole else ''}number {bound}{most}"


_CYCLES = {"num_cycles": Argument(above=True)}
_LOWEST = {"min_lr": Argument(), "min_lr_rate": Argument(most=1)}
_STEPS = Argument(whole=True)

SCHEDULES: dict[str, dict[str, Argument]] = {
    "linear": {},
    "cosine": _CYCLES,
    "constant": {},
    "constant_with_warmup": {},
    "polynomial": {"lr_end": Argument(), "power": Argument(above=True)},
    "inverse_sqrt": {"timescale": Argument(least=1, whole=True)},
    "cosine_with_restarts": {"num_cycles": Argument(least=1, whole=True)},
    "cosine_with_min_lr": {**_CYCLES, **_LOWEST},
    "cosine_warmup_with_min_lr": {**_CYCLES, **_LOWEST, "warmup_lr_rate": Argument(most=1)},
    "warmup_stable_decay": {
        "num_decay_steps": Argument(whole=True, needed=True),
        "num_stable_steps": _STEPS,
        "warmup_type": Argument(words=_SHAPES),
        "decay_type": Argument(words=_SHAPES),
        "min_lr_ratio": Argument(most=1),
        **_CYCLES,
    },
}

_END_OF_POLYNOMIAL = 1e-7  # lr_end where it is not given


def check_schedule(name: str, given: Mapping[str, Any] | None, rate: float) -> None:
    """See that a schedule has the arguments it needs, and no others.

    Args:
        given: ``train.lr_scheduler_kwargs``.
        rate: the peak learning rate.

    Raises:
        ValueError: it says which argument is wrong, and what it may be.
    """
    key, known, given = "train.lr_scheduler_kwargs", SCHEDULES[name], given or {}
    for argument, value in given.items():
        if argument not in known:
            takes = f"takes {', '.join(known)}" if known else "takes no arguments"
            raise ValueError(f"{key} has '{argument}', but the schedule {name} {takes}")
        if not known[argument].accepts(value):
            raise ValueError(
                f"{key}: '{argument}' is {value!r} and must be {known[argument].described}"
            )
    for argument, kind in known.items():
        if kind.needed and argument not in given:
            raise ValueError(f"the schedule {name} needs '{argument}' in {key}")
    if "min_lr" in known and ("min_lr" in given) == ("min_lr_rate" in given):
        raise ValueError(
            f"the schedule {name} needs one of 'min_lr' (a learning rate) and 'min_lr_rate' (a share "
            f"of train.learning_rate) in {key}"
        )
    lowest = given.get("min_lr", 0)
    if name == "polynomial":
        lowest = given.get("lr_end", _END_OF_POLYNOMIAL)
    if lowest >= rate:
        raise ValueError(
            f"the schedule {name} falls to {lowest:g}, which must be below train.learning_rate "
            f"({rate:g}); see {key}"
        )


def check_phases(
    name: str, given: Mapping[str, Any] | None, warmup_steps: int, max_steps: int
) -> None:
    """See that the phases of a schedule fit into the steps of the run.

    Raises:
        ValueError: they do not.
    """
    if name == "warmup_stable_decay" and given is not None:
        phases = {
            "warm-up": warmup_steps,
            "stable": given.get("num_stable_steps", 0),
            "decay": given["num_decay_steps"],
        }
        if sum(phases.values()) > max_steps:
            told = ", ".join(f"{steps} of {phase}" for phase, steps in phases.items())
            raise ValueError(
                f"warmup_stable_decay has more steps ({told}) than the run ({max_steps}): lower "
                "train.lr_scheduler_kwargs or the warm-up, or train longer"
            )
    if name == "polynomial" and warmup_steps == max_steps:
        raise ValueError(
            f"the warm-up takes all {max_steps} steps, so that polynomial has none to decay in: lower "
            "train.warmup_steps or train.warmup_ratio, or train longer"
        )
