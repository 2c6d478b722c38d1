"""The simulated step against a real one, whose storages are counted as it runs."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from families import MODEL_FAMILIES, make_model
from transformers import AutoConfig, AutoModelForCausalLM

from luthier.data.batches import Batch
from luthier.errors import UserError
from luthier.kernels.fast import install
from luthier.models.adapters import attach_adapter
from luthier.objectives.supervised import loss_sum
from luthier.plan.catalogues import accelerators, find_accelerator, find_config, models
from luthier.plan.fake import storages
from luthier.plan.flops import CountWork
from luthier.plan.live import LiveStorage
from luthier.plan.simulate import Workload, simulate
from luthier.recipe import KernelsGroup, MethodGroup


def work(optim: str = "adamw_torch_fused", checkpointing: bool = False) -> Workload:
    return Workload([64] * 4, 100, torch.float32, optim, checkpointing)


@pytest.mark.parametrize("method", ["full", "lora"])
@pytest.mark.parametrize("family", [f for f in MODEL_FAMILIES if f != "mixtral"])
def test_prediction_equals_a_real_step(family: str, method: str) -> None:
    held_to_a_real_step(family, method, 1)


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2"])
def test_later_micro_batches_find_the_gradients_of_those_before(family: str) -> None:
    held_to_a_real_step(family, "full", 3)


def held_to_a_real_step(family: str, method: str, micro_batches: int) -> None:
    chosen = MethodGroup(name=method)  # type: ignore[arg-type]
    config = make_model(family, 96).config
    predicted = simulate(config, chosen, replace(work("sgd"), accumulates=micro_batches > 1))
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).train()
    model.config.use_cache = False
    trained = attach_adapter(model, chosen) if method == "lora" else model
    head = install(trained, KernelsGroup()).head
    live, counter = LiveStorage(), CountWork()
    live.add(storages(trained))
    with live, counter:
        positions = torch.arange(64).repeat(4)[None]
        batch = Batch(
            input_ids=torch.zeros(1, 256, dtype=torch.long),
            position_ids=positions,
            labels=torch.zeros(1, 256, dtype=torch.long),
            predicts=torch.arange(100),
            row_lengths=(64,) * 4,
        )
        for _ in range(micro_batches):
            loss = loss_sum(trained, batch, head=head) / 100
            loss.backward()
            del loss
    assert predicted.peak == pytest.approx(live.peak, rel=0.03)
    assert micro_batches * predicted.flops == pytest.approx(counter.flops, rel=0.01)


def test_experts_are_simulated_in_bfloat16_and_refused_in_float32() -> None:
    config = make_model("mixtral", 96).config
    lora = MethodGroup(lora_dropout=0)
    assert simulate(config, lora, replace(work(), dtype=torch.bfloat16)).peak > 0
    with pytest.raises(UserError, match="cannot be simulated with float32"):
        simulate(config, lora, work())


def test_parts_of_a_known_model() -> None:
    config = find_config("smollm2-135m")
    full = simulate(config, MethodGroup(name="full"), work())
    assert full.trainable == 134_515_008
    assert full.gradients == 4 * full.trainable
    assert full.optimizer == 8 * full.trainable
    lora = simulate(config, MethodGroup(name="lora"), work())
    # r (in + out) numbers for each of seven layers in each of thirty blocks.
    h, kv, i = 576, 192, 1536
    per_block = (h + h) + (h + kv) + (h + kv) + (h + h) + 2 * (h + i) + (i + h)
    assert lora.trainable == 16 * 30 * per_block
    assert lora.adapter == 4 * lora.trainable
    qlora = simulate(config, MethodGroup(name="qlora"), work("adamw_8bit"))
    linear = 30 * (h * h * 2 + 2 * h * kv + 3 * h * i)
    # 4 bits, 8 for 64 weights, 32 for 256 of those (Dettmers et al. 2023), and small tables.
    packed = linear * (0.5 + 1 / 64 + 4 / 64 / 256)
    rest = 4 * (134_515_008 - linear)
    tables = 210 * 4 * (256 + 16 + 1)
    assert qlora.weights - qlora.adapter == pytest.approx(packed + rest + tables, rel=1e-3)
    assert qlora.optimizer < 0.3 * lora.optimizer


def test_recomputation_saves_activations_and_costs_work(narrow_model: Path) -> None:
    config = find_config(str(narrow_model))
    kept, again = (simulate(config, MethodGroup(), work(checkpointing=c)) for c in (False, True))
    assert again.activations < 0.25 * kept.activations
    assert 1.2 * kept.flops < again.flops < 1.6 * kept.flops


def test_memory_grows_linearly_with_rows(narrow_model: Path) -> None:
    config = find_config(str(narrow_model))
    peaks = [
        simulate(
            config, MethodGroup(), Workload([64] * n, 30 * n, torch.float32, "sgd")
        ).activations
        for n in (1, 2, 4)
    ]
    assert peaks[2] - peaks[1] == pytest.approx(2 * (peaks[1] - peaks[0]), rel=0.05)


@pytest.mark.parametrize("name", models())
def test_shapes_of_the_catalogue_have_the_published_size(name: str) -> None:
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(find_config(name))
    assert sum({id(p): p.numel() for p in model.parameters()}.values()) == models()[name]


def test_names_are_found_and_missed_clearly() -> None:
    assert find_accelerator("RTX 4090").memory == 24
    assert find_config("meta-llama/Llama-3.1-8B").hidden_size == 4096
    assert isinstance(find_config("qwen3-8b"), type(AutoConfig.for_model("qwen3")))
    with pytest.raises(UserError, match="did you mean 'rtx-4090'"):
        find_accelerator("rtx 4091")
    with pytest.raises(UserError, match=r"did you mean 'llama-3\.1-8b'"):
        find_config("llama-3.1-8")
    assert all(a.memory > 0 and a.bfloat16 > 0 for a in accelerators().values())
