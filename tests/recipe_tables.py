"""The tables of docs/recipe.md: ``python tests/recipe_tables.py`` writes them anew."""

from pathlib import Path

from luthier.recipe.keys import all_keys, group_purpose
from luthier.recipe.schema import groups

PAGE = Path(__file__).parents[1] / "docs" / "recipe.md"
BEGIN = "<!-- The tables are made by `python tests/recipe_tables.py`. -->\n"


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


if __name__ == "__main__":
    text = PAGE.read_text("utf-8")
    PAGE.write_text(text[: text.index(BEGIN) + len(BEGIN)] + tables(), "utf-8")
