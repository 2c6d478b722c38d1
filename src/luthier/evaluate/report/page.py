"""`report.html`: all that a run folder says, for people who did not train it."""

import json
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined

from luthier import __version__
from luthier.data.conversation import flatten
from luthier.errors import UserError
from luthier.evaluate.report.drawing import Chart, chart, marks
from luthier.files import write_text
from luthier.run import Run

_SAMPLES = 12
_LONGEST = 1_200  # characters of a text that the page shows


def write_report(run: Run) -> Path:
    """Write the page of ``run`` into its folder and say where; what is not there yet is left out.

    Raises:
        UserError: a file of the run cannot be read.
    """
    write_text(run.report_path, render_report(run))
    return run.report_path


def render_report(run: Run) -> str:
    """The page: one file, no scripts, nothing fetched; every text of data and models is escaped."""
    recipe = run.recipe()
    lines = _lines(run)
    evaluation = _read(run.evaluation_path)
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    environment.filters["short"] = _short
    template = environment.from_string(
        files("luthier.evaluate.report").joinpath("page.html.j2").read_text("utf-8")
    )
    return template.render(
        name=run.root.name,
        recipe=recipe,
        recipe_text=recipe.to_yaml(),
        provenance=recipe.provenance,
        data=_read(run.data_report_path),
        plan=_read(run.plan_path),
        measured=_read(run.measured_path),
        evaluation=evaluation,
        headline=headline(evaluation) if evaluation else None,
        samples=_samples(evaluation) if evaluation else [],
        marks=marks,
        loss_chart=_loss_chart(lines),
        probe_chart=_probe_chart(lines),
        version=__version__,
    )


def headline(evaluation: dict[str, Any]) -> dict[str, Any]:
    """The answer in a sentence: how many measures got better or worse, and what was forgotten."""
    # Loss and perplexity are one measure.
    tests = {n: e for n, e in evaluation["metrics"].items() if n != "perplexity"}
    better = [e["label"] for e in tests.values() if e["test"]["verdict"] == "better"]
    worse = [e["label"] for e in tests.values() if e["test"]["verdict"] == "worse"]
    forgetting = evaluation["forgetting"]
    if worse and better:
        verdict = "mixed"
    elif worse:
        verdict = "worse"
    else:
        verdict = "better" if better else "no evidence"
    return {
        "verdict": verdict,
        "better": better,
        "worse": worse,
        "measures": len(tests),
        "forgetting": forgetting["verdict"] if forgetting else None,
    }


def _samples(evaluation: dict[str, Any]) -> list[dict[str, Any]]:
    """Some answered rows: those that the first metric says changed most, worse and better in turn."""
    rows = evaluation["samples"]
    names = [n for n in evaluation["metrics"] if n not in ("loss", "perplexity")]
    if names and rows:
        name = names[0] if len(names) == 1 else max(names, key=lambda n: _spread(rows, n))
        sign = 1 if evaluation["metrics"][name]["higher_is_better"] else -1

        def change(row: dict[str, Any]) -> float:
            return sign * float(row["scores"]["tuned"][name] - row["scores"]["base"][name])

        ordered = sorted(rows, key=change)
        half = _SAMPLES // 2
        # Best, worst and what lies between, so that nobody sees the best alone.
        middle = ordered[half:-half] if len(ordered) > _SAMPLES else []
        step = max(1, len(middle) // 4)
        rows = [*ordered[-4:][::-1], *middle[::step][:4], *ordered[:4]]
        rows = list({row["row"]: row for row in rows}.values())
    return [
        {**row, "prompt": "\n\n".join(m["content"] for m in flatten(tuple(row["messages"])))}
        for row in rows[:_SAMPLES]
    ]


def _spread(rows: list[dict[str, Any]], name: str) -> int:
    return len({row["scores"]["tuned"][name] - row["scores"]["base"][name] for row in rows})


def _loss_chart(lines: list[dict[str, Any]]) -> Chart | None:
    return chart(
        [
            ("training loss", "base", [(x["step"], x["loss"]) for x in lines if "loss" in x]),
            (
                "validation loss",
                "tuned",
                [(x["step"], x["eval_loss"]) for x in lines if "eval_loss" in x],
            ),
        ]
    )


def _probe_chart(lines: list[dict[str, Any]]) -> Chart | None:
    key = "eval_probe_accuracy"
    points = [(line["step"], line[key]) for line in lines if key in line]
    return chart([("general questions right", "probe", points)], percent=True)


def _lines(run: Run) -> list[dict[str, Any]]:
    if not run.metrics_path.is_file():
        return []
    try:
        return [json.loads(line) for line in run.metrics_path.read_text("utf-8").splitlines()]
    except ValueError as error:
        raise UserError(f"{run.metrics_path} is damaged: {error}") from None


def _read(path: Path) -> Any:
    """The JSON in ``path``, None where there is no such file."""
    try:
        return json.loads(path.read_text("utf-8")) if path.is_file() else None
    except ValueError as error:
        raise UserError(f"{path} is damaged: {error}") from None


def _short(text: str) -> str:
    return text if len(text) <= _LONGEST else text[:_LONGEST] + " …"
