"""A deep model's step from two shallow ones, against the same step simulated whole: each figure is equal."""

from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import pytest
import torch
from families import config_of
from transformers import PreTrainedConfig

from luthier.plan import depth
from luthier.plan.depth import step_by_layers
from luthier.plan.simulate import Workload, count, simulate
from luthier.recipe import MethodGroup, ObjectiveGroup

LORA = MethodGroup(lora_r=4)
WITHOUT_DROPOUT = MethodGroup(lora_r=4, lora_dropout=0.0)
QLORA = MethodGroup(name="qlora", lora_r=4)
FULL = MethodGroup(name="full")
BF16, F32 = torch.bfloat16, torch.float32


@pytest.fixture
def depths(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Layers of the models that were simulated."""
    seen: list[int] = []

    def noted(config: PreTrainedConfig, *args: Any) -> Any:
        seen.append(config.get_text_config().num_hidden_layers)
        return count(config, *args)

    monkeypatch.setattr(depth, "count", noted)
    return seen


def deep(family: str, layers: int = 12) -> PreTrainedConfig:
    config = config_of(family, 96)
    text = config.get_text_config()
    text.num_hidden_layers = layers
    if types := getattr(text, "layer_types", None):
        text.layer_types = [types[0]] * layers
    return config


@pytest.mark.parametrize(
    ("family", "method", "work"),
    [
        ("llama", LORA, Workload([24, 40], 32, BF16, "adamw_torch_fused")),
        ("llama", LORA, Workload([24, 40], 32, BF16, "adamw_torch_fused", True)),
        ("llama", QLORA, Workload([9], 4, BF16, "paged_adamw_8bit", True, on_gpu=True)),
        # The peak is in the first layer's backward, where gradients are all there, or in the last one's.
        ("llama", FULL, Workload([5], 4, F32, "sgd")),
        ("llama", FULL, Workload([300], 299, F32, "adamw_torch_fused", accumulates=True)),
        ("llama", FULL, Workload([30], 20, BF16, "adamw_bf16", True, True)),
        ("llama", FULL, Workload([30], 20, BF16, "adamw_torch", on_gpu=True)),
        ("gpt2", LORA, Workload([24, 40], 32, F32, "adamw_torch_fused")),
        ("gpt2", FULL, Workload([40], 39, F32, "adafactor", True)),
        (
            "qwen2",
            MethodGroup(lora_r=4, target_modules=["q_proj", "mlp.down_proj"]),
            Workload([64], 32, F32, "adamw_torch_fused"),
        ),
        ("gemma2", FULL, Workload([64], 32, F32, "adamw_torch_fused", True)),
        ("mixtral", WITHOUT_DROPOUT, Workload([64], 32, BF16, "adamw_torch_fused", True)),
        (
            "llama",
            LORA,
            Workload([24, 40], 32, BF16, "adamw_torch_fused", objective=ObjectiveGroup(name="dpo"), asks_reference=True),
        ),
    ],
)  # fmt: skip
def test_each_figure_is_that_of_the_whole_model(
    depths: list[int], family: str, method: MethodGroup, work: Workload
) -> None:
    found = asdict(step_by_layers(deep(family), method, work))
    assert depths == [4, 5]
    # The norms of all gradients are one tensor, which a GPU's allocator rounds up to 512 bytes.
    most = 512 if work.on_gpu else 0
    whole = asdict(simulate(deep(family), method, work))
    assert {key for key in whole if abs(found[key] - whole[key]) > most} == set()
    assert {key for key in whole if found[key] != whole[key]} <= {"backward_peak", "step_peak"}


def _other_types(config: PreTrainedConfig) -> None:
    config.layer_types = ["sliding_attention"] + ["full_attention"] * 11


def _dense_layers(config: PreTrainedConfig) -> None:
    config.mlp_only_layers = [0]


@pytest.mark.parametrize(
    ("family", "change", "method"),
    [
        ("gemma2", _other_types, LORA),
        ("qwen3_moe", _dense_layers, WITHOUT_DROPOUT),
        ("llama", lambda _: None, MethodGroup(lora_r=4, layers_to_transform=[7])),
        ("llama", lambda _: None, MethodGroup(lora_r=4, rank_pattern={"layers.3.*q_proj": 8})),
        ("llama", lambda _: None, MethodGroup(name="full", freeze_modules=["layers.?"])),
        ("llama", lambda _: None, MethodGroup(lora_r=4, target_modules=r".*layers\.\d\..*q_proj")),
    ],
    ids=["attention", "experts", "adapted", "rank", "frozen", "expression"],
)
def test_layers_that_differ_are_all_simulated(
    depths: list[int],
    family: str,
    change: Callable[[PreTrainedConfig], None],
    method: MethodGroup,
) -> None:
    config = deep(family)
    change(config)
    work = Workload([24], 12, BF16, "adamw_torch_fused")
    assert step_by_layers(config, method, work) == simulate(config, method, work)
    assert depths == [12]


def test_layers_that_are_not_found_are_all_simulated(
    depths: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(depth, "layers_of", lambda _: [])
    work = Workload([24], 12, BF16, "adamw_torch_fused")
    assert step_by_layers(deep("llama"), LORA, work) == simulate(deep("llama"), LORA, work)
    assert depths == [12]
