"""The names in a recipe that plugins may bring: of metrics and of sinks."""

import difflib
from collections.abc import Iterable

from luthier import plugins
from luthier.errors import UserError


def check_names(
    where: str, kind: str, names: Iterable[str], built_in: tuple[str, ...], group: plugins.Group
) -> None:
    """Refuse what is neither built in nor brought by an installed package.

    Raises:
        UserError: it begins with ``where`` and tells the nearest name that is known.
    """
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
