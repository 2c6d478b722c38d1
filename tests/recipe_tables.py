"""The tables of recipe keys in docs/: ``python tests/recipe_tables.py`` writes them anew."""

from pathlib import Path

from luthier.recipe.elsewhere import (
    AXOLOTL,
    FACTORY,
    PEFT,
    TOOLS,
    TRANSFORMERS,
    TRL,
    counterpart,
    names_of,
    without_key,
)
from luthier.recipe.keys import all_keys, group_purpose
from luthier.recipe.schema import groups

DOCS = Path(__file__).parents[1] / "docs"
PAGE = DOCS / "recipe.md"
# The pages for people who come from a tool, and whose names its configurations use.
FROM = {
    DOCS / "how-to/from-llama-factory.md": (FACTORY, TRANSFORMERS),
    DOCS / "how-to/from-axolotl.md": (AXOLOTL,),
    DOCS / "how-to/from-trl.md": (TRL, TRANSFORMERS, PEFT),
}
BEGIN = "<!-- The tables are made by `python tests/recipe_tables.py`. -->\n"
BEGIN_ELSEWHERE = "<!-- The names are made by `python tests/recipe_tables.py`. -->\n"
END_ELSEWHERE = "<!-- The end of the names. -->\n"


def tables() -> str:
    lines = []
    for group in groups():
        lines += ["", f"### {group}", "", group_purpose(group), ""]
        lines += ["| key | default | values | meaning |", "|---|---|---|---|"]
        for key in all_keys():
            if key.group == group:
                values = key.type + (f": {key.allowed}" if key.allowed else "")
                cells = (f"`{key.path}`", key.usual, values, key.description)
                lines.append(f"| {' | '.join(cells)} |".replace("<", "&lt;"))
    return "\n".join(lines) + "\n"


def names_elsewhere() -> str:
    """What others call our keys, and what has no key."""
    tools = [tool for tool in TOOLS if tool != PEFT]
    lines = ["", f"| here | {' | '.join(tools).replace(TRANSFORMERS, 'Transformers, PEFT')} |"]
    lines.append("|---" * (len(tools) + 1) + "|")
    for key in all_keys():
        named = names_of(key.path)
        named[TRANSFORMERS] = named.get(TRANSFORMERS, []) + named.pop(PEFT, [])
        cells = [", ".join(map(_with_value, named.get(tool, []))) for tool in tools]
        if any(cells):
            lines.append(f"| `{key.path}` | {' | '.join(cells)} |")
    lines += ["", "| no key here | why |", "|---|---|"]
    ours = {key.name for key in all_keys()}
    for why, names in without_key().items():
        told = ", ".join(f"`{name}`" for name in names if name not in ours)
        lines.append(f"| {told} | {why} |")
    return "\n".join(lines) + "\n\n"


def names_of_tools(tools: tuple[str, ...]) -> str:
    """What configurations of these tools call our keys, and what has no key."""
    lines = ["", "| there | here |", "|---|---|"]
    for key in all_keys():
        named = names_of(key.path)
        for name in dict.fromkeys(name for tool in tools for name in named.get(tool, [])):
            meant = counterpart(name)
            said = meant.said if meant is not None else None
            lines.append(f"| `{name}` | `{said or key.path}` |")
    lines += ["", "| no key here | why |", "|---|---|"]
    ours = {key.name for key in all_keys()}
    for why, names in without_key().items():
        theirs = [n for n in names if n not in ours and set(_tools(n)) & set(tools)]
        if theirs:
            lines.append(f"| {', '.join(f'`{name}`' for name in theirs)} | {why} |")
    return "\n".join(lines) + "\n\n"


def _tools(name: str) -> tuple[str, ...]:
    meant = counterpart(name)
    return meant.tools if meant is not None else ()


def _with_value(name: str) -> str:
    meant = counterpart(name)
    said = meant.said if meant is not None else None
    return f"`{name}` ({said.partition(': ')[2]})" if said else f"`{name}`"


def page(text: str, tools: tuple[str, ...] = ()) -> str:
    """A page with every table as it should be; with ``tools``, one of those for people from a tool."""
    before, _, rest = text.partition(BEGIN_ELSEWHERE)
    after = rest.partition(END_ELSEWHERE)[2]
    if tools:
        return before + BEGIN_ELSEWHERE + names_of_tools(tools) + END_ELSEWHERE + after
    after = after.partition(BEGIN)[0]
    return before + BEGIN_ELSEWHERE + names_elsewhere() + END_ELSEWHERE + after + BEGIN + tables()


if __name__ == "__main__":
    for path, whose in {PAGE: (), **FROM}.items():
        path.write_text(page(path.read_text("utf-8"), whose), "utf-8")
