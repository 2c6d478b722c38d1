"""Frozen weights and products in 8 bits, against the same numbers multiplied exactly, and against none."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from adapting import adapted
from families import make_model, save_tiny
from helpers import Notes, gradients, random_rows, read_metrics, write_rows
from interpreted import interpreting, need_triton, rounding_as_a_gpu, triton_in_use
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, LlamaConfig

from luthier.data.batches import collate
from luthier.errors import UserError
from luthier.kernels import fp8
from luthier.kernels.fast import install, install_checked, remove
from luthier.kernels.fp8_base import refuse_device, store_in_fp8
from luthier.models.adapters import attach_adapter, load_adapter
from luthier.models.load import load_model, refuse_quantised
from luthier.objectives.supervised import loss_sum
from luthier.recipe import KernelsGroup, MethodGroup, parse_recipe
from luthier.run import Run
from luthier.train import session
from luthier.train.fit import fit
from luthier.train.setup import recompute_activations
from luthier.train.watch import fingerprint

CPU = torch.device("cpu")
FAMILIES = ("llama", "mistral-window", "qwen2", "qwen3", "gemma3", "phi3", "gpt2")
STEP = 2**-4  # half a step of three bits, of the number itself
LEAST = 2**-10  # half a step of the smallest numbers
COMPILES = """
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, compile
from luthier.kernels.triton import fp8

def made(kernel, kinds, values, capability):
    signature = kinds | dict.fromkeys(values, "constexpr")
    source = ASTSource(fn=kernel, signature=signature, constexprs=values)
    return compile(source, target=GPUTarget("cuda", capability, 32)).asm["ptx"]

pointers = {"x": "*bf16", "weights": "*fp32", "numbers": "*fp8e4nv", "scales": "*fp32"}
values = {"WEIGHS": True, "MOST": 448.0, "LEAST": 1e-30, "BLOCK": 4096}
turned = {"matrix": "*u8", "turned": "*u8", "rows": "i32", "columns": "i32"}
for capability in (89, 90):
    rounded = made(fp8._in_rows, pointers | {"width": "i32"}, values, capability)
    print("cvt.rn.satfinite.e4m3x2.f32" in rounded)
    print(".shared" in made(fp8._turn, turned, {"TILE": 64}, capability))
"""


def numbers(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def loss_and_gradients(model: Any, kernels: KernelsGroup | None = None) -> tuple[float, Tensor]:
    """Of packed rows; the gradients in one."""
    fast = install(model, kernels or KernelsGroup())
    loss = loss_sum(model, collate([[row] for row in random_rows(5)]), head=fast.head)
    found = gradients(model, loss)
    remove(model, fast)
    return loss.item(), torch.cat([g.float().flatten() for g in found.values()])


def off(found: Tensor, reference: Tensor) -> float:
    return ((found - reference).norm() / reference.norm()).item()


def multiplied_exactly(
    left: Tensor, right: Tensor, of_left: Tensor, of_right: Tensor, dtype: torch.dtype
) -> Tensor:
    """What a product of 8-bit numbers stands for."""
    exact = (left.double() * of_left) @ (right.double() * of_right)
    return exact.to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_rows_are_rounded_by_a_scale_of_their_own(dtype: torch.dtype) -> None:
    x = numbers(5, 37, dtype=dtype) * torch.tensor([1e-4, 1.0, 0.0, 1e3, 1.0])[:, None].to(dtype)
    weights = numbers(37, seed=1).abs()
    for each in (None, weights):
        exact = x.float() if each is None else x.float() * each
        small, scales = fp8.in_rows(x, each)
        assert small.dtype == fp8.DTYPE
        assert scales.shape == (5, 1)
        most = exact.abs().amax(1, keepdim=True)
        assert torch.allclose(scales, most.clamp_min(fp8.LEAST) / 448)
        allowed = STEP * exact.abs() + LEAST * scales
        assert ((small.float() * scales - exact).abs() <= allowed * 1.0001).all()


def test_what_is_not_finite_makes_its_row_non_finite_and_no_other() -> None:
    x = numbers(4, 16)
    x[1, 3], x[2, 5], x[3] = torch.nan, torch.inf, 0.0
    layer = fp8.FP8Linear(numbers(32, 16, seed=1), None, CPU)
    layer.multiplies = True
    for output in (layer(x), fp8.product_back(x, fp8.FP8Linear(numbers(16, 32), None, CPU))):
        assert output.isfinite().all(1).tolist() == [True, False, False, True]
        assert not output[3].any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(("tokens", "wide", "out"), [(1, 16, 16), (37, 48, 80)])
def test_products(tokens: int, wide: int, out: int, dtype: torch.dtype) -> None:
    """Forward and backward of a layer, against the same 8-bit numbers multiplied in float64."""
    bias = nn.Parameter(numbers(out, seed=3), requires_grad=False)
    layer = fp8.FP8Linear(numbers(out, wide, seed=1, dtype=dtype), bias, CPU)
    layer.multiplies = True
    assert off(fp8.expanded(layer, torch.float32), numbers(out, wide, seed=1)) < 0.04
    slope = numbers(1, tokens, out, seed=2, dtype=dtype)
    found = []
    for scaled in (fp8._scaled, multiplied_exactly):
        x = numbers(1, tokens, wide, dtype=dtype).requires_grad_()
        with patch.object(fp8, "_scaled", scaled):
            output = layer(x)
            output.backward(slope)
        assert output.dtype == x.grad.dtype == dtype
        found.append((output.detach().float(), x.grad.float()))
    for one, exact in zip(*found, strict=True):
        assert one.shape == exact.shape
        tolerance = 1e-5 if dtype == torch.float32 else 2 * torch.finfo(dtype).eps
        assert (one - exact).norm() <= tolerance * exact.norm()


@pytest.mark.parametrize("family", FAMILIES)
def test_loss_and_gradients(family: str) -> None:
    """Close to the same numbers multiplied exactly, and as far from none as three bits are."""
    plain = loss_and_gradients(adapted(family))
    model = adapted(family)
    stored = store_in_fp8(model, CPU)
    assert stored.layers == sum("lora_A" in n for n, _ in model.named_parameters())
    ours = loss_and_gradients(model)
    with patch.object(fp8, "_scaled", multiplied_exactly):
        exact = loss_and_gradients(model)
    # Where sums differ in their last bit, a number of the next layer is now and then rounded otherwise.
    assert ours[0] == pytest.approx(exact[0], rel=1e-4)
    assert off(ours[1], exact[1]) < 0.01
    assert ours[0] == pytest.approx(plain[0], rel=0.01)
    assert 0.01 < off(ours[1], plain[1]) < 0.15
    expanded = loss_and_gradients(
        model, KernelsGroup(lora=False)
    )  # PEFT's path, no product in 8 bits
    assert expanded[0] == pytest.approx(plain[0], rel=0.01)
    assert 0.005 < off(expanded[1], plain[1]) < off(ours[1], plain[1])


def test_in_bfloat16() -> None:
    """Under autocast, not much further from float32 than 8 bits in float32 are."""
    plain, errors = loss_and_gradients(adapted("llama")), []
    for dtype in (torch.float32, torch.bfloat16):
        model = adapted("llama", dtype)
        store_in_fp8(model, CPU)
        with torch.autocast("cpu", dtype, enabled=dtype == torch.bfloat16):
            loss, found = loss_and_gradients(model)
        assert loss == pytest.approx(plain[0], rel=0.01)
        errors.append(off(found, plain[1]))
    assert errors[1] < 1.5 * errors[0]


def test_recomputation_with_dropout_gives_the_same_gradients() -> None:
    found = []
    for recomputes in (False, True):
        model = adapted("llama", lora_dropout=0.3).train()
        store_in_fp8(model, CPU)
        if recomputes:
            recompute_activations(model)
        torch.manual_seed(5)
        found.append(loss_and_gradients(model.train()))
    assert found[0][0] == found[1][0]
    assert torch.allclose(found[0][1], found[1][1], atol=1e-6)


def test_with_the_adapter_off_and_on_layers_are_the_same_function() -> None:
    """What preferences are compared with: the base through the same products."""
    model = adapted("llama")
    store_in_fp8(model, CPU)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            nn.init.zeros_(parameter)
    install(model, KernelsGroup())
    tokens = torch.arange(1, 9)[None]
    with torch.no_grad(), model.disable_adapter():
        alone = model(tokens).logits
    assert torch.allclose(model(tokens).logits, alone, atol=1e-5)


def test_which_layers_are_put_into_8_bits() -> None:
    model = make_model("llama", 96)
    model.model.layers[0].mlp.down_proj = nn.Linear(
        model.model.layers[0].mlp.down_proj.in_features, 64, bias=False
    )
    wide = model.model.layers[1].mlp
    wide.gate_proj, wide.up_proj = nn.Linear(64, 72, bias=False), nn.Linear(64, 72, bias=False)
    wide.down_proj = nn.Linear(72, 64, bias=False)
    names = ["q_proj", "gate_proj", "up_proj", "down_proj", "lm_head"]
    ready = attach_adapter(model, MethodGroup(target_modules=names, lora_r=4))
    before = {n: p.detach().clone() for n, p in ready.named_parameters()}
    stored = store_in_fp8(ready, CPU)
    assert (stored.layers, stored.uneven, stored.others) == (5, 3, 1)
    said = stored.sentence(torch.bfloat16)
    assert "5 layers are in 8 bits" in said
    assert "3 stay in bfloat16, as their sides are no multiples of 16" in said
    for name, parameter in ready.named_parameters():
        if parameter.dtype == fp8.DTYPE:
            place = name.removesuffix(".numbers")
            read = ready.get_submodule(
                place
            ).weight  # as models do that multiply with it themselves
            assert read.dtype == torch.float32
            assert off(read, before[f"{place}.weight"]) < 0.04
        else:
            assert torch.equal(parameter, before[name])


def test_a_model_without_such_a_layer_is_refused() -> None:
    model = attach_adapter(make_model("llama", 96), MethodGroup(use_dora=True))
    with pytest.raises(UserError, match="no layer of this model can be put into 8 bits"):
        store_in_fp8(model, CPU)


def test_products_that_are_wrong_are_not_used() -> None:
    model = adapted("llama")
    store_in_fp8(model, CPU)
    right, columns = fp8._scaled, fp8.by_columns
    for name, wrong, said in (
        ("_scaled", lambda *given: right(*given) * 1.2, "forward products with weights (64, 64)"),
        ("by_columns", lambda weight: columns(weight.flip(0)), "backward products with weights"),
        ("_scaled", lambda *_: torch._scaled_mm(None), "TypeError"),
    ):
        with patch.object(fp8, name, wrong):
            fast = install_checked(model, KernelsGroup())
            (missing,) = fast.missing
            assert missing.startswith("fp8_base: ")
            assert said in missing
            assert not any(map(fp8.multiplies, model.modules()))
        remove(model, fast)
    assert install_checked(model, KernelsGroup()).missing == []
    assert all(m.multiplies for m in model.modules() if fp8.is_fp8(m))


class TestTriton:
    @pytest.fixture(autouse=True)
    def triton(self) -> Any:
        need_triton()
        with rounding_as_a_gpu():
            yield

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
    @pytest.mark.parametrize("shape", [(1, 1), (3, 33), (2, 5000)])
    def test_rows(self, shape: tuple[int, int], dtype: torch.dtype) -> None:
        x, weights = numbers(*shape, dtype=dtype) * 30, numbers(shape[1], seed=1).abs()
        x[0, :3] = 0.0
        for each in (None, weights):
            expected = fp8.in_rows(x, each)
            with triton_in_use():
                found = fp8.in_rows(x, each)
            assert torch.allclose(found[1], expected[1], rtol=1e-6)
            assert torch.equal(found[0].float(), expected[0].float())

    def test_rows_that_do_not_lie_in_order_and_those_that_are_not_finite(self) -> None:
        x = numbers(16, 4).t()
        with triton_in_use():
            assert torch.equal(fp8.in_rows(x)[0].float(), fp8.in_rows(x.contiguous())[0].float())
            x = numbers(3, 16)
            x[1, 3], x[2, 5] = torch.nan, torch.inf
            assert fp8.in_rows(x)[1].isfinite()[:, 0].tolist() == [True, False, False]

    @pytest.mark.parametrize("shape", [(16, 16), (80, 144)])
    def test_a_matrix_turned_round(self, shape: tuple[int, int]) -> None:
        matrix = numbers(*shape).to(fp8.DTYPE)
        with triton_in_use():
            found = fp8.by_columns(matrix)
        assert found.stride() == (1, shape[0])
        assert torch.equal(found.float(), matrix.float())

    def test_the_compiler_has_instructions_for_cards(self) -> None:
        """Without a card: in a process of its own, as here the interpreter stands for the compiler."""
        env = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
        done = subprocess.run(
            [sys.executable, "-c", COMPILES], capture_output=True, text=True, env=env
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout.split() == ["True"] * 4

    def test_a_model(self) -> None:
        model = adapted("llama")
        store_in_fp8(model, CPU)
        batch = collate([[row] for row in random_rows(1)])
        alone = KernelsGroup(loss=False, norm=False, gated=False, rotary=False)
        found = []
        for kernels in (alone, alone.model_copy(update={"triton": False})):
            with interpreting():
                fast = install_checked(model, kernels)
                assert fast.missing == []
                each = gradients(model, loss_sum(model, batch))
            remove(model, fast)
            found.append(torch.cat([g.flatten() for g in each.values()]))
        assert off(*found) < 0.01

    def test_a_kernel_that_is_wrong_is_not_used(self, monkeypatch: pytest.MonkeyPatch) -> None:
        from luthier.kernels.triton import fp8 as kernel

        right = kernel.in_rows
        monkeypatch.setattr(kernel, "in_rows", lambda *a: (right(*a)[0], right(*a)[1] * 1.1))
        told = []
        for in_8_bits in (True, False):  # a model that has none does not try them
            model = adapted("llama")
            if in_8_bits:
                store_in_fp8(model, CPU)
            with interpreting():
                fast = install_checked(model, KernelsGroup())
            told.append(fast.missing)
            remove(model, fast)
        assert told == [["triton: its 8-bit numbers differ from PyTorch's"], []]


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (["method.name=full"], "full fine-tuning has no frozen weights"),
        (["method.name=qlora"], "qlora keeps them in 4 bits already"),
        (["kernels.lora=false"], "is a part of kernels.lora, which is false"),
        (["method.use_dora=true"], "is not for method.use_dora"),
        (["method.init_lora_weights=pissa"], "takes a part out of the base's weights"),
        (["method.init_lora_weights=eva"], "has PEFT make the adapter anew"),
    ],
)
def test_recipes_that_have_no_such_weights(settings: list[str], said: str) -> None:
    asked = ["model.source=m", "data.train=t", *settings]
    parse_recipe("", asked)
    with pytest.raises(UserError, match=said) as error:
        parse_recipe("", [*asked, "kernels.fp8_base=true"])
    assert "set kernels.fp8_base=false" in str(error.value)


def test_weights_that_are_quantised_already_are_refused() -> None:
    for stored in ({"load_in_4bit": True}, {"load_in_8bit": True}):
        config = LlamaConfig(quantization_config={"quant_method": "bitsandbytes", **stored})
        refuse_quantised("owner/name", config, MethodGroup())
        with pytest.raises(UserError, match=r"set kernels\.fp8_base=false"):
            refuse_quantised("owner/name", config, MethodGroup(), fp8_base=True)
    config = LlamaConfig(quantization_config={"quant_method": "mxfp4"})  # expanded as it is loaded
    refuse_quantised("owner/name", config, MethodGroup(), fp8_base=True)


def test_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    refuse_device(CPU)
    with pytest.raises(UserError, match="needs an NVIDIA GPU, and this machine has mps"):
        refuse_device(torch.device("mps"))
    with (
        patch.object(torch.version, "hip", "7.0"),
        pytest.raises(UserError, match="this machine has one of AMD"),
    ):
        refuse_device(torch.device("cuda"))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "NVIDIA A100")
    for capability in ((8, 9), (9, 0), (12, 0)):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _, c=capability: c)
        refuse_device(torch.device("cuda"))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (8, 0))
    with pytest.raises(UserError, match=r"NVIDIA A100 has 8\.0; set kernels\.fp8_base=false"):
        refuse_device(torch.device("cuda"))


def test_a_card_that_cannot_is_refused_before_the_model_is_fetched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fetched: list[Any] = []
    monkeypatch.setattr(session, "pick_device", lambda: torch.device("cuda"))
    monkeypatch.setattr(session, "resolve_model", lambda *given: fetched.append(given))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "NVIDIA A100")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (8, 0))
    asked = ["model.source=owner/name", "data.train=t", "kernels.fp8_base=true"]
    with pytest.raises(UserError, match=r"NVIDIA A100 has 8\.0"):
        fit(parse_recipe("", asked), Run(tmp_path / "run"), Notes())
    assert fetched == []


def test_a_run_is_near_the_plain_one_and_its_adapter_is_for_the_base_as_it_was(
    tmp_path: Path,
) -> None:
    folder = save_tiny(tmp_path / "tiny")
    rows = [{"instruction": f"say {i}", "output": "files " * (1 + i % 3)} for i in range(16)]
    settings = [
        f"model.source={folder}",
        "model.dtype=float32",
        f"data.train={write_rows(tmp_path / 'rows.jsonl', rows)}",
        "data.max_length=128",
        "method.lora_dropout=0",
        "train.max_steps=6",
        "train.logging_steps=1",
        "train.learning_rate=1e-2",
        "train.report_to=none",
        "evaluate.probe=false",
    ]
    losses, notes = [], Notes()
    for in_8_bits in (False, True):
        run = Run(tmp_path / str(in_8_bits))
        fit(parse_recipe("", [*settings, f"kernels.fp8_base={in_8_bits}"]), run, notes)
        losses.append([line["loss"] for line in read_metrics(run) if "loss" in line])
    assert losses[0][-1] < 0.9 * losses[0][0]
    assert losses[1] == pytest.approx(losses[0], rel=0.02)
    assert losses[1] != losses[0]
    assert any("layers are in 8 bits" in note for note in notes.notes)
    assert any("gains nothing here" in note for note in notes.notes)
    whole = load_adapter(load_model(folder, torch.float32), run.adapter_path)
    plain = AutoModelForCausalLM.from_pretrained(folder)
    merged = whole.merge_and_unload()
    assert {p.dtype for p in merged.parameters()} == {torch.float32}
    assert not torch.equal(
        merged.model.layers[0].mlp.up_proj.weight, plain.model.layers[0].mlp.up_proj.weight
    )


def test_weights_and_scales_are_watched() -> None:
    model = adapted("llama")
    store_in_fp8(model, CPU)
    before = fingerprint(model)
    layer = next(m for m in model.modules() if fp8.is_fp8(m))
    layer.scale[3] *= 2
    layer.numbers.data.view(torch.uint8)[0, 0] ^= 1
    changed = [name for name, value in fingerprint(model).items() if value != before[name]]
    assert len(changed) == 2
    assert any(name.endswith(".scale") for name in changed)
