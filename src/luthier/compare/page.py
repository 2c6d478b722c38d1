"""Comparisons as Markdown and as one self-contained HTML file."""

import math
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from luthier.compare.folder import ComparisonFolder
from luthier.compare.tables import (
    approaches_table,
    groups_table,
    markdown,
    quality_table,
    resources_table,
    rules_table,
    signed,
    tests_table,
)
from luthier.files import write_text


def write_approaches(comparison: dict[str, Any], out: Path) -> None:
    """Write the page and the Markdown document of an approaches comparison into ``out``."""
    parts = [
        "# Prompt, documents, or training?",
        f"{comparison['rows']} questions of `{comparison['data']}`; 95% intervals over them.",
        markdown(approaches_table(comparison)),
    ]
    if comparison["by"]:
        parts += [f"## By {comparison['by']}", markdown(groups_table(comparison))]
    if comparison["rules"]:
        parts += ["## What the advisor says", markdown(rules_table(comparison))]
    write_text(ComparisonFolder(out).document_path, "\n\n".join(parts) + "\n")

    def quality(metric: dict[str, Any]) -> list[dict[str, Any]]:
        scores = [(e["name"], e["scores"][metric["name"]]) for e in comparison["approaches"]]
        return [{"name": name, **score, "text": f"{score['mean']:.1%}"} for name, score in scores]

    head, rows = approaches_table(comparison)
    group_head, group_rows = groups_table(comparison)
    page = _environment().get_template("approaches.html.j2")
    write_text(
        ComparisonFolder(out).page_path,
        page.render(
            comparison=comparison,
            head=head,
            rows=rows,
            group_head=group_head,
            group_rows=group_rows,
            quality=quality,
            signed=signed,
        ),
    )


def write_methods(comparison: dict[str, Any], out: Path) -> None:
    """Write the page and the Markdown document of a methods comparison into ``out``."""
    tests = tests_table(comparison)
    head = f"{comparison['rows']} rows of `{comparison['data']}`; 95% intervals over them."
    quality, resources = quality_table(comparison), resources_table(comparison)
    parts = ["# Variants compared", head, *map(markdown, (quality, resources, tests))]
    write_text(ComparisonFolder(out).document_path, "\n\n".join(parts) + "\n")
    metric = comparison["metrics"][0]
    entries = comparison["variants"]
    points = [
        {
            "name": entry["name"],
            "x": entry["peak_measured_bytes"] / 2**30,
            "y": entry["scores"][metric["name"]]["mean"],
            "low": entry["scores"][metric["name"]]["low"],
            "high": entry["scores"][metric["name"]]["high"],
        }
        for entry in entries
    ]
    curves = {
        key: [
            {"name": entry["name"], "points": _smoothed(entry["curve"][key], width)}
            for entry in entries
            if entry["curve"][key]
        ]
        for key, width in (("loss", 5), ("eval_loss", 1))
    }
    page = _environment().get_template("methods.html.j2")
    write_text(
        ComparisonFolder(out).page_path,
        page.render(
            comparison=comparison,
            metric=metric,
            quality=quality,
            resources=resources,
            tests=tests,
            points=points,
            memory_top=_round_up(1.1 * max(point["x"] for point in points)),
            quality_range=(0, 1)
            if metric["share"]
            else _range([[p["low"], p["high"]] for p in points]),
            curves=curves,
            steps={
                key: _round_up(max((line["points"][-1][0] for line in curves[key]), default=1))
                for key in curves
            },
            ranges={
                key: _range([[y for _, y in line["points"]] for line in curves[key]])
                for key in curves
            },
        ),
    )


def _smoothed(points: list[list[float]], width: int) -> list[list[float]]:
    """The mean of each point with up to ``width`` - 1 before it."""
    smooth = []
    for place, (x, _) in enumerate(points):
        window = [y for _, y in points[max(0, place + 1 - width) : place + 1]]
        smooth.append([x, sum(window) / len(window)])
    return smooth


def _round_up(value: float) -> float:
    """The least number over ``value`` whose quarters are short to write."""
    magnitude = 10.0 ** math.floor(math.log10(value))
    return next(
        s * magnitude for s in (1, 1.2, 1.6, 2, 2.4, 3, 4, 5, 6, 8, 10) if s * magnitude >= value
    )


def _range(columns: list[list[float]]) -> tuple[float, float]:
    values = [value for column in columns for value in column] or [0.0, 1.0]
    low, high = min(0.0, *values), max(values)
    return low, _round_up(high) if high > 0 else low + 1


def _environment() -> Environment:
    # Every text of the data is escaped.
    return Environment(
        loader=PackageLoader("luthier.compare", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
    )
