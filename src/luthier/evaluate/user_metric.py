"""A metric of the user's own: from a Python file, or from a package that is installed."""

import importlib.util
import math
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from luthier import plugins
from luthier.data.conversation import Conversation
from luthier.errors import UserError


@dataclass(frozen=True)
class UserMetric:
    """``score(answer, row)`` of its owner, checked, and ``higher_is_better`` (True by default)."""

    score: Callable[[str, Conversation], float]
    higher_is_better: bool


def load_user_metric(path: Path) -> UserMetric:
    """Run the file and take its function ``score``.

    It is called with the answer and the row as a dictionary: ``messages`` (of the prompt),
    ``reference``, and the row's other fields; it returns a number or a bool.

    Raises:
        UserError: there is no such file, it fails, or it has no ``score``; later, from ``score``,
            that it failed on a row or returned something else.
    """
    if not path.is_file():
        raise UserError(f"no metric file at {path}")
    spec = importlib.util.spec_from_file_location(f"luthier_metric_{path.stem}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # whatever the user's file raises is the user's to see
        raise UserError(f"{path} cannot be run: {_told(error, str(path))}") from error
    if not callable(getattr(module, "score", None)):
        raise UserError(f"{path} has no function score(answer, row)")
    return _checked(module, str(path))


def load_plugged_metric(name: str) -> UserMetric:
    """The metric that an installed package brings as ``name``; it has what such a file has.

    Raises:
        UserError: as ``plugins.load``; later, from ``score``, as ``load_user_metric``.
    """
    plugin = plugins.load("luthier.metrics", name)
    return _checked(plugin, plugins.described("luthier.metrics", name))


def _checked(owner: Any, where: str) -> UserMetric:
    code = getattr(owner.score, "__code__", None)
    source = code.co_filename if code is not None else None

    def score(answer: str, row: Conversation) -> float:
        given = {**row.extra, "messages": list(row.prompt), "reference": row.reference}
        try:
            value = owner.score(answer, given)
        except Exception as error:
            raise UserError(
                f"{where}: score failed on {row.origin}: {_told(error, source)}"
            ) from error
        if not isinstance(value, int | float) or not math.isfinite(value):
            raise UserError(
                f"{where}: score returned {value!r} for {row.origin}, which is not a finite number"
            )
        return float(value)

    return UserMetric(score, bool(getattr(owner, "higher_is_better", True)))


def _told(error: Exception, source: str | None) -> str:
    lines = [f.lineno for f in traceback.extract_tb(error.__traceback__) if f.filename == source]
    place = f" (line {lines[-1]})" if lines else ""
    return f"{type(error).__name__}: {error}{place}"
