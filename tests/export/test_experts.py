"""Adapters on experts: what is merged and exported is base and adapter, as PEFT computes them."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from families import save_tiny
from gguf import GGUFReader
from peft import PeftModel
from safetensors.torch import load_file, save_file
from shipping import ask_llama_cpp, needs_llama_cpp
from torch import Tensor
from transformers import AutoModelForCausalLM

from luthier.errors import UserError
from luthier.export.export import export
from luthier.export.gguf_adapter import write_adapter_gguf
from luthier.export.gguf_write import write_gguf
from luthier.export.merge import MergeOptions, merge
from luthier.export.tuned import TunedWeights
from luthier.recipe import Recipe
from luthier.run import Run

EXACT = MergeOptions(dtype=torch.float32)
BOTH = "[mlp.experts.gate_up_proj, mlp.experts.down_proj]"
CASES = [
    ("mixtral", "mistral-bytes", BOTH),
    ("mixtral", "mistral-bytes", "[mlp.experts.down_proj]"),
    ("qwen2_moe", "chatml", BOTH),
    ("qwen2_moe", "chatml", "[mlp.experts.gate_up_proj, mlp.gate.weight]"),
    ("qwen3_moe", "chatml", BOTH),
]
# Greedy answers of random models need likely tokens that are far apart.
PROMPTS = [list(range(start, start + 41)) for start in (3, 90, 170)]


@pytest.fixture
def tuned(
    make_recipe: Callable[..., Recipe], train: Callable[..., Run], tmp_path: Path
) -> Callable[..., Run]:
    """A run whose adapter is on the attention and on ``parameters``."""

    def make(family: str, chat: str, parameters: str, *overrides: str) -> Run:
        source = save_tiny(tmp_path / family, family, chat)
        return train(
            make_recipe(
                f"model.source={source}",
                "method.target_modules=[q_proj, v_proj]",
                f"method.target_parameters={parameters}",
                "method.lora_dropout=0",
                "method.lora_r=4",
                "method.lora_alpha=16",
                *overrides,
            )
        )

    return make


def logits(model: torch.nn.Module) -> Tensor:
    with torch.no_grad():
        output: Tensor = model.eval()(torch.tensor(PROMPTS)).logits
    return output


def base_and_adapter(run: Run) -> PeftModel:
    base = AutoModelForCausalLM.from_pretrained(run.recipe().model.source, dtype=torch.float32)
    return PeftModel.from_pretrained(base, run.adapter_path)


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case[0]}-{case[2]}")
def test_merged_weights_are_those_of_peft(
    tuned: Callable[..., Run], tmp_path: Path, case: tuple[str, str, str]
) -> None:
    """To 1e-6 of each weight, and 2e-5 of each logit; in the form in which the base is stored."""
    run = tuned(*case, "method.use_rslora=true")
    merged = merge([run], tmp_path / "merged", EXACT)
    assert merged.checks[str(run.root)].logits_max < 2e-5
    theirs = base_and_adapter(run)
    expected = logits(theirs)
    written = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    assert torch.allclose(logits(written), expected, atol=2e-5)
    with theirs.disable_adapter():
        assert (logits(theirs) - expected).abs().max() > 1e-3
    whole = theirs.merge_and_unload().state_dict()
    assert whole.keys() == written.state_dict().keys()
    for name, tensor in written.state_dict().items():
        assert torch.allclose(tensor, whole[name], atol=1e-6), name
    source = Path(run.recipe().model.source)
    stored = load_file(tmp_path / "merged" / "model.safetensors")
    assert {n: t.shape for n, t in stored.items()} == {
        n: t.shape for n, t in load_file(source / "model.safetensors").items()
    }
    assert any(".experts.3." in name for name in stored)  # as other tools read them


def test_a_base_that_keeps_experts_in_one_tensor_stays_so(
    tuned: Callable[..., Run], tmp_path: Path
) -> None:
    run = tuned("qwen3_moe", "chatml", BOTH)
    source = Path(run.recipe().model.source)
    whole = AutoModelForCausalLM.from_pretrained(source).state_dict()
    file = source / "model.safetensors"
    save_file({n: t.clone() for n, t in whole.items()}, file, metadata={"format": "pt"})
    merged = merge(
        [run], tmp_path / "merged", MergeOptions(dtype=torch.float32, max_shard_bytes=9**5)
    )
    assert merged.checks[str(run.root)].logits_max < 2e-5 and merged.files > 2
    shards = [load_file(file) for file in (tmp_path / "merged").glob("*.safetensors")]
    assert set().union(*shards) == whole.keys()


def test_rounded_as_the_run_kept_it(tuned: Callable[..., Run], tmp_path: Path) -> None:
    run = tuned("mixtral", "mistral-bytes", BOTH, "model.dtype=bfloat16")
    merged = merge([run], tmp_path / "merged", EXACT)
    assert merged.checks[str(run.root)].logits_max < 2e-5


def test_sums_of_adapters_on_experts_are_refused(tuned: Callable[..., Run], tmp_path: Path) -> None:
    run = tuned("mixtral", "mistral-bytes", BOTH)
    with pytest.raises(UserError, match="experts cannot be combined"):
        merge([run, run], tmp_path / "merged", EXACT)
    assert not (tmp_path / "merged").exists()


@pytest.mark.parametrize("family", ["mixtral", "qwen2_moe", "qwen3_moe"])
def test_a_gguf_file_has_every_expert(
    tuned: Callable[..., Run], tmp_path: Path, family: str
) -> None:
    run = tuned(family, "chatml", BOTH)
    export(run, "gguf", tmp_path / "out", ["f32"], check_rows=0)
    read = {t.name: t.data for t in GGUFReader(tmp_path / "out" / "run-f32.gguf").tensors}
    whole = base_and_adapter(run).merge_and_unload().state_dict()
    gate_up = whole["model.layers.1.mlp.experts.gate_up_proj"]
    down = whole["model.layers.1.mlp.experts.down_proj"]
    parts = {"gate": gate_up.chunk(2, 1)[0], "up": gate_up.chunk(2, 1)[1], "down": down}
    for part, expected in parts.items():
        got = torch.tensor(read[f"blk.1.ffn_{part}_exps.weight"].copy()).reshape(expected.shape)
        assert torch.allclose(got, expected, atol=1e-6)


@needs_llama_cpp
@pytest.mark.parametrize("family", ["mixtral", "qwen2_moe", "qwen3_moe"])
def test_llama_cpp_answers_as_base_and_adapter(
    tuned: Callable[..., Run], tmp_path: Path, family: str
) -> None:
    """Merged into one file, and as an adapter beside the file of the base; to 2e-3 of a logit."""
    run = tuned(family, "chatml", BOTH)
    expected = logits(base_and_adapter(run))[:, -1].log_softmax(-1)
    (tmp_path / "out").mkdir()
    merged = write_gguf(TunedWeights(run), tmp_path / "out" / "merged.gguf", "f32", "x").file
    layers = write_adapter_gguf(run, tmp_path / "out" / "adapter.gguf", "x")
    assert layers == 8  # two of attention and two of experts in each of two
    file = run.adapter_path / "adapter_model.safetensors"
    save_file({name: torch.zeros_like(t) for name, t in load_file(file).items()}, file)
    base = write_gguf(TunedWeights(run), tmp_path / "out" / "base.gguf", "f32", "x").file
    asked = {"prompts": PROMPTS, "new": 1, "top": 300}
    gaps = []
    for answer in (
        ask_llama_cpp(merged, **asked),
        ask_llama_cpp(base, lora=str(tmp_path / "out" / "adapter.gguf"), **asked),
        ask_llama_cpp(base, **asked),
    ):
        pairs = zip(expected, answer["top"], strict=True)
        found = [abs(value - row[int(token)]) for row, top in pairs for token, value in top.items()]
        assert len(found) > 300
        gaps.append(float(max(found)))
    assert gaps[0] < 2e-3 and gaps[1] < 2e-3 < 0.02 < gaps[2], gaps
