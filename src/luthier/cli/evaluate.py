"""`luthier evaluate`."""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from luthier.cli.app import AdapterScale, Json, app, out, print_json, split_list
from luthier.cli.terminal import terminal
from luthier.cli.trusting import Trust
from luthier.cli.tuned import BaseModel, open_tuned
from luthier.errors import UserError
from luthier.recipe import parse_overrides
from luthier.records import AnsweredRow, Evaluation
from luthier.records.evaluation import (
    AnyCompared,
    Confusion,
    Forgetting,
    Interval,
    Outcome,
    PerplexityCompared,
    PreferenceFindings,
    Wins,
)


@app.command()
def evaluate(
    run_path: Annotated[Path, typer.Argument(metavar="RUN", help="The folder of a finished run.")],
    data: Annotated[
        str | None,
        typer.Option(help="Rows to evaluate on; by default the run's validation rows."),
    ] = None,
    metrics: Annotated[
        str | None,
        typer.Option(
            help="Metrics instead of the recipe's, separated by commas; a .py file with "
            "score(answer, row) is a metric of your own."
        ),
    ] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="evaluate.KEY=VALUE",
            help="Use another value of the recipe's evaluate group, such as "
            "evaluate.reward_model=runs/reward, evaluate.judge_model=gpt-4o or evaluate.win_rate=true; "
            "may be repeated.",
        ),
    ] = None,
    adapter_scale: AdapterScale = 1.0,
    probe: Annotated[
        bool | None,
        typer.Option(
            "--probe/--no-probe",
            help="Measure forgetting; by default as the recipe's evaluate.probe says.",
        ),
    ] = None,
    lm_eval: Annotated[
        str | None,
        typer.Option(
            help="Also run these tasks of lm-evaluation-harness, separated by commas: names or .yaml "
            "files; their data is fetched from the hub if it is not on this machine."
        ),
    ] = None,
    lm_eval_limit: Annotated[
        int | None, typer.Option(min=1, help="Most rows per task of --lm-eval.")
    ] = None,
    trust: Trust = False,
    samples: Annotated[int, typer.Option(min=0, help="Answers to show side by side.")] = 4,
    base_model: BaseModel = None,
    as_json: Json = False,
) -> None:
    """Compare the tuned model with its base on held-out rows, and say how certain the result is.

    Loss and perplexity are over supervised tokens; answers are decoded greedily and scored by the
    recipe's `evaluate.metrics`. Every figure has a 95% confidence interval, and a paired test says
    whether the tuned model is better, worse, or whether there is not enough evidence. Writes
    `evaluation.json`, `report.html` and `evaluation/` into the run folder. Run it again after an
    interruption and it goes on where it stopped.

    Example: `luthier evaluate runs/first --data test.jsonl --metrics exact_match,chrf`

    Whose answers are better, by a reward model: `luthier evaluate runs/dpo --set
    evaluate.reward_model=runs/reward`
    """
    settings = _settings(overrides or [])
    run = open_tuned(run_path, base_model, trust)
    from luthier.api import evaluate_run

    with terminal() as on_event:
        evaluation = evaluate_run(
            run,
            data,
            on_event,
            metrics=split_list(metrics) or None,
            settings=settings,
            adapter_scale=adapter_scale,
            probe=probe,
            tasks=split_list(lm_eval),
            tasks_limit=lm_eval_limit,
        )
    from luthier.api import write_report

    page = write_report(run)
    if as_json:
        print_json(evaluation.to_dict())
        return
    if evaluation.metrics:
        show_comparison(evaluation)
    if evaluation.preference is not None:
        show_preference(evaluation.preference)
    if evaluation.wins is not None:
        show_wins(evaluation.wins)
    if evaluation.forgetting is not None:
        show_forgetting(evaluation.forgetting)
    show_samples(evaluation, samples)
    out.print(f"report: {page}", highlight=False, soft_wrap=True)


def _settings(overrides: list[str]) -> dict[str, Any]:
    changes = parse_overrides(overrides)
    others = [group for group in changes if group != "evaluate"]
    if others:
        raise UserError(
            f"--set changes keys of the group evaluate here, not of {others[0]}: the run was trained with "
            "its recipe"
        )
    return changes.get("evaluate", {})


def show_comparison(evaluation: Evaluation) -> None:
    """Base and tuned, one row per figure, each with its interval, and the verdict."""
    title = f"{evaluation.rows} held-out rows, {evaluation.supervised_tokens:,} tokens scored"
    if evaluation.answered_rows:
        title += f", {evaluation.answered_rows} answered"
    table = _figures("", "base", "tuned", "change", "p", "verdict")
    for entry in (*evaluation.metrics.values(), *evaluation.tasks.values()):
        form = _percent if entry.share else _number
        table.add_row(
            entry.label,
            _with_interval(entry.base, form),
            _with_interval(entry.tuned, form),
            Text(_change(entry)),
            _p(entry.test.p),
            Text(entry.test.verdict, style=VERDICT_STYLES[entry.test.verdict]),
        )
    out.print(title, highlight=False)
    out.print(table)
    if evaluation.seen_in_training:
        warning = (
            f"{evaluation.seen_in_training} of these rows are in the training set: scores are "
            "optimistic"
        )
        out.print(warning, style="bold yellow", highlight=False)
    out.print(
        "[95% confidence interval]; changes of shares are in percentage points",
        style="dim",
        markup=False,
    )
    if evaluation.classification is not None:
        show_confusion(evaluation.classification.tuned)


def show_preference(found: PreferenceFindings) -> None:
    """What the held-out pairs show, and how long answers became."""
    table = Table(f"{found.pairs} held-out pairs", "", box=SIMPLE_HEAD)
    table.add_row("chosen answer has the higher reward", _with_interval(found.accuracy, _percent))
    table.add_row("reward of chosen answers", _with_interval(found.chosen, _number))
    table.add_row("reward of rejected answers", _with_interval(found.rejected, _number))
    table.add_row("margin", _with_interval(found.margin, _number))
    if found.lengths is not None:
        sides = (found.lengths.base, found.lengths.tuned)
        base, tuned = (_with_interval(side, "{:.0f}".format) for side in sides)
        table.add_row("characters of answers, base", base)
        table.add_row("characters of answers, tuned", tuned)
    out.print(table)
    accuracy = found.accuracy
    if accuracy.low <= 0.5 <= accuracy.high:
        out.print("not enough evidence that it prefers the chosen answers", style="yellow")


def show_wins(found: Wins) -> None:
    """Whose answers are better by each judge, and how long they are."""
    out.print("win rate against the base")
    table = Table("judged by", "", "won", "tied", "lost", "p", "verdict", box=SIMPLE_HEAD)
    for rate in found.rates:
        table.add_row(
            Text(rate.judge),
            _with_interval(rate.rate, _percent),
            str(rate.wins),
            str(rate.ties),
            str(rate.losses),
            _p(rate.test.p),
            Text(rate.test.verdict, style=VERDICT_STYLES[rate.test.verdict]),
        )
    out.print(table)
    for rate in found.rates:
        if rate.swayed:
            text = f"{rate.judge} said otherwise in the other order for {rate.swayed} rows: ties"
            out.print(text, markup=False, highlight=False)
        if rate.longer is not None:
            longer = _with_interval(rate.longer, _percent)
            out.print(Text(f"by {rate.judge} the longer answer wins: ") + longer)
    before, after = (
        _with_interval(side, "{:.0f}".format) for side in (found.lengths.base, found.lengths.tuned)
    )
    out.print(Text("characters of an answer: base ") + before + Text(", tuned ") + after)


def _change(entry: AnyCompared) -> str:
    """The change with its interval: a ratio for perplexities, percentage points for shares."""
    if isinstance(entry, PerplexityCompared):
        ratio = entry.ratio
        return f"×{ratio.ratio:.3g} [{ratio.low:.3g}, {ratio.high:.3g}]"
    signed = "{:+.1f}" if entry.share else "{:+.3g}"
    factor = 100 if entry.share else 1
    test = entry.test
    change, low, high = (
        signed.format(factor * value) for value in (test.difference, test.low, test.high)
    )
    return f"{change} [{low}, {high}]"


VERDICT_STYLES = {
    "better": "bold green",
    "worse": "bold red",
    "no evidence": "yellow",
    "kept": "bold green",
    "some forgetting": "bold yellow",
    "forgot": "bold red",
}


def _figures(first: str, *others: str) -> Table:
    table = Table(box=SIMPLE_HEAD)
    table.add_column(first, no_wrap=True)
    for name in others:
        table.add_column(name)
    return table


def _with_interval(side: Interval, form: Callable[[float], str]) -> Text:
    low, high = (form(value).removesuffix("%") for value in (side.low, side.high))
    return Text(f"{form(side.mean)} [{low}, {high}]")


def _percent(value: float) -> str:
    return f"{100 * value:.1f}%"


def _number(value: float) -> str:
    return f"{value:.3f}" if abs(value) < 1000 else f"{value:.3g}"


def show_forgetting(found: Forgetting) -> None:
    """What the general probe found, its verdict, and what to do."""
    table = _figures("general skill", "base", "tuned", "change", "p")
    for name, entry in {"all questions": found.accuracy, **found.areas}.items():
        table.add_row(
            name,
            _with_interval(entry.base, _percent),
            _with_interval(entry.tuned, _percent),
            Text(f"{100 * entry.test.difference:+.1f}", style=_style(entry.test)),
            _p(entry.test.p),
        )
    prose = found.text.perplexity
    table.add_row(
        "perplexity of prose",
        _with_interval(prose.base, _number),
        _with_interval(prose.tuned, _number),
        Text(f"×{prose.ratio.ratio:.3g}", style=_style(prose.test)),
        _p(prose.test.p),
    )
    leakage = found.leakage
    table.add_row(
        "format leakage",
        _with_interval(leakage.base, _percent),
        _with_interval(leakage.tuned, _percent),
        Text(f"{100 * leakage.test.difference:+.1f}", style=_style(leakage.test)),
        _p(leakage.test.p),
    )
    out.print(table)
    if found.kl is not None:
        out.print(f"KL(base ‖ tuned) {found.kl.mean:.3f} nats per token", highlight=False)
    style = VERDICT_STYLES[found.verdict]
    out.print(Text(found.verdict, style=style), *found.reasons, sep="\n  ", highlight=False)
    for leak in leakage.leaks[:2]:
        shown = f"  {leak.question!r} → {_shortened(leak.tuned, 120)!r} ({leak.kind})"
        out.print(shown, markup=False, highlight=False)
    for number, remedy in enumerate(found.remedies, 1):
        text = f"{number}. {remedy.what}: {remedy.why}\n   {remedy.how}"
        out.print(text, markup=False, highlight=False, soft_wrap=True)


def _style(test: Outcome) -> str:
    return "" if test.verdict == "no evidence" else VERDICT_STYLES[test.verdict]


def _p(value: float) -> str:
    return "<0.001" if value < 0.001 else f"{value:.3f}"


def show_confusion(confusion: Confusion) -> None:
    """The tuned model's labels, one row per true label."""
    table = Table(
        "tuned: true \\ predicted", *map(escape, confusion.labels), "none", "recall", "F1"
    )
    for label, counts, recall, f1 in zip(
        confusion.labels,
        confusion.counts,
        confusion.recall,
        confusion.f1,
        strict=True,
    ):
        table.add_row(Text(label), *map(str, counts), _percent(recall), f"{f1:.2f}")
    out.print(table)


def show_samples(evaluation: Evaluation, count: int) -> None:
    """The first answers, base and tuned side by side."""
    for sample in evaluation.samples[:count]:
        out.print(_sample_table(sample))


def _sample_table(sample: AnsweredRow) -> Table:
    table = Table(show_header=False)
    question = sample.messages[-1]
    prompt = "\n".join(filter(None, [question["content"], question.get("input", "")]))
    # Text, not markup: an answer may hold square brackets.
    for label, text in [
        ("row", sample.row),
        ("prompt", prompt),
        ("reference", sample.reference),
        ("base", sample.base),
        ("tuned", sample.tuned),
    ]:
        table.add_row(label, Text(_shortened(text)))
    return table


def _shortened(text: str, limit: int = 400) -> str:
    return text if len(text) <= limit else text[:limit] + " …"
