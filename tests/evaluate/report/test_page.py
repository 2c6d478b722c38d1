"""The page: whole, self-contained, escaped, at every stage of a run."""

from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import pytest
from evaluations import compared, evaluation
from helpers import write_rows

from luthier.evaluate.before_after import evaluate_run
from luthier.evaluate.probe.quick import QuickProbe
from luthier.evaluate.report.drawing import chart, marks
from luthier.evaluate.report.headline import headline
from luthier.evaluate.report.page import render_report, write_report
from luthier.recipe import Recipe
from luthier.records.evaluation import Interval
from luthier.run import claim_run
from luthier.train.fit import fit


class Wellformed(HTMLParser):
    """Every opened element is closed, in order."""

    VOID = frozenset({"meta", "br", "line", "circle", "polyline", "rect"})

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.words: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag not in {"script", "link", "img", "iframe"}
        assert not {"src", "href"} & {name for name, _ in attrs}
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None: ...

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def read(page: str) -> str:
    parser = Wellformed()
    parser.feed(page)
    assert parser.open == []
    return " ".join(" ".join(parser.words).split())


def test_a_run_at_every_stage(make_recipe: Callable[..., Recipe], tmp_path: Path) -> None:
    nasty = '<script>alert("x")</script> & <b>bold</b>'
    rows = [{"instruction": f"{nasty} {n}", "output": "yes" if n % 3 else "no"} for n in range(40)]
    data = write_rows(tmp_path / "labels.jsonl", rows)
    recipe = make_recipe(f"data.train={data}", "evaluate.max_new_tokens=4")
    run = claim_run(recipe, "x")
    fit(recipe, run, probe=QuickProbe())
    early = read(render_report(run))
    assert "not been evaluated yet" in early
    assert "general questions right" in early
    evaluate_run(run, str(data), probe=True)
    page = write_report(run).read_text("utf-8")
    text = read(page)
    assert "<script" not in page
    assert nasty in text  # seen as text
    for part in (
        *("Is it better at the task?", "What it forgot", "Which labels it gives", "Side by side"),
        *("How training went", "What it took", "How to reproduce it", "labels.jsonl"),
    ):
        assert part in text
    assert "url(" not in page
    assert "@import" not in page


def interval(low: float, mean: float, high: float) -> Interval:
    return Interval(low=low, mean=mean, high=high, rows=9, confidence=0.95)


def test_marks_keep_their_order_and_axis() -> None:
    side = interval(0.2, 0.3, 0.4)
    drawn = marks(side, interval(0.5, 0.9, 1.0), share=True)
    assert drawn["base"].mean == pytest.approx(30)
    assert drawn["tuned"].high == pytest.approx(100)
    loss = marks(side, interval(4, 5, 6), share=False)
    assert loss["base"].low < loss["base"].mean < loss["tuned"].mean < loss["tuned"].high < 100


def test_a_chart_stays_in_its_frame() -> None:
    drawn = chart([("loss", "base", [(1, 3.0), (2, float("inf")), (9, 1.0)]), ("none", "x", [])])
    assert drawn is not None
    (curve,) = drawn.curves
    assert curve.last == 1.0
    assert len(curve.dots) == 2
    assert curve.dots[0][1] < curve.dots[1][1]  # less loss is lower on the page
    assert chart([("empty", "x", [])]) is None
    flat = chart([("one point", "x", [(0, 0.5)])], percent=True)
    assert flat is not None


def test_headlines() -> None:
    for verdicts, word in [
        (("better", "no evidence"), "better"),
        (("better", "worse"), "mixed"),
        (("worse", "no evidence"), "worse"),
        (("no evidence",), "no evidence"),
    ]:
        found = {f"m{i}": compared(verdict=verdict) for i, verdict in enumerate(verdicts)}
        assert headline(evaluation(metrics=found)).verdict == word
