"""The names in a recipe that plugins may bring: of metrics and of sinks."""

import difflib

from luthier import plugins
from luthier.errors import UserError
from luthier.recipe.schema import METRICS, REPORTS, Recipe


def check_names(recipe: Recipe, origin: str) -> None:
    """Refuse metrics and sinks that are neither built in nor brought by an installed package.

    The recipe of a run folder is not checked when it is read: who serves a run need not have what
    it was measured and watched with.

    Raises:
        UserError: naming the key, and the nearest name that is known.
    """
    metrics = [name for name in recipe.evaluate.metrics if not name.endswith(".py")]
    _check(f"{origin}: evaluate.metrics", "metric", metrics, METRICS, "luthier.metrics")
    reports = recipe.train.report_to
    _check(f"{origin}: train.report_to", "sink", reports, REPORTS, "luthier.sinks")


def _check(
    where: str, kind: str, names: list[str], built_in: tuple[str, ...], group: plugins.Group
) -> None:
    for name in names:
        if name in built_in:
            continue
        known = [*built_in, *plugins.names(group)]
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = (
                f"did you mean '{near[0]}'?"
                if near
                else f"known are {', '.join(known)}, and others come with packages (docs/plugins.md)"
            )
            raise UserError(f"{where}: no {kind} '{name}'; {hint}")
