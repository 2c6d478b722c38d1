"""PEFT folders that other tools made, in place of runs."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from families import save_tiny
from helpers import Cli, Notes, write_rows
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

import luthier
from luthier.errors import UserError
from luthier.recipe import Recipe
from luthier.run import Run


@pytest.fixture
def theirs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder as PEFT writes it, with nothing of ours; its base is beside it."""
    monkeypatch.setenv("LUTHIER_CACHE", str(tmp_path / "cache"))
    base = save_tiny(tmp_path / "base")
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    config = LoraConfig(
        r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM", init_lora_weights=False
    )
    get_peft_model(model, config).save_pretrained(tmp_path / "theirs")
    return tmp_path / "theirs"


def change(folder: Path, **values: object) -> None:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def test_its_model_is_loaded_with_the_base_s_template(theirs: Path, tmp_path: Path) -> None:
    notes = Notes()
    found = luthier.load(theirs, on_event=notes)
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "base", dtype=torch.float32)
    ids = torch.arange(30)[None]
    with torch.no_grad():
        expected = PeftModel.from_pretrained(base, theirs)(ids).logits
        assert torch.allclose(found.tuned(ids).logits, expected, atol=1e-6)
        with found.as_base() as untouched:
            assert (untouched(ids).logits - expected).abs().max() > 1e-3
    assert any("with the chat template of the base" in note for note in notes.notes)
    assert found.learned_turns and "<|im_start|>" in str(found.tokenizer.chat_template)
    before = sorted(path.name for path in theirs.iterdir())
    assert luthier.generate(theirs, ["hello"], max_new_tokens=3) == luthier.generate(
        found, ["hello"], max_new_tokens=3
    )
    assert sorted(path.name for path in theirs.iterdir()) == before


def test_its_own_template_comes_first(theirs: Path, tmp_path: Path) -> None:
    (theirs / "chat_template.jinja").write_text(
        "{% for m in messages %}X{{ m.content }}{% endfor %}"
    )
    notes = Notes()
    assert str(luthier.load(theirs, on_event=notes).tokenizer.chat_template).startswith("{% for")
    assert any("chat template of the adapter's folder" in note for note in notes.notes)


def test_without_any_template_it_continues_text(theirs: Path, tmp_path: Path) -> None:
    save_tiny(tmp_path / "base", chat=None)
    (tmp_path / "base" / "chat_template.jinja").unlink(missing_ok=True)
    notes = Notes()
    assert not luthier.load(theirs, on_event=notes).learned_turns
    assert any("plain text" in note for note in notes.notes)


def test_merge_export_and_evaluate_take_it(theirs: Path, tmp_path: Path) -> None:
    notes = Notes()
    merged = luthier.merge(theirs, tmp_path / "merged", on_event=notes)
    (check,) = merged.checks.values()
    assert merged.layers == 4 and check.logits_max < 2e-5
    assert any("compared on 8 of ours" in note for note in notes.notes)
    card = (tmp_path / "merged" / "README.md").read_text("utf-8")
    assert "Another tool trained the adapter" in card
    with pytest.raises(UserError, match="--data"):
        luthier.evaluate(theirs)
    rows = write_rows(
        tmp_path / "rows.jsonl", [{"instruction": f"Say {n}", "output": str(n)} for n in range(6)]
    )
    evaluation = luthier.evaluate(theirs, rows, metrics=["exact_match"])
    assert evaluation.rows == 6
    exported = luthier.export(theirs, "adapter-gguf")
    assert exported.folder == str(theirs / "adapter-gguf")


def test_a_base_that_is_gone_is_asked_for(theirs: Path, tmp_path: Path, cli: Cli) -> None:
    (tmp_path / "base").rename(tmp_path / "moved")
    with pytest.raises(UserError, match=r"is for .*base, which cannot be used here.*--base-model"):
        luthier.load(theirs)
    command = ("generate", theirs, "-p", "hello", "--max-new-tokens", "2")
    done = cli(*command, "--base-model", tmp_path / "moved")
    assert done.returncode == 0, done.stderr
    change(theirs, base_model_name_or_path=None)
    done = cli(*command)
    assert done.returncode == 2 and "does not say which model" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"peft_type": "IA3"}, "of the kind IA3"),
        ({"task_type": "SEQ_CLS"}, "for the task SEQ_CLS"),
        ({"init_lora_weights": "pissa"}, "path_initial_model_for_weight_conversion"),
    ],
)
def test_what_cannot_be_used_says_why(
    theirs: Path, values: dict[str, object], message: str
) -> None:
    change(theirs, **values)
    with pytest.raises(UserError, match=message):
        luthier.load(theirs)


def test_damage_is_told(theirs: Path) -> None:
    (theirs / "adapter_config.json").write_text("[" * 3000)
    with pytest.raises(UserError, match="cannot read"):
        luthier.load(theirs)


def test_weights_that_are_missing_are_not_made_up(theirs: Path) -> None:
    from safetensors.torch import load_file, save_file

    file = theirs / "adapter_model.safetensors"
    tensors = load_file(file)
    tensors.pop(next(name for name in tensors if "lora_B" in name))
    save_file(tensors, file)
    with pytest.raises(UserError, match=r"does not fit the model.*missing"):
        luthier.load(theirs)


def test_pickles_are_not_read(theirs: Path) -> None:
    (theirs / "adapter_model.safetensors").rename(theirs / "adapter_model.bin")
    with pytest.raises(UserError, match="pickle files are not read"):
        luthier.load(theirs)


def test_a_run_needs_no_base(
    make_recipe: Callable[..., Recipe],
    train: Callable[..., Run],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("LUTHIER_CACHE", str(tmp_path / "cache"))
    run = train(make_recipe("train.max_steps=3"))
    with pytest.raises(UserError, match="leave out --base-model"):
        luthier.load(run.root, base_model="smollm2-135m")
    # Its adapter alone is a PEFT folder as any other.
    found = luthier.load(run.adapter_path)
    tokenizer = AutoTokenizer.from_pretrained(run.adapter_path)
    assert found.tokenizer.chat_template == tokenizer.chat_template
