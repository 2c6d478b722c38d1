"""A recipe in, a run folder out."""

import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from families import MODEL_FAMILIES, save_tiny
from helpers import Notes, read_metrics, write_rows
from peft import PeftModel
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from transformers import AutoModelForCausalLM, AutoTokenizer

from luthier.errors import UserError
from luthier.recipe import Recipe
from luthier.run import Run, claim_run
from luthier.train.fit import fit

MakeRecipe = Callable[..., Recipe]
Train = Callable[..., Run]


@pytest.mark.parametrize("method", ["full", "lora", "qlora"])
def test_each_method_learns_and_leaves_a_whole_run(
    method: str, make_recipe: MakeRecipe, train: Train, tiny_model: Path
) -> None:
    overrides = ["train.max_steps=12", "train.eval_steps=4", "train.learning_rate=2e-2"]
    run = train(make_recipe(f"method.name={method}", *overrides))
    lines = read_metrics(run)
    losses = [line["loss"] for line in lines if "loss" in line]
    assert [line["step"] for line in lines if "loss" in line] == list(range(1, 13))
    assert sum(losses[-3:]) / 3 < 0.95 * sum(losses[:3]) / 3
    assert [line["step"] for line in lines if "eval_loss" in line] == [4, 8, 12]
    for line in lines:
        if "eval_loss" in line:
            assert line["eval_perplexity"] == pytest.approx(math.exp(line["eval_loss"]))
        else:
            assert line["tokens_per_second"] > 0
    measured = run.measured()
    assert measured.steps == 12
    assert measured.tokens == max(line.get("tokens", 0) for line in lines)
    assert (run.root / measured.weights).is_dir()
    events = EventAccumulator(str(run.tensorboard_path)).Reload()
    assert [round(e.value, 5) for e in events.Scalars("train/loss")] == [
        round(x, 5) for x in losses
    ]
    provenance = run.provenance()
    assert provenance.versions["torch"] == torch.__version__
    assert provenance.template == "model"
    assert "provenance" not in run.recipe_path.read_text()
    # Other libraries read the weights without ours.
    if method == "full":
        AutoModelForCausalLM.from_pretrained(run.model_path)
        tokenizer = AutoTokenizer.from_pretrained(run.model_path)
    else:
        base = AutoModelForCausalLM.from_pretrained(tiny_model)
        PeftModel.from_pretrained(base, run.adapter_path)
        tokenizer = AutoTokenizer.from_pretrained(run.adapter_path)
    assert "<|im_start|>" in tokenizer.chat_template


@pytest.mark.parametrize("method", ["lora", "qlora"])
def test_an_adapter_leaves_the_base_alone(
    method: str, make_recipe: MakeRecipe, train: Train, tiny_model: Path
) -> None:
    before = (tiny_model / "model.safetensors").read_bytes()
    run = train(make_recipe(f"method.name={method}"))
    assert (tiny_model / "model.safetensors").read_bytes() == before
    weights = load_file(run.adapter_path / "adapter_model.safetensors")
    assert all("lora_" in name for name in weights)
    assert all(t.abs().sum() > 0 for n, t in weights.items() if "lora_B" in n)  # all learned


@pytest.mark.parametrize("family", MODEL_FAMILIES)
def test_every_family_trains(
    family: str, make_recipe: MakeRecipe, train: Train, tmp_path: Path
) -> None:
    folder = save_tiny(tmp_path / family, model=family)
    dropout = "method.lora_dropout=0" if family == "mixtral" else "method.lora_dropout=0.05"
    run = train(make_recipe(f"model.source={folder}", "train.max_steps=3", dropout))
    assert all(math.isfinite(line["loss"]) for line in read_metrics(run) if "loss" in line)


def test_experts_allow_no_dropout_and_say_so(
    make_recipe: MakeRecipe, train: Train, tmp_path: Path
) -> None:
    folder = save_tiny(tmp_path / "mixtral", model="mixtral")
    with pytest.raises(UserError, match=r"set method\.lora_dropout=0"):
        train(make_recipe(f"model.source={folder}"))


def test_a_model_whose_packed_rows_leak_runs_row_by_row_and_says_so(
    make_recipe: MakeRecipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    from luthier.train import learning

    packed = make_recipe("run.name=packed", "method.lora_dropout=0")
    fit(packed, claim_run(packed, "x"), Notes())
    monkeypatch.setattr(learning, "rows_stay_apart", lambda _model: False)
    alone = make_recipe("run.name=alone", "method.lora_dropout=0")
    notes = Notes()
    fit(alone, claim_run(alone, "x"), notes)
    assert any("each row runs by itself" in note for note in notes.notes)
    losses = [
        [line["loss"] for line in read_metrics(claim_run(recipe, "x")) if "loss" in line]
        for recipe in (packed, alone)
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)


@pytest.mark.parametrize(
    "override",
    [
        "train.gradient_checkpointing=true",
        "data.packing=true",
        "train.optim=adamw_8bit",
        "method.use_rslora=true",
        "method.use_dora=true",
        "method.target_modules=[q_proj, v_proj]",
        "data.train_on=all",
        "data.template=alpaca",
        "train.lr_scheduler_type=linear",
        "train.report_to=[]",
        "data.validation_fraction=0",
    ],
)
def test_options_train(override: str, make_recipe: MakeRecipe, train: Train) -> None:
    run = train(make_recipe(override))
    assert all(math.isfinite(line["loss"]) for line in read_metrics(run) if "loss" in line)
    assert run.tensorboard_path.exists() == ("report_to" not in override)
    if "validation_fraction" in override:
        assert run.measured().best_eval_loss is None
        assert run.measured().best_step == 6


def test_checkpointing_of_activations_changes_no_number(
    make_recipe: MakeRecipe, train: Train
) -> None:
    weights = []
    for value in ("false", "true"):
        run = train(make_recipe(f"train.gradient_checkpointing={value}", f"run.name=gc-{value}"))
        weights.append(load_file(run.adapter_path / "adapter_model.safetensors"))
    for name in weights[0]:
        torch.testing.assert_close(weights[0][name], weights[1][name], rtol=1e-4, atol=1e-6)


def test_the_same_recipe_gives_the_same_bytes(make_recipe: MakeRecipe, train: Train) -> None:
    runs = [train(make_recipe(f"run.name={name}")) for name in "ab"]
    first, second = ((r.adapter_path / "adapter_model.safetensors").read_bytes() for r in runs)
    assert first == second


def test_warm_up_and_cosine(make_recipe: MakeRecipe, train: Train) -> None:
    run = train(make_recipe("train.max_steps=20", "train.warmup_ratio=0.2"))
    rates = [line["learning_rate"] for line in read_metrics(run) if "loss" in line]
    expected = [
        0.01 * (i / 4 if i < 4 else (1 + math.cos(math.pi * (i - 4) / 16)) / 2) for i in range(20)
    ]
    assert rates == pytest.approx(expected)


def test_early_stopping_keeps_the_best_weights(
    make_recipe: MakeRecipe, train: Train, tmp_path: Path, rows: list[dict[str, str]]
) -> None:
    # Answers that have nothing to do with training's: the validation loss soon gets worse.
    other = [{"instruction": r["instruction"] + "?", "output": "zzz zz qqq"} for r in rows[:8]]
    recipe = make_recipe(
        f"data.validation={write_rows(tmp_path / 'v.jsonl', other)}",
        "train.max_steps=60",
        "train.eval_steps=2",
        "train.save_steps=10",
        "train.learning_rate=3e-2",
        "train.early_stopping_patience=3",
    )
    run = train(recipe)
    evals = {line["step"]: line["eval_loss"] for line in read_metrics(run) if "eval_loss" in line}
    measured = run.measured()
    assert measured.stopped_early
    assert measured.steps < 60
    assert measured.best_step == min(evals, key=lambda step: evals[step])
    assert measured.steps == measured.best_step + 3 * 2
    best = run.checkpoint_path(measured.best_step) / "adapter_model.safetensors"
    assert (run.adapter_path / "adapter_model.safetensors").read_bytes() == best.read_bytes()


def test_old_checkpoints_go_and_the_best_stays(make_recipe: MakeRecipe, train: Train) -> None:
    run = train(
        make_recipe(
            "train.max_steps=10", "train.save_steps=1", "train.eval_steps=5",
            "train.save_total_limit=2",
        )
    )  # fmt: skip
    best = run.measured().best_step
    assert list(run.checkpoints()) == sorted({9, 10, best})


def test_a_run_trains_once(make_recipe: MakeRecipe, train: Train) -> None:
    run = train(make_recipe())
    stamp = run.metrics_path.stat().st_mtime_ns
    assert train(make_recipe()) == run
    assert run.metrics_path.stat().st_mtime_ns == stamp


def test_plain_text_trains_and_is_recorded_as_such(
    make_recipe: MakeRecipe, train: Train, tmp_path: Path
) -> None:
    texts = [{"text": f"line {i} " * (3 + i % 40)} for i in range(40)]
    path = write_rows(tmp_path / "text.jsonl", texts)
    run = train(make_recipe(f"data.train={path}", "data.max_length=64"))
    assert run.provenance().template == "none"
    report = json.loads(run.data_report_path.read_text())
    assert report["tokens"]["train"]["longest"] == 64
    assert report["rows"]["train"] + report["rows"]["validation"] == 40


def test_the_report_accounts_for_every_row(
    make_recipe: MakeRecipe, train: Train, tmp_path: Path, rows: list[dict[str, str]]
) -> None:
    long = {"instruction": "count", "output": "1 " * 500}
    path = tmp_path / "mixed.jsonl"
    write_rows(path, [*rows, long])
    path.write_text(path.read_text() + "{broken\n")
    notes = Notes()
    run = train(make_recipe(f"data.train={path}", "data.on_bad_row=skip"), notes)
    report = json.loads(run.data_report_path.read_text())
    assert [item["row"] for item in report["left_out"]["bad"]] == [f"{path}:62"]
    assert [item["row"] for item in report["left_out"]["too_long"]] == [f"{path}:61"]
    assert report["rows"]["train"] + report["rows"]["validation"] == 60
    assert any("1 rows cannot be used" in note or "1 row cannot" in note for note in notes.notes)
    assert any("longer than data.max_length" in note for note in notes.notes)


def test_positions_of_the_model_limit_the_length(make_recipe: MakeRecipe, train: Train) -> None:
    with pytest.raises(UserError, match="more than the 512 positions"):
        train(make_recipe("data.max_length=4096"))


def test_target_modules_that_fit_nothing_name_the_layers(
    make_recipe: MakeRecipe, train: Train
) -> None:
    with pytest.raises(UserError, match="down_proj, gate_proj"):
        train(make_recipe("method.target_modules=[c_attn]"))


def test_paging_has_a_stated_substitute_without_a_gpu(
    make_recipe: MakeRecipe, train: Train
) -> None:
    if torch.cuda.is_available():
        pytest.skip("a GPU pages")
    notes = Notes()
    train(make_recipe("method.name=qlora"), notes)
    assert any("adamw_8bit replaces paged_adamw_8bit" in note for note in notes.notes)


def test_a_file_of_tensorboard_that_cannot_be_written_is_told_once(
    make_recipe: MakeRecipe,
    train: Train,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("tensorboard.summary.writer.record_writer.RecordWriter.write", full)
    notes = Notes()
    run = train(make_recipe(), notes)
    told = [text for text in notes.warnings if "No space left on device" in text]
    assert len(told) == 1, notes.notes
    assert "the run continues" in told[0]
    assert run.finished
    assert len(read_metrics(run)) == 8
    assert "Traceback" not in capfd.readouterr().err
