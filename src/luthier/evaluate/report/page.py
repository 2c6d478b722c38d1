"""`report.html`: all that a run folder says, for people who did not train it."""

from importlib.resources import files
from pathlib import Path

from jinja2 import Environment, StrictUndefined

from luthier import __version__
from luthier.data.conversation import flatten
from luthier.evaluate.probe.remedies import probe_curve
from luthier.evaluate.report.drawing import Chart, chart, marks
from luthier.evaluate.report.headline import grown, headline
from luthier.files import write_text
from luthier.records import AnsweredRow, Evaluation, MetricsLine
from luthier.run import Run

_SAMPLES = 12
_LONGEST = 1_200  # characters of a text that the page shows


def write_report(run: Run) -> Path:
    """Write the page of ``run`` into its folder and say where; what does not exist yet is skipped.

    Raises:
        UserError: a file of the run cannot be read.
    """
    write_text(run.report_path, render_report(run))
    return run.report_path


def render_report(run: Run) -> str:
    """The page: one file, no scripts, nothing fetched; every text of data and models is escaped."""
    recipe = run.read_recipe()
    lines = run.metrics()
    evaluation = run.evaluation()
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    environment.filters["short"] = _short
    template = environment.from_string(
        files("luthier.evaluate.report").joinpath("page.html.j2").read_text("utf-8")
    )
    return template.render(
        name=run.root.name,
        recipe=recipe,
        recipe_text=recipe.to_yaml(),
        provenance=run.provenance(),
        data=run.data_report(),
        plan=run.plan(),
        measured=run.measured() if run.finished else None,
        evaluation=evaluation,
        headline=headline(evaluation) if evaluation else None,
        grown=_grown(evaluation) if evaluation else None,
        samples=_samples(evaluation) if evaluation else [],
        marks=marks,
        loss_chart=_loss_chart(lines),
        probe_chart=_probe_chart(run),
        version=__version__,
    )


def _grown(evaluation: Evaluation) -> str | None:
    found = evaluation.wins or evaluation.preference
    return grown(found.lengths) if found is not None and found.lengths is not None else None


def _samples(evaluation: Evaluation) -> list[dict[str, str]]:
    """Some answered rows: those that the first metric says changed most, worse and better in turn."""
    rows = evaluation.samples
    # Of answers: loss, perplexity and the preference of pairs score none.
    names = [name for name in evaluation.metrics if rows and name in rows[0].scores.base]
    if names:
        name = names[0] if len(names) == 1 else max(names, key=lambda n: _spread(rows, n))
        sign = 1 if evaluation.metrics[name].higher_is_better else -1
        ordered = sorted(rows, key=lambda row: sign * _change(row, name))
        half = _SAMPLES // 2
        # Best, worst and what lies between, so that the best are not shown alone.
        middle = ordered[half:-half] if len(ordered) > _SAMPLES else []
        step = max(1, len(middle) // 4)
        rows = [*ordered[-4:][::-1], *middle[::step][:4], *ordered[:4]]
        rows = list({row.row: row for row in rows}.values())
    return [
        {
            "prompt": "\n\n".join(m["content"] for m in flatten(tuple(row.messages))),
            "reference": row.reference,
            "base": row.base,
            "tuned": row.tuned,
        }
        for row in rows[:_SAMPLES]
    ]


def _change(row: AnsweredRow, name: str) -> float:
    return row.scores.tuned[name] - row.scores.base[name]


def _spread(rows: list[AnsweredRow], name: str) -> int:
    return len({_change(row, name) for row in rows})


def _loss_chart(lines: list[MetricsLine]) -> Chart | None:
    trained = [(x.step, x.loss) for x in lines if x.loss is not None]
    validated = [(x.step, x.eval_loss) for x in lines if x.eval_loss is not None]
    return chart([("training loss", "base", trained), ("validation loss", "tuned", validated)])


def _probe_chart(run: Run) -> Chart | None:
    return chart([("general questions right", "probe", probe_curve(run))], percent=True)


def _short(text: str) -> str:
    return text if len(text) <= _LONGEST else text[:_LONGEST] + " …"
