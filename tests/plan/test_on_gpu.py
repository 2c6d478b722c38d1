"""What is planned for a GPU against what a watched step holds there: memory within 3%."""

import copy
import subprocess
import sys
from dataclasses import replace
from itertools import chain, product
from pathlib import Path
from typing import Any

import pytest
import torch
from families import MODEL_FAMILIES, config_of
from interpreted import need_triton
from torch import nn
from transformers import BloomConfig, GPTNeoXConfig, OPTConfig, PhiConfig

from luthier.kernels.triton import switch
from luthier.plan.catalogues import as_on_gpu, find_config
from luthier.plan.from_recipe import job_of_shape
from luthier.plan.live import LiveStorage
from luthier.plan.simulate import Workload, _update_numbers, simulate
from luthier.plan.watch import Watch
from luthier.recipe import KernelsGroup, MethodGroup, TrainGroup, model_recipe
from luthier.train.optimizers import make_optimizer

OPTIM = {"full": "adamw_bf16", "lora": "adamw_torch_fused", "qlora": "paged_adamw_8bit"}
LENGTHS = [24, 40, 7]
# Each family with each method, and each method with each dtype and with and without recomputation.
TINY = [
    *((family, "lora", torch.bfloat16, True) for family in MODEL_FAMILIES),
    *((family, "full", torch.bfloat16, False) for family in MODEL_FAMILIES),
    *((family, "qlora", torch.bfloat16, False) for family in MODEL_FAMILIES if family != "mixtral"),
    *(("llama", *each) for each in product(("lora", "qlora"), (torch.float32, torch.float16), (False, True))),
    ("llama", "full", torch.bfloat16, True),
    ("mixtral", "lora", torch.bfloat16, False),
]  # fmt: skip


def peaks(config: Any, method: str, work: Workload, dropout: float = 0.0) -> tuple[int, int]:
    """That of the plan, and that of the watch."""
    group = MethodGroup(name=method, lora_dropout=dropout)  # type: ignore[arg-type]
    planned = simulate(config, group, replace(work, on_gpu=True))
    return planned.peak, simulate(config, group, work, Watch(work.lengths)).peak


@pytest.mark.parametrize(("family", "method", "dtype", "recomputes"), TINY)
def test_a_plan_for_a_gpu_holds_what_a_watched_step_holds(
    family: str, method: str, dtype: torch.dtype, recomputes: bool
) -> None:
    config = as_on_gpu(config_of(family, 96))
    planned, seen = peaks(config, method, Workload(LENGTHS, 60, dtype, OPTIM[method], recomputes))
    assert planned == pytest.approx(seen, rel=0.03)


_SHAPE: dict[str, Any] = {
    "vocab_size": 96,
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "pad_token_id": 0,
    "bos_token_id": 0,
    "eos_token_id": 0,
}
# With layer norms, which CUDA computes in float32; whose attention is Transformers' own.
LAYER_NORMED = {
    "gpt2": lambda: config_of("gpt2", 96),
    "gpt_neox": lambda: GPTNeoXConfig(**_SHAPE, intermediate_size=256),
    "phi": lambda: PhiConfig(**_SHAPE, intermediate_size=256),
    "opt": lambda: OPTConfig(**_SHAPE, ffn_dim=256, word_embed_proj_dim=64, dropout=0.0),
    "bloom": lambda: BloomConfig(**_SHAPE),
}


@pytest.mark.parametrize(("method", "recomputes"), [("lora", True), ("full", False)])
@pytest.mark.parametrize("family", LAYER_NORMED)
def test_with_layer_norms(family: str, method: str, recomputes: bool) -> None:
    config = as_on_gpu(LAYER_NORMED[family]())
    work = Workload([240, 400, 70], 600, torch.bfloat16, OPTIM[method], recomputes)
    planned, seen = peaks(config, method, work)
    assert planned == pytest.approx(seen, rel=0.03)


def test_a_gpu_has_norms_and_powers_in_float32() -> None:
    """What GPT-2 keeps more than on a processor, of each token, by hand."""
    config = as_on_gpu(config_of("gpt2", 96))
    work = Workload([256] * 2, 510, torch.bfloat16, "adamw_bf16")
    full = MethodGroup(name="full")
    here, there = (simulate(config, full, replace(work, on_gpu=g)) for g in (False, True))
    norm = 2  # bytes more of each number: its input
    gelu = 3 * 2  # of the input of the cube, the tanh, and 1 + the tanh
    attention = (
        2 * config.hidden_size + 4 * config.num_attention_heads
    )  # its output, a float32 a query
    of_a_layer = (2 * norm + 4 * gelu) * config.hidden_size + attention
    kept = 512 * (config.num_hidden_layers * of_a_layer + norm * config.hidden_size)
    assert there.activations - here.activations == pytest.approx(kept, rel=0.05)


@pytest.mark.parametrize("recomputes", [False, True])
@pytest.mark.parametrize("method", OPTIM)
def test_of_layers_of_8b(method: str, recomputes: bool) -> None:
    """8,192 tokens through two layers of Llama 3.1 8B."""
    config = copy.deepcopy(find_config("llama-3.1-8b"))
    config.num_hidden_layers = 2
    work = Workload([2048] * 4, 8188, torch.bfloat16, OPTIM[method], recomputes)
    planned, seen = peaks(config, method, work)
    assert planned == pytest.approx(seen, rel=0.03)


@pytest.mark.parametrize("recomputes", [False, True])
def test_8_bits_are_half_of_the_base_and_are_counted_as_products_of_their_own(
    recomputes: bool,
) -> None:
    config = copy.deepcopy(find_config("llama-3.1-8b"))
    config.num_hidden_layers = 2
    method = MethodGroup(lora_dropout=0.0)
    steps = []
    for in_8_bits in (False, True):
        kernels = KernelsGroup(fp8_base=in_8_bits)
        work = Workload([512] * 2, 1022, torch.bfloat16, "sgd", recomputes, kernels=kernels)
        steps.append(simulate(config, method, replace(work, on_gpu=True)))
        seen = simulate(config, method, work, Watch(work.lengths))
        assert steps[-1].peak == pytest.approx(seen.peak, rel=0.03)
    plain, small = steps
    # Of each layer: four matrices of attention, two of them for eight of 32 heads, and three of the MLP.
    h, i = config.hidden_size, config.intermediate_size
    frozen = 2 * (2 * h * h + 2 * h * h // 4 + 3 * h * i)
    sides = 2 * (h + 2 * h // 4 + h + 2 * i + h)
    assert plain.weights - small.weights == pytest.approx(frozen - 4 * sides, rel=1e-4)
    assert plain.load_peak - small.load_peak == plain.weights - small.weights
    assert plain.parameters == small.parameters
    # Forward and backward, and the forward once more; the first layer's input has no gradient.
    assert plain.fp8_flops == 0
    passes = 3 if recomputes else 2
    assert small.fp8_flops == pytest.approx(2 * 1024 * frozen * passes, rel=0.1)
    assert small.flops == pytest.approx(plain.flops, rel=0.001)


@pytest.mark.parametrize("recomputes", [False, True])
def test_dropout_without_triton_is_planned(recomputes: bool) -> None:
    kernels = KernelsGroup(triton=False)
    work = Workload([512], 511, torch.bfloat16, "sgd", recomputes, kernels=kernels)
    planned, seen = peaks(as_on_gpu(config_of("llama", 96)), "lora", work, dropout=0.1)
    assert planned == pytest.approx(seen, rel=0.03)


_WITHOUT_TRITON = f"""
import sys
sys.modules["triton"] = None
sys.path.insert(0, {str(Path(__file__).parent)!r})
sys.path.insert(0, {str(Path(__file__).parents[1])!r})
import test_on_gpu
print(test_on_gpu.switch.is_installed())
test_on_gpu.print_plans()
"""


def print_plans() -> None:
    for family in ("llama", "gemma2"):
        work = Workload([24, 40, 7], 60, torch.bfloat16, "adamw_torch", on_gpu=True)
        print(simulate(config_of(family, 96), MethodGroup(lora_dropout=0.1), work))


def test_a_plan_for_a_gpu_is_the_same_where_triton_is_not_installed(
    capsys: pytest.CaptureFixture[str],
) -> None:
    need_triton()
    print_plans()
    here = capsys.readouterr().out
    command = [sys.executable, "-c", _WITHOUT_TRITON]
    there = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert there == "False\n" + here


def test_on_a_machine_whose_gpu_lacks_triton_the_plan_takes_none(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    job = job_of_shape(model_recipe("llama-3.2-1b"), torch.bfloat16, 1, on_gpu=True)
    monkeypatch.setattr(switch, "is_installed", lambda: False)
    assert job.here().kernels == job.kernels.model_copy(update={"triton": False})
    assert replace(job, on_gpu=False).here().kernels.triton
    monkeypatch.setattr(switch, "is_installed", lambda: True)
    assert job.here() == job


def test_a_gpu_keeps_what_a_processor_does_not() -> None:
    config = config_of("llama", 96)
    work = Workload([512], 511, torch.bfloat16, "sgd")
    here, there = (simulate(config, MethodGroup(), replace(work, on_gpu=g)) for g in (False, True))
    # The output of attention, which is dropped into a copy, and a float32 for each query of each head, in
    # two layers; but no table of random bits.
    kept = 2 * 512 * (config.hidden_size * 2 + config.num_attention_heads * 4)
    assert there.activations - here.activations + 2**21 == pytest.approx(kept, rel=0.1)
    assert there.flops == pytest.approx(here.flops, rel=0.2)


@pytest.mark.parametrize("name", ["adamw_torch", "adamw_torch_fused", "adafactor", "sgd"])
def test_what_an_update_needs_for_a_moment(name: str) -> None:
    """Against the optimiser itself; what PyTorch takes on a GPU, "foreach", runs here, too."""
    model = nn.Sequential(nn.Linear(300, 200, bias=False), nn.Linear(200, 100, bias=False))
    for on_gpu in (False, True):
        optimizer = make_optimizer(model, TrainGroup(learning_rate=1e-3, weight_decay=0.01), name)
        for group in optimizer.param_groups:
            if on_gpu and name in ("adamw_torch", "sgd"):
                group["foreach"] = True
        for _ in range(2):
            for parameter in model.parameters():
                parameter.grad = torch.ones_like(parameter)
            live = LiveStorage()
            states = (each.values() for each in optimizer.state.values())
            live.add([*model.parameters(), *(p.grad for p in model.parameters()), *chain(*states)])
            held = live.live
            with live:
                optimizer.step()
        sizes = [p.numel() for p in model.parameters()]
        expected = 4 * _update_numbers(sizes, name, on_gpu)
        assert live.peak - held == pytest.approx(expected, abs=8_000)
