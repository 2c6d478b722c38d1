"""Comparisons: which variant of a recipe, or which approach, is better."""

from collections.abc import Sequence
from typing import Annotated, Any

from nicegui import run as background
from nicegui import ui
from pydantic import Field, TypeAdapter, ValidationError

from luthier.api import ComparisonFolder
from luthier.board.colours import Palette
from luthier.board.curves import options, thinned
from luthier.board.dots import Dot, Group, scatter
from luthier.board.folders import Study
from luthier.board.look import card, pill
from luthier.board.pages.studies import GoingOn, add_pages, run_link
from luthier.board.parts import Versus, figure, forest, table, words_table
from luthier.board.state import Board
from luthier.errors import UserError
from luthier.records.comparison import (
    ApproachesCompared,
    ApproachSample,
    ComparedMetric,
    VariantsCompared,
)

_ANY: TypeAdapter[VariantsCompared | ApproachesCompared] = TypeAdapter(
    Annotated[VariantsCompared | ApproachesCompared, Field(discriminator="kind")]
)
_OPEN = 3  # samples that are shown unfolded
_MOST_CURVES = 8

Compared = VariantsCompared | ApproachesCompared


def add(board: Board) -> None:
    """Register the pages."""
    add_pages(board, "/compare", "comparison", lambda study: not study.is_sweep, _told, _show)


async def _show(study: Study, colours: Palette) -> None:
    if not study.folder.record_path.is_file():
        await _begun(study, colours)
        return
    found = await background.io_bound(read_comparison, study)
    if isinstance(found, VariantsCompared):
        _show_variants(study, found, colours)
    elif found is not None:
        _show_approaches(found, colours)


def read_comparison(study: Study) -> Compared:
    """What comparison.json holds.

    Raises:
        UserError: it cannot be read, or is damaged.
    """
    path = study.folder.record_path
    try:
        return _ANY.validate_json(path.read_bytes())
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    except ValidationError as error:
        issue = error.errors()[0]
        where = ".".join(map(str, issue["loc"][1:]))
        raise UserError(f"{path} is damaged: {where}: {issue['msg']}") from None


def _told(study: Study) -> tuple[str, str]:
    return _verdict(read_comparison(study))


def _verdict(compared: Compared) -> tuple[str, str]:
    """Whether anything is better than the reference by the first metric, in a word and a sentence."""
    reference, rows = _against(compared, compared.metrics[0])
    label = compared.metrics[0].label
    better = [row.name for row in rows if row.test.verdict == "better"]
    worse = [row.name for row in rows if row.test.verdict == "worse"]
    if better:
        verb = "is" if len(better) == 1 else "are"
        return "better", f"{', '.join(better)} {verb} better than {reference} by {label}"
    if worse and len(worse) == len(rows):
        verb = "is" if len(worse) == 1 else "are"
        return "worse", f"{', '.join(worse)} {verb} worse than {reference} by {label}"
    return "no evidence", f"these rows do not show that anything beats {reference} by {label}"


def _against(compared: Compared, metric: ComparedMetric) -> tuple[str, list[Versus]]:
    """The reference, and all else held against it."""
    if isinstance(compared, VariantsCompared):
        tests = [(v.name, v.against_reference) for v in compared.variants]
        reference = compared.reference
    else:
        tests = [(a.name, a.against_first) for a in compared.approaches]
        reference = compared.approaches[0].name
    return reference, [
        Versus(name, found[metric.name], metric.share, metric.higher_is_better)
        for name, found in tests
        if found
    ]


async def _begun(study: Study, colours: Palette) -> None:
    """A comparison that has no result yet."""
    assert isinstance(study.folder, ComparisonFolder)
    answers = study.folder.answers_path
    if answers.is_file() and not study.runs():
        with ui.element("section").classes("answer"):
            pill("running" if study.folder.worker() is not None else "stopped")
            said = ui.label().props("aria-live=polite")

        def look() -> None:
            if study.folder.record_path.is_file():
                ui.navigate.reload()
            count = answers.read_bytes().count(b"\n")
            said.set_text(f"{count:,} questions answered so far")

        look()
        ui.timer(3.0, look, immediate=False)
        return
    await GoingOn(study, colours, study.folder.record_path.is_file).build()


def _answer(compared: Compared) -> None:
    """The verdict first, as a picture of each metric."""
    word, said = _verdict(compared)
    with ui.element("section").classes(f"answer {word.replace(' ', '-')}"):
        with ui.element("div").classes("big"):
            pill(word)
            ui.label(said).classes("wrap")
        if compared.seen_in_training:
            ui.label(
                f"{compared.seen_in_training:,} of these rows are in the training set: these scores "
                "are optimistic."
            ).classes("wrap")
    for metric in compared.metrics:
        reference, rows = _against(compared, metric)
        with card(metric.label):
            forest(rows, reference)


def _show_variants(study: Study, found: VariantsCompared, colours: Palette) -> None:
    from luthier.api import quality_table, resources_table, tests_table

    told = found.to_dict()
    _answer(found)
    seeds = f"; means of {found.seeds} seeds" if found.seeds > 1 else ""
    with card(
        "Quality",
        f"{found.rows:,} rows of {found.data}, with intervals of 95% over them{seeds}",
    ):
        words_table(*quality_table(told))
        for variant in found.variants:
            if variant.forgetting and variant.forgetting.reasons:
                with ui.element("div").classes("line"):
                    pill(variant.forgetting.verdict)
                    reasons = "; ".join(variant.forgetting.reasons)
                    ui.label(f"{variant.name}: {reasons}").classes("wrap grow")
    with card("Curves"), ui.element("div").classes("charts"):
        for title, key in (("Validation loss", "eval_loss"), ("Training loss", "loss")):
            curves = [
                (v.name, thinned(getattr(v.curve, key)), colours.runs[n])
                for n, v in enumerate(found.variants[:_MOST_CURVES])
                if getattr(v.curve, key)
            ]
            if curves:
                with ui.element("div"):
                    ui.label(title).classes("h3").props("role=heading aria-level=3")
                    chart = ui.echart(options(curves, colours)).classes("chart tall")
                    chart.props(f'role=img aria-label="{title} of the variants by step"')
        with ui.element("div"):
            metric = found.metrics[0]
            ui.label("Quality against memory").classes("h3").props("role=heading aria-level=3")
            groups = [
                _placed(
                    v.name,
                    v.peak_measured_bytes / 2**30,
                    f"{v.peak_measured_bytes / 2**30:.2f} GiB",
                    v.scores[metric.name],
                    metric,
                    colours.runs[n % len(colours.runs)],
                )
                for n, v in enumerate(found.variants)
            ]
            _scatter(groups, colours, "peak memory, GiB", metric)
    with card("What each took"):
        words_table(*resources_table(told))
    with card(
        f"Against {found.reference}",
        "paired by row; shares change by points. Not enough evidence means that these rows do not "
        "tell the two apart, not that they are equal.",
    ):
        words_table(*tests_table(told))
    with card("Runs"):
        known = {str(run.root): study.run_name(run) for run in study.runs()}
        names = {run.root.name: study.run_name(run) for run in study.runs()}
        table(
            ("variant", "runs"),
            [
                (
                    variant.name,
                    _links(
                        [known.get(r) or names.get(r.rpartition("/")[2]) or r for r in variant.runs]
                    ),
                )
                for variant in found.variants
            ],
        )


def _links(names: Sequence[str]) -> Any:
    def build() -> None:
        for name in names:
            with ui.element("div"):
                run_link(name, name.rpartition(":")[2])()

    return build


def _placed(
    name: str, x: float, x_said: str, score: Any, metric: ComparedMetric, colour: str
) -> Group:
    said = f"{name}: {figure(score.mean, metric.share)}, {x_said}"
    return Group(name, colour, [Dot(x, score.mean, said, (score.low, score.high))])


def _scatter(
    groups: Sequence[Group], colours: Palette, x_name: str, metric: ComparedMetric
) -> None:
    chart = ui.echart(scatter(groups, colours, x_name=x_name, percent=metric.share))
    chart.classes("chart tall").props("role=img")
    said = "; ".join(dot.about for group in groups for dot in group.dots)
    chart.props["aria-label"] = f"{metric.label} by {x_name}: {said}"


def _show_approaches(found: ApproachesCompared, colours: Palette) -> None:
    from luthier.api import approaches_table, groups_table

    told = found.to_dict()
    _answer(found)
    if found.rules:
        with card("What the advisor says, and whether these results confirm it"):
            for rule in found.rules:
                with ui.element("article").classes("sample"):
                    with ui.element("div").classes("line"):
                        pill(rule.verdict)
                        better = f"; better is {', '.join(rule.better)}" if rule.better else ""
                        ui.label(
                            f"{rule.advised}, by {rule.of} ({', '.join(rule.goals)}){better}"
                        ).classes("wrap grow")
                    ui.label(f"{rule.because} ({rule.source})").classes("soft small wrap")
    with card(
        "Quality, time and cost",
        f"{found.rows:,} questions of {found.data}, one at a time; intervals of 95% over them",
    ):
        words_table(*approaches_table(told))
        with ui.element("div").classes("charts"):
            metric = found.metrics[0]
            for x_name, of, form in (
                ("median seconds per question", lambda a: a.latency.median, "{:.2f} s"),
                ("US dollars per 1,000 questions", lambda a: a.cost_per_1000, "${:.4f}"),
            ):
                groups = [
                    _placed(
                        a.name,
                        of(a),
                        form.format(of(a)),
                        a.scores[metric.name],
                        metric,
                        colours.runs[n],
                    )
                    for n, a in enumerate(found.approaches)
                ]
                with ui.element("div"):
                    _scatter(groups, colours, x_name, metric)
    if found.by:
        with card(f"By {found.by}"):
            words_table(*groups_table(told))
    with card("Answers side by side"):
        for number, sample in enumerate(found.samples):
            _sample(sample, unfolded=number < _OPEN)


def _sample(sample: ApproachSample, unfolded: bool) -> None:
    details = ui.element("details").props("open" if unfolded else "")
    with details:
        with ui.element("summary"):
            ui.label(sample.question).classes("as-text")
        table(
            ("approach", "answer", "scores"),
            [
                ("reference", sample.reference, ""),
                *(
                    (
                        name,
                        answer,
                        ", ".join(f"{m} {s:g}" for m, s in sample.scores.get(name, {}).items()),
                    )
                    for name, answer in sample.answers.items()
                ),
            ],
            name=f"Answers to {sample.question}",
        )
        if sample.passages:
            ui.label(f"passages: {', '.join(sample.passages)}").classes("soft small wrap")
