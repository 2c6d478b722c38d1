"""4-bit weights: what trains through them is what their dequantised weights would give."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from bitsandbytes import functional as bnb
from bitsandbytes.nn import Linear4bit, Linear8bitLt
from families import save_tiny
from helpers import Notes
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    BitsAndBytesConfig,
    LlamaConfig,
    LlamaForCausalLM,
)

from luthier.data.batches import collate
from luthier.data.conversation import Conversation, Origin
from luthier.data.tokens import TokenRow
from luthier.errors import UserError
from luthier.kernels.fast import install
from luthier.kernels.separation import rows_stay_apart
from luthier.models.adapters import attach_adapter
from luthier.models.load import load_config, load_model, quantization, refuse_quantised
from luthier.objectives.supervised import loss_sum
from luthier.plan.simulate import Workload, simulate
from luthier.recipe import KernelsGroup, MethodGroup

_NARROW = {
    "hidden_size": 96,
    "intermediate_size": 128,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
}
METHOD = MethodGroup(name="qlora", lora_dropout=0.0)
METHOD_LORA = MethodGroup(name="lora", lora_dropout=0.0)


def dequantised(model: nn.Module) -> dict[str, Tensor]:
    return {
        name: bnb.dequantize_4bit(module.weight.data, module.weight.quant_state).float()
        for name, module in model.named_modules()
        if isinstance(module, Linear4bit)
    }


def adapter_gradients(model: nn.Module, rows: list[TokenRow]) -> dict[str, Tensor]:
    model.zero_grad()
    loss_sum(model, collate([rows])).backward()
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("double", [True, False])
def test_gradients_through_nf4_are_exact_also_after_an_evaluation(
    double: bool, tmp_path: Path
) -> None:
    folder = save_tiny(tmp_path / "m")
    method = METHOD.model_copy(update={"bnb_4bit_use_double_quant": double})
    config = quantization(method, torch.float32)
    device = torch.device("cpu")
    quantised = load_model(folder, torch.float32, quantization=config, device=device)
    plain = load_model(folder, torch.float32)
    for name, weight in dequantised(quantised).items():
        plain.get_submodule(name).weight.data = weight
    torch.manual_seed(0)
    first = attach_adapter(quantised, method)
    torch.manual_seed(0)
    second = attach_adapter(plain, method)
    for (_, p), (_, q) in zip(
        ((n, p) for n, p in first.named_parameters() if "lora_" in n),
        ((n, p) for n, p in second.named_parameters() if "lora_" in n),
        strict=True,
    ):
        p.data = torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel())) * 0.1
        q.data = p.data.clone()
    rows = [TokenRow(list(range(3, 20)), [False] + [True] * 16, Conversation(Origin("f", 1)))]
    assert rows_stay_apart(first)  # an evaluation without gradients
    ours = adapter_gradients(first.train(), rows)
    reference = adapter_gradients(second.train(), rows)
    assert ours.keys() == reference.keys() != set()
    for name in ours:
        torch.testing.assert_close(ours[name], reference[name], rtol=1e-3, atol=1e-5)


def test_nf4_is_within_the_error_of_its_code(tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / "m")
    config = quantization(METHOD, torch.float32)
    model = load_model(folder, torch.float32, quantization=config, device=torch.device("cpu"))
    original = load_model(folder, torch.float32).state_dict()
    assert not isinstance(model.get_output_embeddings(), Linear4bit)
    weights = dequantised(model)
    assert len(weights) == 14  # seven linear layers in each of two blocks
    for name, weight in weights.items():
        # Half the widest gap of the code (0.152 of a block's largest value; Dettmers et al. 2023,
        # appendix E), and what quantising the constants adds.
        largest = original[f"{name}.weight"].abs().max()
        assert (weight - original[f"{name}.weight"]).abs().max() <= 0.16 * largest


def test_a_width_that_the_4_bit_kernel_gets_wrong_is_refused(tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / "m")
    model = LlamaForCausalLM(LlamaConfig(**{**_NARROW, "vocab_size": 64}))
    model.save_pretrained(folder)
    with pytest.raises(UserError, match=r"96 inputs of model\.layers\.0"):
        load_model(
            folder,
            torch.float32,
            quantization=quantization(METHOD, torch.float32),
            device=torch.device("cpu"),
        )


@pytest.mark.parametrize("kind", ["gptq", "awq", "fp8", "compressed-tensors"])
@pytest.mark.parametrize("method", ["full", "lora", "qlora"])
def test_weights_quantised_for_inference_are_refused(kind: str, method: Any) -> None:
    config = LlamaConfig(quantization_config={"quant_method": kind, "bits": 4})
    with pytest.raises(UserError, match=rf"owner/name are quantised already \({kind}\)") as said:
        refuse_quantised("owner/name", config, MethodGroup(name=method))
    assert "method.name=qlora" in str(said.value)


def test_weights_in_four_bits_are_for_adapters_alone() -> None:
    config = LlamaConfig(quantization_config={"quant_method": "bitsandbytes", "load_in_4bit": True})
    for method in ("lora", "qlora"):
        refuse_quantised("owner/name", config, MethodGroup(name=method))
    with pytest.raises(UserError, match=r"such weights do not train; set method.name=qlora"):
        refuse_quantised("owner/name", config, MethodGroup(name="full"))
    refuse_quantised("owner/name", LlamaConfig(), MethodGroup(name="full"))


@pytest.mark.parametrize(
    "stored", [{"quant_method": "mxfp4"}, {"quant_method": "bitsandbytes", "load_in_8bit": True}]
)
def test_weights_quantised_otherwise_are_for_lora(stored: dict[str, Any]) -> None:
    config = LlamaConfig(quantization_config=stored)
    refuse_quantised("owner/name", config, MethodGroup(name="lora"))
    for method in ("full", "qlora"):
        with pytest.raises(UserError, match=r"set method\.name=lora"):
            refuse_quantised("owner/name", config, MethodGroup(name=method))


def test_mxfp4_is_expanded_as_it_is_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Asked for, since where its kernels are installed Transformers keeps weights that do not train."""
    folder = save_tiny(tmp_path / "m")
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "mxfp4"}
    (folder / "config.json").write_text(json.dumps(config))
    given: dict[str, Any] = {}
    monkeypatch.setattr(
        AutoModelForCausalLM, "from_pretrained", lambda *_, **more: given.update(more)
    )
    load_model(folder, torch.float32)
    assert given["quantization_config"].dequantize


def test_a_base_that_lies_in_eight_bits_trains_an_adapter(tmp_path: Path) -> None:
    """Through bitsandbytes' own product, whose gradient is that of the weights in 8 bits."""
    folder, device = save_tiny(tmp_path / "m"), torch.device("cpu")
    eight = BitsAndBytesConfig(load_in_8bit=True)
    made = LlamaForCausalLM.from_pretrained(folder, quantization_config=eight, device_map="cpu")
    made.save_pretrained(tmp_path / "eight")
    model = load_model(tmp_path / "eight", torch.float32, device=device)
    plain = load_model(folder, torch.float32)
    for name, layer in model.named_modules():
        if isinstance(layer, Linear8bitLt):
            weight = layer.weight.CB.float() * layer.weight.SCB[:, None] / 127
            plain.get_submodule(name).weight.data = weight
    rows = [TokenRow(list(range(3, 20)), [False] + [True] * 16, Conversation(Origin("f", 1)))]
    found = []
    for each in (model, plain):
        torch.manual_seed(0)
        adapted = attach_adapter(each, METHOD_LORA)
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                nn.init.normal_(parameter, std=0.05)
        found.append(adapter_gradients(adapted.train(), rows))
    for name in found[1]:
        # Weights and products are rounded to 8 and 16 bits in different places.
        difference = (found[0][name] - found[1][name]).norm()
        assert difference < 0.05 * found[1][name].norm(), name


def test_a_base_that_lies_in_four_bits_is_what_qlora_makes_of_it(tmp_path: Path) -> None:
    """Loaded for either method, and planned as what it is; its own settings stay, which is said."""
    folder, device, notes = save_tiny(tmp_path / "m"), torch.device("cpu"), Notes()
    config = quantization(METHOD, torch.float32)
    made = load_model(folder, torch.float32, quantization=config, device=device)
    made.save_pretrained(tmp_path / "four")
    other = METHOD.model_copy(update={"bnb_4bit_use_double_quant": False})
    rows = [TokenRow(list(range(3, 20)), [False] + [True] * 16, Conversation(Origin("f", 1)))]
    found = []
    for where, method in (
        (folder, METHOD),
        ("four", METHOD),
        ("four", METHOD_LORA),
        ("four", other),
    ):
        model = load_model(
            tmp_path / where,
            torch.float32,
            quantization=quantization(method, torch.float32),
            device=device,
            on_event=notes,
        )
        layers = [m for m in model.modules() if isinstance(m, Linear4bit)]
        assert len(layers) == 14
        assert not any(layer.support_avx512bf16_for_cpu for layer in layers)
        torch.manual_seed(0)
        trained = attach_adapter(model, method)
        install(trained, KernelsGroup())
        found.append(adapter_gradients(trained.train(), rows))
    assert all(torch.equal(found[0][n], each[n]) for each in found[1:] for n in found[0])
    assert notes.notes == [
        "the weights are in 4 bits already, and stay as they are: "
        "method.bnb_4bit_use_double_quant is True, not False"
    ]
    work = Workload([17], 16, torch.float32, "sgd")
    plain, four = (load_config(tmp_path / where) for where in ("m", "four"))
    planned = {simulate(four, method, work).weights for method in (METHOD, METHOD_LORA, other)}
    assert planned == {simulate(plain, METHOD, work).weights}
