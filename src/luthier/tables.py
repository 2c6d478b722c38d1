"""Results as tables: in a notebook by themselves, in a terminal by ``print``."""

from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from html import escape
from typing import Any

_MOST = 20  # rows and letters of a cell's text that are shown
_LETTERS = 200


class Tabular:
    """A dataclass or record that shows itself as a table, nested ones inside it."""

    def __str__(self) -> str:
        return as_text(self)

    def _repr_html_(self) -> str:
        return as_html(self)


def as_text(value: Any, indent: str = "") -> str:
    """Names and values below each other, lists of like things as rows under a header."""
    named = _named(value)
    width = max((len(name) for name in named), default=0)
    lines = []
    for name, part in named.items():
        if _is_nested(part):
            lines += [f"{indent}{name}", as_text(part, indent + "  ")]
        elif (rows := _rows(part)) is not None:
            lines += [f"{indent}{name}", *(f"{indent}  {line}" for line in _aligned(rows))]
        else:
            lines.append(f"{indent}{name:{width}}  {_cell(part)}")
    return "\n".join(lines)


def as_html(value: Any) -> str:
    """The same as HTML; all text is escaped."""
    lines = []
    for name, part in _named(value).items():
        if _is_nested(part):
            shown = as_html(part)
        elif (rows := _rows(part)) is not None:
            header, *body = [[escape(cell) for cell in row] for row in rows]
            cells = "".join(f"<th>{cell}</th>" for cell in header)
            cells += "".join(
                "</tr><tr>" + "".join(f"<td>{cell}</td>" for cell in row) for row in body
            )
            shown = f"<table><tr>{cells}</tr></table>"
        else:
            shown = escape(_cell(part))
        lines.append(f"<tr><th style='text-align:left'>{escape(name)}</th><td>{shown}</td></tr>")
    return f"<table>{''.join(lines)}</table>"


def _named(value: Any) -> dict[str, Any]:
    """The parts of a result by name, without those that are not there."""
    if is_dataclass(value):
        parts = {field.name: getattr(value, field.name) for field in fields(value)}
    elif isinstance(value, Mapping):
        parts = {str(name): part for name, part in value.items()}
    else:  # a Pydantic model
        parts = dict(value)
    return {name: part for name, part in parts.items() if part not in (None, [], {}, ())}


def _is_nested(value: Any) -> bool:
    return is_dataclass(value) or isinstance(value, Mapping | Tabular)


def _rows(value: Any) -> list[list[str]] | None:
    """Header and rows of a list of nested things; None for anything else."""
    if not isinstance(value, Sequence) or isinstance(value, str) or not value:
        return None
    if not all(_is_nested(part) for part in value):
        return None
    shown = [_named(part) for part in value[:_MOST]]
    names = list(dict.fromkeys(name for part in shown for name in part))
    rows = [names, *([_cell(part.get(name, "")) for name in names] for part in shown)]
    if len(value) > _MOST:
        rows.append([f"and {len(value) - _MOST:,} more", *[""] * (len(names) - 1)])
    return rows


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(f"{cell:{width}}" for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]


def _cell(value: Any) -> str:
    if isinstance(value, float):
        text = f"{value:.4g}" if abs(value) < 1e6 else f"{value:,.0f}"
    elif isinstance(value, int) and not isinstance(value, bool):
        text = f"{value:,}"
    else:
        text = " ".join(str(value).split())
    return text if len(text) <= _LETTERS else text[:_LETTERS] + "…"
