"""A run whose rows arrive while it trains takes the steps of one that had them all before."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from helpers import Notes, read_metrics, write_rows

from luthier.data import stream, workers
from luthier.data.prepare import trained_on
from luthier.errors import UserError
from luthier.plan.from_recipe import job_of_recipe
from luthier.recipe import Recipe
from luthier.run import Run
from luthier.sweep.shared import find_ground

MakeRecipe = Callable[..., Recipe]
Train = Callable[..., Run]


def weights(run: Run) -> bytes:
    return (run.adapter_path / "adapter_model.safetensors").read_bytes()


def steps(run: Run) -> list[dict[str, Any]]:
    timeless = ("step", "loss", "eval_loss", "grad_norm", "learning_rate", "tokens")
    return [{key: line[key] for key in timeless if key in line} for line in read_metrics(run)]


@pytest.fixture
def streamed(
    make_recipe: MakeRecipe, tmp_path: Path, rows: list[dict[str, str]]
) -> Callable[..., Recipe]:
    """A recipe that streams; 6 steps of 4 items."""
    held_out = write_rows(tmp_path / "held-out.jsonl", rows[50:])
    train = write_rows(tmp_path / "train.jsonl", rows[:50])

    def make(*more: str) -> Recipe:
        given = [f"data.train={train}", f"data.validation={held_out}", "data.streaming=true"]
        return make_recipe(*given, *more)

    return make


@pytest.mark.parametrize(
    "more", [["method.lora_dropout=0.1"], ["data.packing=true", "train.max_steps=4"]]
)
def test_one_window_is_one_epoch_bit_for_bit(
    streamed: Callable[..., Recipe], train: Train, more: list[str]
) -> None:
    whole = train(streamed("data.streaming=false", *more, "run.name=kept"))
    run = train(streamed(*more, "run.name=streamed"))
    assert steps(run) == steps(whole)
    assert weights(run) == weights(whole)


def test_windows_made_here_are_those_of_another_process(
    streamed: Callable[..., Recipe], train: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream, "WINDOW", 7)
    forked = train(streamed("run.name=forked"))
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "false")
    here = train(streamed("run.name=here"))
    assert steps(here) == steps(forked)
    assert weights(here) == weights(forked)


def test_the_run_says_what_it_read_and_keeps_no_rows(
    streamed: Callable[..., Recipe],
    train: Train,
    rows: list[dict[str, str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(stream, "WINDOW", 10)
    notes = Notes()
    run = train(streamed(), notes)
    report = run.data_report()
    assert report is not None
    assert report.streamed is not None
    assert report.streamed.rows == report.rows.read == report.rows.train == 30  # 24 were trained on
    assert report.streamed.up_to == f"{tmp_path / 'train.jsonl'}:30"
    assert report.rows.validation == 10
    assert not run.train_path.exists()
    assert any("duplicates" in note for note in notes.notes)
    after = Notes()
    assert trained_on(run, after) == []
    assert "kept none of them" in after.notes[0]
    assert sum(path.stat().st_size for path in run.root.glob("data/*")) < 10_000
    # A source that grows changes nothing for the rows before.
    write_rows(tmp_path / "train.jsonl", [*rows[:50], *rows[:50]])
    assert steps(train(streamed("run.name=grown"))) == steps(run)


def test_a_bad_row_ends_the_run_with_what_it_learned_saved(
    streamed: Callable[..., Recipe],
    train: Train,
    rows: list[dict[str, str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(stream, "WINDOW", 10)
    whole = train(streamed("run.name=whole"))
    good = (tmp_path / "train.jsonl").read_text()
    broken = [{**row} for row in rows[:50]]
    del broken[24]["output"]
    write_rows(tmp_path / "train.jsonl", broken)
    with pytest.raises(UserError, match=r"train\.jsonl:25: "):
        train(streamed())
    run = Run(tmp_path / "runs" / "run")
    assert max(run.checkpoints()) == 5  # 20 rows
    (tmp_path / "train.jsonl").write_text(good)
    train(streamed())
    assert weights(run) == weights(whole)


def test_a_process_that_makes_windows_and_is_killed_is_said_so(
    streamed: Callable[..., Recipe], train: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream, "WINDOW", 10)
    monkeypatch.setattr(workers, "_told", lambda _values: b"")  # it ends without a word
    with pytest.raises(UserError, match="TOKENIZERS_PARALLELISM=false does the work in one"):
        train(streamed())


def test_a_plan_is_made_of_the_first_rows(
    streamed: Callable[..., Recipe], monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    monkeypatch.setattr(stream, "WINDOW", 25)
    job, assumed = job_of_recipe(streamed(), torch.float32, on_gpu=False)
    assert assumed is not None
    assert "how many rows it has is not known" in assumed
    assert (job.steps, job.largest) == (6, (128, 128))
    kept, _ = job_of_recipe(streamed("data.streaming=false"), torch.float32, on_gpu=False)
    assert job.tokens == pytest.approx(kept.tokens, rel=0.15)


def test_what_would_need_the_rows_again_is_refused(
    streamed: Callable[..., Recipe], train: Train
) -> None:
    with pytest.raises(UserError, match=r"data\.streaming keeps none: take it out"):
        find_ground(streamed())


def test_a_reference_that_would_see_all_rows_before(
    make_recipe: MakeRecipe, train: Train, tmp_path: Path
) -> None:
    from preferences import preference_rows

    pairs = write_rows(tmp_path / "pairs.jsonl", preference_rows(30))
    settings = [
        f"data.train={pairs}",
        "objective.name=dpo",
        "data.streaming=true",
        "data.validation_rows=5",
    ]
    with pytest.raises(UserError, match=r"precompute_ref_log_probs=false"):
        train(make_recipe(*settings, "objective.precompute_ref_log_probs=true"))
