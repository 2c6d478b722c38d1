"""`luthier merge` and `luthier export` as a person types them; what comes out loads elsewhere."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from evaluations import evaluation
from helpers import Cli
from shipping import ask_llama_cpp, full_run, needs_llama_cpp
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from luthier.errors import CheckFailed, UserError
from luthier.export import gguf_tokens
from luthier.export.card import write_card
from luthier.export.export import export
from luthier.export.gguf_arch import Architecture
from luthier.export.options import GgufType
from luthier.files import write_json
from luthier.recipe import Recipe, load_recipe
from luthier.run import Run, save_recipe


def card_of(folder: Path) -> tuple[dict[str, Any], str]:
    """The metadata and the text of a model card."""
    text = (folder / "README.md").read_text("utf-8")
    _, head, body = text.split("---\n", 2)
    return yaml.safe_load(head), body


@pytest.fixture
def run(make_recipe: Callable[..., Recipe], train: Callable[..., Run]) -> Run:
    return train(make_recipe("train.max_steps=4", "train.eval_steps=4", "train.save_steps=4"))


def test_a_file_is_checked_by_loading_it_again(run: Run, tmp_path: Path) -> None:
    result = export(run, "gguf", tmp_path / "out", ["f32", "q8_0", "q4_0"])
    by_type = {file["type"]: file for file in result["files"]}
    checks = {kind: file["check"] for kind, file in by_type.items()}
    assert checks["f32"]["difference"]["logits_max"] < 2e-4
    assert checks["f32"]["same_answers"] == checks["f32"]["answers"] > 0
    assert checks["f32"]["same_tokens"] == checks["f32"]["texts"] > 0
    kl = [checks[kind]["difference"]["kl"] for kind in ("f32", "q8_0", "q4_0")]
    assert kl[0] < kl[1] < kl[2]
    sizes = [by_type[kind]["bytes"] for kind in ("f32", "q8_0", "q4_0")]
    assert sizes[0] > sizes[1] > sizes[2]
    _, text = card_of(tmp_path / "out")
    assert "llama-server -m run-f32.gguf" in text and "q4_0: loss" in text


@pytest.mark.parametrize(
    ("family", "chat", "config"),
    [
        ("mistral", "mistral", {}),
        ("qwen2", "chatml", {}),
        ("qwen3", "chatml", {}),
        ("gemma2", "gemma", {"query_pre_attn_scalar": 16}),
        ("gemma3", "gemma", {"query_pre_attn_scalar": 16}),
        ("phi3", "phi3", {}),
    ],
)
def test_transformers_reads_every_architecture_back(
    tmp_path: Path, family: str, chat: str, config: dict[str, object]
) -> None:
    made = full_run(tmp_path / "run", family, chat, **config)
    (file,) = export(made, "gguf", tmp_path / "out", ["f32"])["files"]
    check = file["check"]
    assert check["difference"], check["notes"]
    assert check["difference"]["logits_max"] < 1e-3
    assert check["same_answers"] == check["answers"]


def test_what_does_not_check_out_is_not_left(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from luthier.export import export as module

    def broken(*_: object) -> None:
        raise UserError("further away")

    monkeypatch.setattr(module, "check_gguf", broken)
    with pytest.raises(UserError, match="further away"):
        export(run, "gguf", tmp_path / "out", ["q8_0"])
    assert not list(tmp_path.glob("*out*"))


@pytest.mark.parametrize("fault", ["none", "rows", "scale", "tokens"])
@pytest.mark.parametrize("kind", ["f32", "q8_0"])
def test_a_file_that_answers_otherwise_is_not_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str, kind: GgufType
) -> None:
    """Faults that the reading back does not see, since the same code lays the tensors out."""
    lay_out, vocabulary = Architecture.lay_out, gguf_tokens._vocabulary

    def misplaced(made: Architecture, parameter: str, value: Tensor) -> dict[str, Tensor]:
        laid = lay_out(made, parameter, value)
        if fault == "rows" and "down_proj" in parameter:
            return {name: tensor.roll(1, 0) for name, tensor in laid.items()}
        if fault == "scale" and "norm" in parameter:
            return {name: tensor * 3 for name, tensor in laid.items()}
        return laid

    def shifted(rules: dict[str, Any], size: int) -> tuple[list[str], list[int]]:
        tokens, types = vocabulary(rules, size)
        return (tokens[:9] + tokens[-9:] + tokens[9:-9] if fault == "tokens" else tokens), types

    monkeypatch.setattr(Architecture, "lay_out", misplaced)
    monkeypatch.setattr(gguf_tokens, "_vocabulary", shifted)
    made = full_run(tmp_path / "run", "llama")  # one that is sure of its answers
    if fault == "none":
        assert export(made, "gguf", tmp_path / "out", [kind])["files"]
        return
    with pytest.raises(CheckFailed, match="nothing was written"):
        export(made, "gguf", tmp_path / "out", [kind])
    assert not list(tmp_path.glob("*out*"))


@needs_llama_cpp
def test_llama_cpp_answers_from_the_exported_file(run: Run, tmp_path: Path) -> None:
    export(run, "ollama", tmp_path / "out", ["f32"])
    (file,) = (tmp_path / "out").glob("*.gguf")
    tokenizer = AutoTokenizer.from_pretrained(run.adapter_path)
    turn = [{"role": "user", "content": "Repeat the number 4, please"}]
    prompt = tokenizer.apply_chat_template(turn, add_generation_prompt=True)["input_ids"]
    from luthier.export.merge import merge

    merge([run], tmp_path / "merged")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    import torch

    made = model.generate(torch.tensor([prompt]), max_new_tokens=12, do_sample=False)
    answer = ask_llama_cpp(file, prompts=[prompt], new=12)
    ours = made[0, len(prompt) :].tolist()
    assert answer["greedy"][0][: len(ours)] == ours[: len(answer["greedy"][0])]


def test_the_commands(cli: Cli, run: Run, tmp_path: Path) -> None:
    merged = cli("merge", run.root, "--out", tmp_path / "m", "--dtype", "float16")
    assert merged.returncode == 0, merged.stderr
    assert "14 layers merged" in merged.stdout and "top token" in merged.stdout
    again = cli("merge", run.root, "--out", tmp_path / "m")
    assert again.returncode == 2 and "exists already" in again.stderr
    data = json.loads(
        cli("merge", run.root, "-o", tmp_path / "m2", "--max-shard-size", "100KB", "--json").stdout
    )
    assert data["files"] > 4 and data["checks"][str(run.root)]["same_top"] == 1
    ollama = cli("export", run.root, "--to", "ollama", "--type", "q4_1")
    assert ollama.returncode == 0, ollama.stderr
    assert "perplexity" in ollama.stdout and "same answers" in ollama.stdout
    assert {p.name for p in (run.root / "ollama").iterdir()} == {
        *("Modelfile", "README.md", "run-q4_1.gguf")
    }
    adapter = cli("export", run.root, "--to", "adapter-gguf", "--out", tmp_path / "a", "--json")
    assert json.loads(adapter.stdout)["files"][0]["layers"] == 14
    for typed, message in [
        (["--to", "adapter-gguf", "--type", "f16"], "has no --type"),
        (["--to", "ollama", "--type", "f16", "--type", "f32"], "names one GGUF file"),
        (["--to", "gguf", "--public"], "needs a repository"),
        (["--to", "gguf", "--type", "q9_9"], "q9_9"),
    ]:
        wrong = cli("export", run.root, *typed)
        assert wrong.returncode == 2, typed
        assert message in re.sub(r"\s+", " ", wrong.stderr)
    size = cli("merge", run.root, "--out", tmp_path / "m3", "--max-shard-size", "2 apples")
    assert size.returncode == 2 and "2GB" in size.stderr


def test_a_full_run_has_nothing_to_merge(
    cli: Cli, make_recipe: Callable[..., Recipe], train: Callable[..., Run], tmp_path: Path
) -> None:
    full = train(make_recipe("method.name=full", "run.name=full"))
    said = cli("merge", full.root, "--out", tmp_path / "m", "--dtype", "bfloat16")
    assert said.returncode == 0 and "nothing to merge" in said.stdout


def test_a_run_that_has_not_finished(tmp_path: Path, run: Run) -> None:
    run.measured_path.unlink()
    for shape in ("safetensors", "gguf", "adapter-gguf"):
        with pytest.raises(UserError, match="has not finished"):
            export(run, shape, tmp_path / "x")  # type: ignore[arg-type]


def test_the_card_tells_what_the_run_knows_and_no_places(run: Run, tmp_path: Path) -> None:
    recipe = load_recipe(run.recipe_path)
    recipe.model.source = "smollm2-135m"
    recipe.data.train = ["/home/me/secret/rows.jsonl", "owner/set:train"]
    save_recipe(run, recipe)
    side = {"loss": 1.0, "perplexity": 2.718, "exact_match": 0.25}
    tuned = {"loss": 0.5, "perplexity": 1.649, "exact_match": 0.75}
    write_json(run.evaluation_path, evaluation(base=side, tuned=tuned).to_dict())
    facts = {"use": "```sh\nx\n```", "files": ["`a`: b"], "checks": ["- fine"]}
    write_card(run, tmp_path, "gguf", facts)
    head, body = card_of(tmp_path)
    assert head["base_model"] == "HuggingFaceTB/SmolLM2-135M-Instruct"
    assert head["base_model_relation"] == "quantized" and head["license"] == "apache-2.0"
    assert head["datasets"] == ["owner/set"] and "lora" in head["tags"]
    assert "rows.jsonl, owner/set:train" in body and "/home/me" not in body
    assert "| exact match | 25.0% | 75.0% |" in body and "| perplexity | 2.718 | 1.649 |" in body
    assert "r=16, alpha=32" in body and "- fine" in body
    run.evaluation_path.unlink()
    write_card(run, tmp_path, "safetensors", facts)
    assert "not compared with the base" in card_of(tmp_path)[1]
