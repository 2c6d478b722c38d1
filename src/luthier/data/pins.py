"""What a chat template asks of its surroundings, written into it: switches, and the day.

Some templates read switches that a caller may pass (``enable_thinking``), and some the clock. Both
would make training, a run resumed the next day, and inference differ. A run's template therefore
begins with their values, as Jinja that any engine understands: whatever renders it, the text is the
one that was trained.
"""

import datetime
import json
import re
from collections.abc import Mapping
from typing import Any

from luthier.errors import UserError

_READS_CLOCK = re.compile(r"\b(strftime_now|date_string|now\(\))")
_PINS = re.compile(r"\{#- values of this run: (.*?) -#\}.*?\{#- end of values -#\}", re.DOTALL)
_DAY = "day"


def reads_clock(template: str) -> bool:
    """Whether what ``template`` writes depends on the day."""
    return bool(_READS_CLOCK.search(_parted(template)[1]))


def pin(template: str, switches: Mapping[str, Any], day: datetime.date) -> str:
    """``template`` with ``switches`` and, where it reads the clock, ``day`` written into it.

    Values that were written into it before stay, where they are not given anew.

    Raises:
        UserError: the template never reads a switch, which would change nothing.
    """
    before, bare = _parted(template)
    for name in switches:
        if not name.isidentifier() or not re.search(rf"\b{name}\b", bare):
            raise UserError(
                f"data.template_kwargs has '{name}', which the chat template does not read; it would "
                "change nothing: take it out, or choose another data.template"
            )
    values = {**before, **switches}
    if reads_clock(bare):
        values[_DAY] = day.isoformat()
    if not values:
        return bare
    lines = [
        f"{{%- set {name} = {_literal(value)} -%}}"
        for name, value in values.items()
        if name != _DAY
    ]
    if _DAY in values:
        lines.append(_clock(datetime.date.fromisoformat(values[_DAY])))
    told = json.dumps(values, ensure_ascii=True).replace("#}", "#\\u007d")
    return f"{{#- values of this run: {told} -#}}{''.join(lines)}{{#- end of values -#}}{bare}"


def pinned_day(template: str) -> datetime.date | None:
    """The day that was written into ``template``."""
    day = _parted(template)[0].get(_DAY)
    return None if day is None else datetime.date.fromisoformat(day)


def _parted(template: str) -> tuple[dict[str, Any], str]:
    """Values written into ``template``, and the template without them."""
    found = _PINS.match(template)
    return (json.loads(found[1]), template[found.end() :]) if found else ({}, template)


def _literal(value: Any) -> str:
    """``value`` in Jinja: JSON, which it reads, but for the names of truth and nothing."""
    return json.dumps(value, ensure_ascii=False) if value is not None else "none"


def _clock(day: datetime.date) -> str:
    """A clock that stands still: ``strftime_now`` and Llama's ``date_string``."""
    parts = {
        code: day.strftime(code) for code in ("%Y", "%y", "%m", "%d", "%B", "%b", "%A", "%a", "%j")
    }
    parts |= {"%-d": str(day.day), "%-m": str(day.month), "%H": "12", "%M": "00", "%S": "00"}
    parts |= {"%F": day.isoformat()}
    chain = "".join(
        f" | replace({json.dumps(code)}, {json.dumps(text)})" for code, text in parts.items()
    )
    return (
        f"{{%- macro strftime_now(format) -%}}{{{{- format{chain} -}}}}{{%- endmacro -%}}"
        f'{{%- set date_string = "{day.strftime("%d %b %Y")}" -%}}'
    )
