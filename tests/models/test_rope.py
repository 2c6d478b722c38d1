"""Scaled rotary positions: Transformers' own, in every command that builds the base."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, Gemma3TextConfig, GPT2Config, LlamaConfig

import luthier
from luthier.errors import UserError
from luthier.models.load import load_config, load_model
from luthier.models.rope import scaled
from luthier.models.tuned import load_tuned
from luthier.recipe import Recipe

YARN = {"rope_type": "yarn", "factor": 4.0}
LINEAR = {"rope_type": "linear", "factor": 2.0}
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}


def llama(**more: Any) -> LlamaConfig:
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "vocab_size": 60}
    return LlamaConfig(**sizes, num_attention_heads=2, max_position_embeddings=256, **more)


@pytest.mark.parametrize("scaling", [YARN, LINEAR, LLAMA3], ids=lambda each: each["rope_type"])
def test_the_config_is_the_one_that_transformers_would_read(scaling: dict[str, Any]) -> None:
    found = scaled(llama(rope_theta=5e5), scaling)
    known = {} if scaling is LINEAR else {"original_max_position_embeddings": 256}
    positions = round(256 * scaling["factor"])
    wanted = llama(rope_parameters={**scaling, **known, "rope_theta": 5e5})
    wanted.max_position_embeddings = positions
    assert found.rope_parameters == wanted.rope_parameters
    assert found.max_position_embeddings == positions
    with torch.device("meta"):
        kind = type(AutoModelForCausalLM.from_config(found).model.rotary_emb)
    assert torch.equal(kind(found).inv_freq, kind(wanted).inv_freq)
    assert not torch.equal(kind(found).inv_freq, kind(llama(rope_theta=5e5)).inv_freq)
    assert scaled(found, scaling) is found  # a model that was saved so is not scaled again


def test_layers_of_full_attention_are_scaled_where_layers_differ() -> None:
    config = Gemma3TextConfig(num_hidden_layers=6, hidden_size=32, max_position_embeddings=256)
    found = scaled(config, LINEAR)
    assert found.rope_parameters["full_attention"]["rope_type"] == "linear"
    assert found.rope_parameters["sliding_attention"] == config.rope_parameters["sliding_attention"]
    assert config.rope_parameters["full_attention"]["rope_type"] == "default"


def test_a_model_without_rotary_positions_is_refused() -> None:
    with pytest.raises(UserError, match="gpt2 model has no rotary position embeddings"):
        scaled(GPT2Config(), YARN)


@pytest.mark.parametrize(
    ("scaling", "why"),
    [
        ("{rope_type: dynamic, factor: 2}", "the longest of"),
        ("{rope_type: magic, factor: 2}", "yarn, linear or llama3, not 'magic'"),
        ("{rope_type: yarn}", "factor is a number of 1 or more"),
        ("{rope_type: yarn, factor: 0.5}", "factor is a number of 1 or more"),
        ("{rope_type: linear, factor: 2, beta_fast: 3}", "has no beta_fast"),
        ("{rope_type: llama3, factor: 2}", "needs high_freq_factor, low_freq_factor"),
    ],
)
def test_parameters_that_mean_nothing_are_refused(
    scaling: str, why: str, make_recipe: Callable[..., Recipe]
) -> None:
    with pytest.raises(UserError, match=why):
        make_recipe(f"model.rope_scaling={scaling}")


def test_old_names_are_read(make_recipe: Callable[..., Recipe]) -> None:
    recipe = make_recipe("model.rope_scaling={type: linear, factor: 2}")
    assert recipe.model.rope_scaling == {"rope_type": "linear", "factor": 2}


@pytest.mark.parametrize("method", ["lora", "full"])
def test_a_run_reads_longer_rows_and_keeps_its_scaling(
    method: str, make_recipe: Callable[..., Recipe], tiny_model: Path, tmp_path: Path
) -> None:
    positions = load_config(tiny_model).max_position_embeddings
    longer = f"data.max_length={2 * positions}"
    plain = make_recipe(longer)
    with pytest.raises(UserError, match=r"or model\.rope_scaling"):
        luthier.train(plain)
    recipe = make_recipe(
        longer, f"method.name={method}", "model.rope_scaling={rope_type: yarn, factor: 2}",
        "train.max_steps=2",
    )  # fmt: skip
    run = luthier.train(recipe)
    tuned = load_tuned(run).tuned
    assert tuned.config.rope_parameters["rope_type"] == "yarn"
    assert tuned.config.max_position_embeddings == 2 * positions
    wanted = load_model(tiny_model, torch.float32, rope=recipe.model.rope_scaling)
    found = next(m for n, m in tuned.named_modules() if n.endswith("rotary_emb"))
    assert torch.equal(found.inv_freq, wanted.model.rotary_emb.inv_freq)
    if method == "full":
        return
    luthier.merge(run, tmp_path / "merged", check_rows=4)  # the outputs are compared, too
    config = load_config(tmp_path / "merged")
    assert config.rope_parameters == tuned.config.rope_parameters
    assert config.max_position_embeddings == 2 * positions
    adapter = pytest.importorskip("luthier.export.gguf_adapter")
    with pytest.raises(UserError, match=r"model\.rope_scaling"):
        adapter.write_adapter_gguf(run, tmp_path / "x.gguf", "x")
