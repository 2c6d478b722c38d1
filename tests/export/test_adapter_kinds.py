"""Every kind of adapter that a recipe can ask for, as GGUF: right, or refused with a reason."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from families import save_tiny
from safetensors.torch import load_file, save_file
from shipping import ask_llama_cpp, llama_cpp_python
from transformers import AutoConfig, AutoModelForCausalLM

from luthier.errors import UserError
from luthier.export.export import export
from luthier.export.gguf_adapter import write_adapter_gguf
from luthier.export.gguf_write import write_gguf
from luthier.export.tuned import TunedWeights
from luthier.models.tuned import load_tuned
from luthier.recipe import Recipe
from luthier.run import Run

SHORT = ("train.max_steps=3", "train.eval_steps=3", "train.save_steps=3", "method.lora_dropout=0")
PROMPTS = [list(range(start, start + 37)) for start in (3, 160, 300)]

# As a file of its own, llama.cpp's adapters hold A and B of layers alone.
BESIDE = {
    "rslora": ("method.use_rslora=true", "method.lora_r=8"),
    "layers": ("method.layers_to_transform=[1]",),
    "patterns": ("method.rank_pattern={q_proj: 4}", "method.alpha_pattern={'layers.0.*': 8}"),
    "gaussian": ("method.init_lora_weights=gaussian",),
    "pissa": (
        "method.init_lora_weights=pissa",
        "method.use_rslora=true",
        "method.rank_pattern={q_proj: 4}",
    ),
    "olora": ("method.init_lora_weights=olora",),
    "eva": ("method.init_lora_weights=eva", "method.lora_r=4"),
    "loftq": ("method.name=qlora", "method.init_lora_weights=loftq", "train.optim=adamw_torch"),
    "loraplus": ("method.loraplus_lr_ratio=8", "train.learning_rate=2e-3"),
}
MERGED = {
    "dora": (("method.use_dora=true",), "does not support DoRA"),
    "embedding": (("method.target_modules=[q_proj, embed_tokens]",), "adapter on model.embed_tok"),
    "head": (("method.target_modules=[q_proj, lm_head]",), "an adapter on lm_head"),
    "modules": (("method.modules_to_save=[embed_tokens, norm]",), "trained whole modules beside"),
    "tokens": (("data.add_tokens=[<new_a>, <|im_start|>]",), "trained the embeddings of tokens"),
    "bias": (("method.bias=all",), "trained biases beside"),
    "bias-of-layers": (("method.bias=lora_only",), "trained biases beside"),
}


@pytest.mark.parametrize("kind", [*BESIDE, *MERGED])
def test_gguf_of_every_kind(
    make_recipe: Callable[..., Recipe], train: Callable[..., Run], tmp_path: Path, kind: str
) -> None:
    """The merged file gives the run's logits to 2e-4, and its answers; so does llama.cpp with the
    adapter beside its base, to 2e-3, where it can hold such an adapter."""
    overrides, refused = MERGED.get(kind, (BESIDE.get(kind, ()), None))
    if kind.startswith("bias"):
        overrides += (f"model.source={with_biases(tmp_path / 'base')}",)
    run = train(make_recipe(*SHORT, *overrides))
    (file,) = export(run, "gguf", tmp_path / "out", ["f32"], check_rows=8)["files"]
    check = file["check"]
    assert check["difference"]["logits_max"] < 2e-4 and check["difference"]["same_top"] == 1
    assert check["same_answers"] == check["answers"] > 0
    assert check["same_tokens"] == check["texts"] > 0
    adapter = tmp_path / "adapter.gguf"
    if refused is not None:
        with pytest.raises(UserError, match=refused):
            write_adapter_gguf(run, adapter, "x")
        assert not adapter.exists()
        return
    write_adapter_gguf(run, adapter, "x")
    if llama_cpp_python() is None:
        return
    model = load_tuned(run).tuned
    with torch.no_grad():
        expected = model.float()(torch.tensor(PROMPTS)).logits[:, -1].float().log_softmax(-1)
    asked = {"prompts": PROMPTS, "new": 1, "top": 200}
    gaps = []
    for answer in (
        ask_llama_cpp(tmp_path / "out" / file["file"], **asked),
        ask_llama_cpp(base_file(run, tmp_path), lora=str(adapter), **asked),
    ):
        pairs = zip(expected, answer["top"], strict=True)
        found = [abs(value - row[int(token)]) for row, top in pairs for token, value in top.items()]
        assert len(found) > 150
        gaps.append(float(max(found)))
    assert max(gaps) < 2e-3, gaps


def with_biases(folder: Path) -> Path:
    config = AutoConfig.from_pretrained(save_tiny(folder), attention_bias=True)
    AutoModelForCausalLM.from_config(config, dtype=torch.float32).save_pretrained(folder)
    return folder


def base_file(run: Run, folder: Path) -> Path:
    """The base of ``run`` as its adapter's training saw it."""
    file = run.adapter_path / "adapter_model.safetensors"
    save_file({name: torch.zeros_like(t) for name, t in load_file(file).items()}, file)
    return write_gguf(TunedWeights(run), folder / "base.gguf", "f32", "x").file
