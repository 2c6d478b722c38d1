"""Runs that learn from preferences, from rows to weights: what is learned, logged, kept and refused."""

import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from helpers import Notes, read_metrics, write_rows
from preferences import labelled_rows, preference_rows

from luthier.data.batches import RowDataset
from luthier.errors import UserError
from luthier.recipe import Recipe
from luthier.run import Run, claim_run

Make = Callable[..., Recipe]
Train = Callable[..., Run]


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    return write_rows(tmp_path / "pairs.jsonl", preference_rows())


@pytest.mark.parametrize("name", ["dpo", "ipo", "orpo", "simpo", "kto", "reward"])
def test_the_chosen_answers_gain(name: str, make_recipe: Make, train: Train, pairs: Path) -> None:
    more = ["train.max_steps=12", "train.eval_steps=12", "train.save_steps=12"]
    if name == "kto":  # steadier: its gradients are small, and its micro-batches of one kind
        more += ["train.learning_rate=3e-3", "train.per_device_train_batch_size=4"]
    run = train(make_recipe(f"objective.name={name}", f"data.train={pairs}", *more))
    lines = read_metrics(run)
    first, last = lines[0], [line for line in lines if "eval_loss" in line][-1]
    assert last["eval_rewards/chosen"] > last["eval_rewards/rejected"]
    assert "eval_perplexity" not in last
    measured = run.measured()
    assert measured.best_eval_perplexity is None and measured.best_eval_loss is not None
    if name == "dpo":
        assert first["loss"] == pytest.approx(math.log(2), abs=1e-5)
        assert last["eval_rewards/accuracies"] > 0.6
        assert first["kl"] == pytest.approx(0, abs=1e-5)
    if name != "reward":
        weights = (run.adapter_path / "adapter_model.safetensors").stat().st_size
        assert weights and not run.reference_path.exists()


@pytest.mark.parametrize("name", ["dpo", "kto"])
def test_in_bfloat16_too_a_new_adapter_is_its_own_reference(
    name: str, make_recipe: Make, train: Train, pairs: Path
) -> None:
    """Fast paths round otherwise than what stands in for them where there are no gradients."""
    more = [f"objective.name={name}", f"data.train={pairs}", "train.max_steps=3"]
    run = train(make_recipe("model.dtype=bfloat16", *more))
    first = read_metrics(run)[0]
    assert (first["rewards/chosen"], first["rewards/rejected"], first["kl"]) == (0, 0, 0)
    assert first["loss"] == pytest.approx(math.log(2) if name == "dpo" else 0.5, abs=1e-6)


def test_full_training_keeps_its_reference_and_gives_the_same_first_loss(
    make_recipe: Make, train: Train, pairs: Path
) -> None:
    heard = Notes()
    recipe = make_recipe("objective.name=dpo", f"data.train={pairs}", "method.name=full")
    run = train(recipe, heard)
    assert run.reference_path.is_file()
    assert any("log-probabilities of all rows are computed once" in note for note in heard.notes)
    assert read_metrics(run)[0]["loss"] == pytest.approx(math.log(2), abs=1e-5)


def test_asked_and_kept_references_train_the_same_adapter(
    make_recipe: Make, train: Train, pairs: Path
) -> None:
    losses = []
    for name, kept in (("asked", "false"), ("kept", "true")):
        run = train(
            make_recipe(
                "objective.name=dpo", f"data.train={pairs}", f"run.name={name}",
                f"objective.precompute_ref_log_probs={kept}",
            )
        )  # fmt: skip
        losses.append([line["loss"] for line in read_metrics(run) if "loss" in line])
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)


def test_an_adapter_that_begins_as_a_part_of_the_base_keeps_its_reference(
    make_recipe: Make, train: Train, pairs: Path
) -> None:
    run = train(
        make_recipe(
            "objective.name=dpo", f"data.train={pairs}", "method.init_lora_weights=pissa",
            "train.max_steps=2", "train.warmup_ratio=0",
        )
    )  # fmt: skip
    assert run.reference_path.is_file()
    assert read_metrics(run)[0]["loss"] == pytest.approx(math.log(2), abs=1e-3)


@pytest.mark.parametrize("second", ["sft", "dpo"])
def test_training_goes_on_with_the_adapter_of_a_run(
    second: str, make_recipe: Make, train: Train, pairs: Path, data_file: Path
) -> None:
    from luthier.models.tuned import load_tuned

    first = train(make_recipe("run.name=first"))
    data = pairs if second == "dpo" else data_file
    recipe = make_recipe(
        "run.name=second", f"model.adapter={first.root}", f"objective.name={second}",
        f"data.train={data}", "train.learning_rate=1e-8", "train.max_steps=1", "train.warmup_ratio=0",
    )  # fmt: skip
    heard = Notes()
    run = train(recipe, heard)
    assert any("is trained on" in note for note in heard.notes)
    if second == "dpo":  # the reference is what training began with, not the base
        assert read_metrics(run)[0]["loss"] == pytest.approx(math.log(2), abs=1e-4)
        assert run.reference_path.is_file()
    ids = torch.tensor([[5, 9, 12, 7]])
    with torch.no_grad():
        before, after = (load_tuned(each).tuned(input_ids=ids).logits for each in (first, run))
        base = load_tuned(first, adapter_scale=0).tuned(input_ids=ids).logits
    assert (before - after).abs().max() < 1e-3 < (before - base).abs().max()
    with pytest.raises(UserError, match=r"has method.lora_r 16, and this recipe 8"):
        train(recipe.changed(method={"lora_r": 8}, run={"name": "third"}))
    with pytest.raises(UserError, match=r"trained on model\.source"):
        train(recipe.changed(model={"source": "smollm2-135m"}, run={"name": "fourth"}))


def test_labelled_answers_are_kto_and_pairs_become_them(
    make_recipe: Make, train: Train, tmp_path: Path, pairs: Path
) -> None:
    labelled = write_rows(tmp_path / "labelled.jsonl", labelled_rows())
    one = ["objective.name=kto", "train.max_steps=3"]
    run = train(make_recipe(*one, f"data.train={labelled}", "run.name=a"))
    rows = [json.loads(line) for line in run.train_path.read_text("utf-8").splitlines()]
    assert {row["extra"]["label"] for row in rows} == {True, False}
    line = read_metrics(run)[0]
    assert {"kl", "rewards/chosen", "rewards/rejected", "chosen", "loss"} <= line.keys()
    assert line["chosen"] + line["rejected"] == pytest.approx(1)
    other = train(make_recipe(*one, f"data.train={pairs}", "run.name=b"))
    report = other.data_report()
    assert report is not None and report.rows.read == 48
    assert report.unused_fields is None


def test_pairs_stay_whole_and_are_never_cut_apart(make_recipe: Make, pairs: Path) -> None:
    from families import CHAT_FAMILIES, make_tokenizer

    from luthier.data.prepare import prepare

    tokenizer = make_tokenizer(CHAT_FAMILIES["chatml"])
    recipe = make_recipe("objective.name=dpo", f"data.train={pairs}", "data.validation_fraction=0")
    rows = prepare(recipe, tokenizer).train
    assert len(rows) == 48
    for chosen, rejected in zip(rows[::2], rows[1::2], strict=True):
        assert chosen.source == rejected.source
        start, other = chosen.supervised.index(True), rejected.supervised.index(True)
        assert chosen.input_ids[:start] == rejected.input_ids[:other]
    for item in RowDataset(rows, 64, packing=True, together=2).items:
        assert all(a.source == b.source for a, b in zip(item[::2], item[1::2], strict=True))
        assert sum(map(len, item)) <= 128
    longest = max(map(len, rows))
    shorter = recipe.changed(data={"max_length": longest - 1})
    prepared = prepare(shorter, tokenizer)
    kept = prepared.train
    assert 0 < len(kept) < 48 and len(kept) % 2 == 0
    assert len(prepared.report.left_out.too_long) == sum(len(row) == longest for row in rows)


@pytest.mark.parametrize(
    ("objective", "row", "said"),
    [
        ("sft", {"prompt": "a", "chosen": "b", "rejected": "c"}, "set objective.name=dpo"),
        ("sft", {"prompt": "a", "completion": "b", "label": True}, "set objective.name=kto"),
        ("dpo", {"prompt": "a", "completion": "b"}, "dpo learns from pairs"),
        ("dpo", {"prompt": "a", "completion": "b", "label": True}, "are for objective.name=kto"),
        ("kto", {"prompt": "a", "completion": "b"}, "without a label"),
        ("kto", {"prompt": "a", "completion": "b", "label": "maybe"}, "not true or false"),
        ("reward", {"text": "a"}, "reward learns from pairs"),
    ],
)
def test_data_of_another_objective_is_told_of(
    objective: str, row: dict[str, object], said: str, make_recipe: Make, tmp_path: Path
) -> None:
    from families import CHAT_FAMILIES, make_tokenizer

    from luthier.data.prepare import prepare

    file = write_rows(tmp_path / "rows.jsonl", [row])
    with pytest.raises(UserError, match=said):
        prepare(
            make_recipe(f"objective.name={objective}", f"data.train={file}"),
            make_tokenizer(CHAT_FAMILIES["chatml"]),
        )


def test_a_reference_that_was_lost_ends_a_resumed_run(
    make_recipe: Make, train: Train, pairs: Path
) -> None:
    recipe = make_recipe("objective.name=dpo", f"data.train={pairs}", "method.name=full")
    run = train(recipe)
    run.measured_path.unlink()
    run.reference_path.unlink()
    with pytest.raises(UserError, match="holds the reference model's log-probabilities"):
        train(recipe)
    assert claim_run(recipe, "x") == run
