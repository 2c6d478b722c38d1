"""Whether a run is good enough to ship, by limits set beforehand."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from luthier.errors import UserError
from luthier.records import Evaluation
from luthier.records.evaluation import Outcome

_ABSENT = (
    "{what} was asked for, but this evaluation did not measure forgetting; run luthier evaluate "
    "with --probe"
)


@dataclass(frozen=True)
class Check:
    """One condition: what was ``found``, what was ``wanted``, and whether it holds."""

    what: str
    found: str
    wanted: str
    passed: bool

    def to_json(self) -> dict[str, Any]:
        """The fields as a dictionary."""
        return asdict(self)


def check_gate(
    evaluation: Evaluation,
    *,
    least: Sequence[str] = (),
    most: Sequence[str] = (),
    better: Sequence[str] = (),
    max_forgetting: float | None = None,
    max_leakage: float | None = None,
) -> list[Check]:
    """Hold an evaluation against conditions.

    Args:
        least: ``metric=value``: the tuned mean must be at least that.
        most: ``metric=value``: it must be at most that, for what is better when small.
        better: metrics whose paired test must say "better".
        max_forgetting: most that accuracy on general questions may have fallen, as a share; the
            measured fall counts, whether or not chance could explain it.
        max_leakage: largest share of unrelated answers in the training format.

    Raises:
        UserError: no condition, one that cannot be read, a metric that was not measured, or
            forgetting that was not measured.
    """
    metrics = _measured(evaluation)
    checks = []
    for conditions, sign, words in ((least, 1, "at least"), (most, -1, "at most")):
        for condition in conditions:
            name, limit = _condition(condition, metrics)
            mean = metrics[name][0]
            checks.append(
                Check(name, f"{mean:.4g}", f"{words} {limit:g}", sign * (mean - limit) >= 0)
            )
    for name in better:
        test = _metric(name, metrics)[1]
        found = f"{test.verdict} (p {test.p:.2g})"
        checks.append(Check(name, found, "better than the base", test.verdict == "better"))
    forgetting = evaluation.forgetting
    if max_forgetting is not None:
        if forgetting is None:
            raise UserError(_ABSENT.format(what="--max-forgetting"))
        fall = -forgetting.accuracy.test.difference
        checks.append(
            Check(
                "forgetting",
                f"{fall:+.1%} lost",
                f"at most {max_forgetting:.1%}",
                fall <= max_forgetting,
            )
        )
    if max_leakage is not None:
        if forgetting is None:
            raise UserError(_ABSENT.format(what="--max-leakage"))
        share = forgetting.leakage.tuned.mean
        checks.append(
            Check("leakage", f"{share:.1%}", f"at most {max_leakage:.1%}", share <= max_leakage)
        )
    if not checks:
        raise UserError(
            "the gate needs at least one condition: --min, --max, --better, --max-forgetting"
        )
    return checks


_Figure = tuple[float, Outcome]


def _measured(evaluation: Evaluation) -> dict[str, _Figure]:
    """The tuned mean of each metric and its test; of several judges the least win rate."""
    compared = {**evaluation.metrics, **evaluation.tasks}
    figures: dict[str, _Figure] = {
        name: (found.tuned.mean, found.test) for name, found in compared.items()
    }
    if evaluation.wins is not None:
        least = min(evaluation.wins.rates, key=lambda rate: rate.rate.mean)
        figures["win_rate"] = (least.rate.mean, least.test)
    return figures


def _condition(text: str, metrics: Mapping[str, _Figure]) -> tuple[str, float]:
    name, equals, value = text.partition("=")
    name = name.strip()
    try:
        limit = float(value)
    except ValueError:
        limit = float("nan")
    if not equals or limit != limit:
        raise UserError(f"a condition is metric=value (exact_match=0.3), not '{text}'")
    _metric(name, metrics)
    return name, limit


def _metric(name: str, metrics: Mapping[str, _Figure]) -> _Figure:
    if name not in metrics:
        raise UserError(f"'{name}' was not measured; there are {', '.join(metrics)}")
    return metrics[name]
