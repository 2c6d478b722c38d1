"""A short run of every fuzz target, and every input that ever failed."""

from dataclasses import replace
from pathlib import Path

import fuzz.run_fuzz as runner
import pytest
from fuzz.run_fuzz import CORPUS, Outcome, fuzz, try_one
from fuzz.targets import TARGETS

KEPT = sorted(path for path in CORPUS.rglob("*") if path.is_file() and path.name != "README.md")


@pytest.mark.parametrize("name", TARGETS)
def test_inputs_end_well_or_with_one_clear_error(name: str) -> None:
    outcome = fuzz(name, TARGETS[name], 150, 1, float("inf"))
    assert outcome.inputs >= 100
    assert outcome.failures == 0, outcome.examples[0]


@pytest.mark.parametrize("path", KEPT, ids=lambda path: f"{path.parent.name}-{path.name}")
def test_what_failed_once(path: Path) -> None:
    name = path.parent.name.replace("-", " ")
    outcome = Outcome()
    try_one(name, TARGETS[name], path.read_bytes(), outcome, keep=False)
    assert outcome.failures == 0, outcome.examples[0]


def test_a_planted_failure_is_found_and_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner, "CORPUS", tmp_path)

    def picky(data: bytes) -> None:
        assert b"lora" in data

    outcome = fuzz("recipe", replace(TARGETS["recipe"], run=picky), 50, 1, float("inf"))
    assert outcome.failures > 0
    assert "AssertionError" in outcome.examples[0]
    kept = [path.read_bytes() for path in (tmp_path / "recipe").iterdir()]
    assert kept
    assert not any(b"lora" in data for data in kept)
