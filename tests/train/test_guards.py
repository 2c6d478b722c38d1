"""Each silent fault, planted, is seen."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from families import CHATML, save_tiny
from helpers import Notes, write_rows
from peft.tuners.lora import LoraLayer
from transformers import AutoTokenizer

from luthier.data import prepare as prepare_module
from luthier.data.tokens import Tokenizer, TokenRow
from luthier.errors import UserError
from luthier.models.tuned import load_tuned
from luthier.objectives import sft
from luthier.recipe import Recipe
from luthier.run import Run, claim_run
from luthier.train import learning, loop, session
from luthier.train.fit import fit
from luthier.train.watch import fingerprint

MakeRecipe = Callable[..., Recipe]
Train = Callable[..., Run]


def edit_rows(monkeypatch: pytest.MonkeyPatch, edit: Callable[[TokenRow], TokenRow]) -> None:
    """Plant ``edit`` between tokenising and training."""
    real = Tokenizer.encode_all
    monkeypatch.setattr(
        Tokenizer,
        "encode_all",
        lambda self, rows: ([edit(only) for only in each] for each in real(self, rows)),
    )


def test_rows_without_a_label_stop_the_run(
    make_recipe: MakeRecipe, train: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    def masked(row: TokenRow) -> TokenRow:
        if row.conversation.origin.line != 7:
            return row
        return TokenRow(row.input_ids, [False] * len(row), row.conversation)

    edit_rows(monkeypatch, masked)
    with pytest.raises(UserError, match=r"1 row has no trainable token .*rows\.jsonl:7"):
        train(make_recipe())


def test_an_all_masked_batch_stops_the_run(
    make_recipe: MakeRecipe, train: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = loop.train_step

    def masked(learner: Any, batches: Any, look: Any) -> Any:
        if learner.scheduler.last_epoch == 1:
            batches = [replace(batch, predicts=batch.predicts[:0]) for batch in batches]
        return real(learner, batches, look)

    monkeypatch.setattr(loop, "train_step", masked)
    with pytest.raises(
        UserError, match=r"no row of a batch has a trainable token \(.*rows\.jsonl:"
    ):
        train(make_recipe())


def test_answers_that_never_end_stop_the_run(
    make_recipe: MakeRecipe, train: Train, tmp_path: Path
) -> None:
    template = tmp_path / "endless.jinja"
    template.write_text(CHATML.replace("<|im_end|>", ""))
    with pytest.raises(UserError, match=r"never learn to stop; let data\.template write"):
        train(make_recipe(f"data.template={template}"))


def test_answers_that_are_mostly_cut_off_are_said(
    make_recipe: MakeRecipe, train: Train, tmp_path: Path
) -> None:
    rows = [{"instruction": f"count {n}", "output": "1 2 " * 60} for n in range(30)]
    rows += [{"instruction": f"say {n}", "output": "a"} for n in range(6)]
    path = write_rows(tmp_path / "long.jsonl", rows)
    notes = Notes()
    train(make_recipe(f"data.train={path}", "data.on_too_long=truncate"), notes)
    assert any("have no token that ends the answer" in note for note in notes.notes)


def test_a_loss_that_is_not_the_base_models_stops_the_run(
    make_recipe: MakeRecipe, train: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = sft.loss_sum

    def shifted(*args: Any, **kwargs: Any) -> Any:  # labels off by a little: what a bad mask does
        return real(*args, **kwargs) * 1.01

    monkeypatch.setattr(sft, "loss_sum", shifted)
    with pytest.raises(UserError, match="the model in training is not the one that was loaded"):
        train(make_recipe())


@pytest.mark.parametrize("method", ["full", "qlora"])
def test_weights_that_are_not_those_loaded_stop_the_run(
    method: str, make_recipe: MakeRecipe, train: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = learning.install_checked

    def broken(model: Any, *wanted: Any) -> Any:
        with torch.no_grad():
            model.get_output_embeddings().weight.data.mul_(3)
        return real(model, *wanted)

    monkeypatch.setattr(learning, "install_checked", broken)
    with pytest.raises(UserError, match="the model in training is not the one that was loaded"):
        train(make_recipe(f"method.name={method}"))


def test_adapters_without_gradient_stop_the_run(
    make_recipe: MakeRecipe, train: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = sft.SFT.loss

    def detached(self: Any, model: Any, batch: Any) -> Any:
        loss, parts = real(self, model, batch)
        return loss.detach().requires_grad_(), parts

    monkeypatch.setattr(sft.SFT, "loss", detached)
    with pytest.raises(UserError, match="got a gradient in the first step"):
        train(make_recipe())


def test_one_adapter_without_gradient_is_said(
    make_recipe: MakeRecipe, train: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = learning.install_checked

    def cut_off(model: Any, *wanted: Any) -> Any:
        fast = real(model, *wanted)
        layers = [m for m in model.modules() if isinstance(m, LoraLayer)]
        layers[0].lora_B["default"].weight.register_hook(torch.zeros_like)
        return fast

    monkeypatch.setattr(learning, "install_checked", cut_off)
    notes = Notes()
    train(make_recipe(), notes)
    assert any("got no gradient in the first step" in note for note in notes.notes)


def test_a_rate_of_zero_stops_the_run_and_a_low_one_is_said(
    make_recipe: MakeRecipe, train: Train
) -> None:
    with pytest.raises(UserError, match=r"the model would not learn; set the warm-up \(train"):
        train(make_recipe("train.max_steps=1"))
    notes = Notes()
    train(make_recipe("train.max_steps=2", "train.warmup_ratio=0.99", "run.name=low"), notes)
    assert any("rises only to 0.005 and never reaches" in note for note in notes.notes)
    notes = Notes()
    train(make_recipe("train.max_steps=2", "run.name=reached"), notes)
    assert not any("rises only to" in note for note in notes.notes)


@pytest.mark.parametrize("method", ["lora", "qlora"])
def test_base_weights_that_change_stop_the_run(
    method: str, make_recipe: MakeRecipe, train: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = loop.train_step

    def writes(learner: Any, *args: Any) -> Any:
        if learner.scheduler.last_epoch == 4:
            weights = learner.model.named_parameters()
            weight = next(p for n, p in weights if "q_proj.base_layer.weight" in n)
            weight.data.view(torch.uint8).reshape(-1)[0] += 1
        return real(learner, *args)

    monkeypatch.setattr(loop, "train_step", writes)
    recipe = make_recipe(f"method.name={method}", "train.save_steps=3")
    with pytest.raises(UserError, match=r"frozen weights .* by step 6 .*q_proj.*the run ends here"):
        train(recipe)
    assert list(Run(Path(recipe.run.dir) / "run").checkpoints()) == [3]


def test_scales_of_4_bit_weights_are_part_of_the_hash(
    make_recipe: MakeRecipe, train: Train, tiny_model: Path
) -> None:
    from luthier.models.load import load_model, quantization

    recipe = make_recipe("method.name=qlora")
    model = load_model(
        tiny_model, torch.float32, quantization=quantization(recipe.method, torch.float32)
    )
    model.requires_grad_(False)
    before = fingerprint(model)
    weight: Any = model.model.layers[0].self_attn.q_proj.weight
    weight.quant_state.absmax[0] += 1
    after = fingerprint(model)
    assert [n for n in before if before[n] != after[n]] == [
        "model.layers.0.self_attn.q_proj.weight.absmax"
    ]


def test_large_models_are_hashed_by_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    from luthier.train import watch

    monkeypatch.setattr(watch, "_WHOLE", 1000)
    model = torch.nn.Linear(300, 300).requires_grad_(False)
    before = fingerprint(model)
    with torch.no_grad():
        model.weight += 1e-6
    after = fingerprint(model)
    assert before["weight"] != after["weight"]
    assert before["bias"] == after["bias"]


def test_validation_rows_that_are_trained_on(
    make_recipe: MakeRecipe, train: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prepare_module, "split", lambda rows, *_: (list(rows), list(rows)[:5]))
    with pytest.raises(UserError, match="5 of 5 validation rows are in the training set"):
        train(make_recipe())
    # A few are a doubt: rows that differ only in what the template leaves out.
    monkeypatch.setattr(
        prepare_module, "split", lambda rows, *_: (list(rows)[:55], list(rows)[54:])
    )
    notes = Notes()
    train(make_recipe(), notes)
    assert any("1 of 6 validation rows are in the training set" in note for note in notes.notes)


def test_another_template_at_inference_is_an_error(
    make_recipe: MakeRecipe, train: Train, tmp_path: Path
) -> None:
    run = train(make_recipe())
    load_tuned(run)
    template = run.adapter_path / "chat_template.jinja"
    template.write_text(template.read_text().replace("\\n", " "))
    with pytest.raises(UserError, match=r"not the one .* was trained with"):
        load_tuned(run)


def test_a_doubled_beginning_stops_the_run(
    make_recipe: MakeRecipe, train: Train, tmp_path: Path
) -> None:
    folder = save_tiny(tmp_path / "llama3", chat="llama3")
    train(make_recipe(f"model.source={folder}", "run.name=once"))
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = "{{ bos_token }}" + tokenizer.chat_template
    tokenizer.save_pretrained(folder)
    with pytest.raises(UserError, match=r"60 rows have the beginning-of-text token .* twice"):
        train(make_recipe(f"model.source={folder}", "run.name=twice"))


def test_tokens_beyond_the_embedding_stop_the_run(
    make_recipe: MakeRecipe, train: Train, tmp_path: Path, tiny_model: Path
) -> None:
    folder = shutil.copytree(tiny_model, tmp_path / "grown")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens(["please"])
    tokenizer.save_pretrained(folder)
    with pytest.raises(UserError, match="tokens were added without resizing the model"):
        train(make_recipe(f"model.source={folder}"))


def test_an_embedding_resized_without_saving_it_stops_the_run(
    make_recipe: MakeRecipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    from peft import PeftModel

    from luthier.models.load import load_model

    real_save = PeftModel.save_pretrained

    def resized(*args: Any, **kwargs: Any) -> Any:
        model = load_model(*args, **kwargs)
        model.resize_token_embeddings(model.config.vocab_size + 8)
        return model

    # PEFT notices by itself as long as it finds the base's config; here it does not.
    monkeypatch.setattr(
        PeftModel,
        "save_pretrained",
        lambda self, *a, **k: real_save(self, *a, **{**k, "save_embedding_layers": False}),
    )
    with pytest.raises(UserError, match="the embedding, resized from"):
        recipe = make_recipe()
        shared = session.Materials(load=resized)
        fit(recipe, claim_run(recipe, "x"), Notes(), materials=shared)


def test_weights_that_train_and_are_not_saved_stop_the_run(
    make_recipe: MakeRecipe, train: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = session.build_model

    def also_norms(*args: Any) -> Any:
        model = real(*args)
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter.requires_grad_(True)
        return model

    monkeypatch.setattr(session, "build_model", also_norms)
    with pytest.raises(
        UserError, match=r"would not contain weights that the tuned model needs.*norm"
    ):
        train(make_recipe())


def test_sound_runs_get_no_warning(make_recipe: MakeRecipe, train: Train) -> None:
    for method in ("full", "lora", "qlora"):
        notes = Notes()
        train(make_recipe(f"method.name={method}", f"run.name={method}"), notes)
        assert not notes.warnings


def test_evaluating_on_rows_that_were_trained_on_is_said(
    make_recipe: MakeRecipe, train: Train, data_file: Path
) -> None:
    from luthier.evaluate.before_after import evaluate_run

    run = train(make_recipe("evaluate.max_rows=0"))
    notes = Notes()
    evaluate_run(run, str(data_file), notes)
    assert "54 of the 60 rows" in notes.warnings[0]
    notes = Notes()
    evaluate_run(run, on_event=notes)
    assert not notes.warnings
