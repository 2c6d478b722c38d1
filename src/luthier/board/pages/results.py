"""What a run's records say: better or not, what it forgot, and how the plan held."""

from collections.abc import Callable

from nicegui import ui

from luthier.board.look import card, duration, gigabytes, heading, pill
from luthier.board.parts import (
    Versus,
    bar,
    change,
    content,
    forest,
    interval,
    is_share,
    pair,
    table,
    whisker,
)
from luthier.errors import UserError
from luthier.records import AnsweredRow, Evaluation, Measured, Plan
from luthier.records.evaluation import (
    AnyCompared,
    Compared,
    Forgetting,
    MetricCompared,
    PreferenceFindings,
)
from luthier.run import Run

_AT_ONCE = 10  # samples


def show_answer(evaluation: Evaluation) -> None:
    """Whether it is better and what it forgot: in a word, and as a picture of each metric."""
    from luthier.api import headline

    found = headline(evaluation)
    with ui.element("section").classes(f"answer {found.verdict.replace(' ', '-')}"):
        with ui.element("div").classes("big"):
            ui.label("Is it better at the task?")
            pill(found.verdict)
        if found.better:
            ui.label(f"better by {', '.join(found.better)}")
        if found.worse:
            ui.label(f"worse by {', '.join(found.worse)}")
        if found.forgetting is None:
            ui.label("Forgetting was not measured.").classes("soft small")
        else:
            with ui.element("div").classes("big"):
                ui.label("Has it kept what it knew?")
                pill(found.forgetting)
        if evaluation.seen_in_training:
            ui.label(
                f"{evaluation.seen_in_training:,} of the {evaluation.rows:,} rows are in the training "
                "set: these scores are optimistic."
            ).classes("wrap")
        forest(
            [
                Versus(metric.label, metric.test, metric.share, metric.higher_is_better)
                for metric in evaluation.metrics.values()
                if isinstance(metric, MetricCompared)  # perplexity is the loss again
            ],
            "the base",
            one_scale=False,
        )


def show_evaluation(evaluation: Evaluation) -> None:
    """The figures behind the answer."""
    with card(
        "Better by how much",
        f"{evaluation.rows:,} rows of {evaluation.data}; {evaluation.answered_rows:,} answered. Under "
        "each figure is its interval of 95%; both sides are compared row by row.",
    ):
        with ui.element("div").classes("legend"):
            _key("base", "before")
            _key("tuned", "after")
        rows: dict[str, AnyCompared] = {**evaluation.metrics, **evaluation.tasks}
        _compared("Measures", [(entry.label, entry) for entry in rows.values()])
        if evaluation.preference is not None:
            _preference(evaluation.preference)
        if evaluation.forgetting is not None:
            _forgetting(evaluation.forgetting)


def _preference(found: PreferenceFindings) -> None:
    heading("Pairs of a better and a worse answer", 3)
    lengths = found.lengths
    table(
        ("of held-out pairs", "mean"),
        [
            ("chosen answer has the higher reward", interval(found.accuracy, share=True)),
            ("margin of the rewards", interval(found.margin, share=False)),
            ("reward of chosen answers", interval(found.chosen, share=False)),
            ("reward of rejected answers", interval(found.rejected, share=False)),
            *(
                []
                if lengths is None
                else [
                    ("characters of an answer, before", interval(lengths.base, share=False)),
                    ("characters of an answer, after", interval(lengths.tuned, share=False)),
                ]
            ),
        ],
        numbers=(1,),
    )


def _forgetting(found: Forgetting) -> None:
    heading("General skill, by area", 3)
    for reason in found.reasons:
        ui.label(reason).classes("wrap")
    rows: list[tuple[str, AnyCompared | Compared]] = [
        ("all areas", found.accuracy),
        *found.areas.items(),
    ]
    _compared(
        "General skill, by area",
        [*rows, (found.text.perplexity.label, found.text.perplexity), ("leaks", found.leakage)],
    )
    for remedy in found.remedies:
        with ui.element("div").classes("boxed"):
            ui.label(remedy.what)
            ui.label(remedy.why).classes("soft small wrap")
            ui.label(remedy.how).classes("mono")


def _compared(
    name: str,
    rows: "list[tuple[str, AnyCompared]] | list[tuple[str, AnyCompared | Compared]]",
) -> None:
    table(
        ("measure", "verdict", "before", "after", "intervals", "change"),
        [
            (
                label,
                lambda word=entry.test.verdict: pill(word),  # type: ignore[misc]
                interval(entry.base, is_share(entry)),
                interval(entry.tuned, is_share(entry)),
                whisker(entry.base, entry.tuned, is_share(entry)),
                change(entry, is_share(entry)),
            )
            for label, entry in rows
        ],
        numbers=(2, 3, 5),
        name=name,
    )


def _key(side: str, text: str) -> None:
    with ui.element("span"):
        ui.element("span").classes(f"key of-{side}")
        ui.label(text).classes("as-text")


def show_samples(run: Run, evaluation: Evaluation) -> None:
    """Answers of base and tuned; more of them at a time."""
    rows = list(evaluation.samples)
    if not rows:
        return
    with card("Answers, base beside tuned", "what differs is marked"):
        shown = ui.column().classes("content-part")
        position = [0]

        def more() -> None:
            if position[0] == len(evaluation.samples):  # the rest is in a file of its own
                try:
                    rows[:] = run.answered_rows() or rows
                except UserError as error:
                    ui.notify(str(error))
            start = position[0]
            position[0] = min(len(rows), start + _AT_ONCE)
            with shown:
                for row in rows[start : position[0]]:
                    _sample(row)
            count.set_text(f"{position[0]:,} of {evaluation.answered_rows:,}")
            button.set_visibility(position[0] < evaluation.answered_rows)

        with ui.element("div").classes("line"):
            count = ui.label().classes("soft small num")
            button = (
                ui.button("Show more", on_click=more).props("flat no-caps dense").classes("quiet")
            )
        more()


def _sample(row: AnsweredRow) -> None:
    with ui.element("article").classes("sample"):
        with ui.element("div").classes("line"):
            ui.label(row.row.rpartition("/")[2]).classes("soft small")
            for name, score in row.scores.tuned.items():
                before = row.scores.base.get(name)
                if before is not None:
                    ui.label(f"{name}: {before:.2f} → {score:.2f}").classes("soft small num")
        ui.label("\n\n".join(content(turn) for turn in row.messages)).classes("text")
        pair(row.base, row.tuned)
        if row.reference:
            with ui.element("details"):
                with ui.element("summary"):
                    ui.label("Reference").classes("as-text")
                ui.label(row.reference).classes("text")


def show_plan(plan: Plan, measured: Measured | None) -> None:
    """What was predicted beside what was measured."""
    took = measured
    seconds = plan.seconds
    speed = plan.tokens_per_second
    rows: list[tuple[str, float, float | None, Callable[[float | None], str]]] = [
        ("peak memory", plan.memory.peak, took.peak_memory_bytes if took else None, gigabytes)
    ]
    if seconds is not None:
        rows.append(("time", sum(seconds) / 2, took.seconds if took else None, duration))
    if speed is not None:
        rows.append(
            (
                "tokens per second",
                sum(speed) / 2,
                took.tokens_per_second if took else None,
                _rounded,
            )
        )
    with card("Plan against measured", f"planned for {plan.device}; times are {plan.basis}"):
        for name, planned, real, said in rows:
            most = max(planned, real or 0.0) or 1.0
            error = "" if real is None or not real else f" ({planned / real - 1:+.0%})"
            with ui.element("div").classes("pair"):
                with ui.element("div"):
                    ui.label(f"{name}, planned: {said(planned)}{error}").classes("small num")
                    bar(planned / most)
                with ui.element("div"):
                    ui.label(f"measured: {said(real)}").classes("small num")
                    bar((real or 0.0) / most)


def _rounded(value: float | None) -> str:
    return "–" if value is None else f"{value:,.0f}"
