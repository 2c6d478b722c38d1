"""Bases whose weights are quantised already: what is planned against what is loaded, and lies in the files."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from families import make_model
from helpers import Notes
from safetensors import safe_open
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, LlamaConfig, PreTrainedConfig

from luthier.errors import UserError
from luthier.models.load import load_config, load_model
from luthier.plan.capacity import changes_to_fit
from luthier.plan.catalogues import Accelerator
from luthier.plan.fake import storages
from luthier.plan.from_recipe import job_of_shape
from luthier.plan.job import Job
from luthier.plan.planning import find_target, plan_jobs
from luthier.plan.simulate import Workload, simulate
from luthier.plan.watch import Watch
from luthier.recipe import MethodGroup, model_recipe

LORA = MethodGroup(name="lora", lora_dropout=0.0)
KINDS = {
    "8 bits": {"load_in_8bit": True},
    "8 bits, some not": {"load_in_8bit": True, "llm_int8_skip_modules": ["lm_head", "down_proj"]},
    "nf4, double": {
        "load_in_4bit": True,
        "bnb_4bit_quant_type": "nf4",
        "bnb_4bit_use_double_quant": True,
    },
    "fp4": {"load_in_4bit": True},
}


def saved(folder: Path, family: str, kind: str) -> Path:
    make_model(family, 96).save_pretrained(folder / "plain")
    model = AutoModelForCausalLM.from_pretrained(
        folder / "plain",
        dtype=torch.bfloat16,
        quantization_config=BitsAndBytesConfig(**KINDS[kind]),
        device_map="cpu",
    )
    model.save_pretrained(folder / "quantised")
    return folder / "quantised"


def in_the_files(folder: Path) -> int:
    """Bytes of all tensors, but for the descriptions that bitsandbytes writes beside them."""
    total = 0
    for path in folder.glob("*.safetensors"):
        with safe_open(path, "pt") as file:
            names = [n for n in file.keys() if "bitsandbytes__" not in n and "_format" not in n]  # noqa: SIM118
            total += sum(file.get_tensor(name).nbytes for name in names)
    return total


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", ["llama", "gpt2", "qwen2"])
def test_the_planned_base_is_what_lies_in_the_files(family: str, kind: str, tmp_path: Path) -> None:
    folder = saved(tmp_path, family, kind)
    config = load_config(folder)
    work = Workload([24, 40], 60, torch.bfloat16, "adamw_torch_fused")
    step = simulate(config, LORA, work)
    loaded = load_model(folder, torch.bfloat16, device=torch.device("cpu"))
    base = step.weights - step.adapter
    held = {t.untyped_storage()._cdata: t.untyped_storage().nbytes() for t in storages(loaded)}
    assert base == sum(held.values())
    # Angles of rotation are computed, not stored; an offset of each layer is in its description.
    beside = sum(b.nbytes for b in loaded.buffers()) + 4 * 7 * config.num_hidden_layers
    assert 0 <= base - in_the_files(folder) <= beside


@pytest.mark.parametrize("kind", ["8 bits", "nf4, double"])
def test_a_step_on_it(kind: str, tmp_path: Path) -> None:
    """On a processor, and on a GPU as it is watched there."""
    config, plain = load_config(saved(tmp_path, "llama", kind)), make_model("llama", 96).config
    for recomputes in (False, True):
        work = Workload([240, 400], 600, torch.bfloat16, "adamw_torch_fused", recomputes)
        planned = simulate(config, LORA, replace(work, on_gpu=True))
        seen = simulate(config, LORA, work, Watch(work.lengths))
        assert planned.peak == pytest.approx(seen.peak, rel=0.03)
        # The same products as in 16 bits.
        on_16_bits = simulate(plain, LORA, replace(work, on_gpu=True))
        assert planned.flops == pytest.approx(on_16_bits.flops, rel=0.01)
        assert planned.parameters == on_16_bits.parameters
        here = simulate(config, LORA, work)
        assert here.flops == pytest.approx(simulate(plain, LORA, work).flops, rel=0.01)


def test_each_number_is_a_byte(tmp_path: Path) -> None:
    """Of Llama's layers: a byte a weight and four a row, where the plain model has two bytes a weight."""
    plain = LlamaConfig(vocab_size=96, hidden_size=64, intermediate_size=128, num_hidden_layers=2)
    eight = LlamaConfig(
        **{**plain.to_dict(), "quantization_config": {"quant_method": "bitsandbytes", **KINDS["8 bits"]}}
    )  # fmt: skip
    work = Workload([24], 23, torch.bfloat16, "adamw_torch_fused")
    two, one = (simulate(config, LORA, work) for config in (plain, eight))
    weights, rows = 2 * (4 * 64 * 64 + 3 * 64 * 128), 2 * (4 * 64 + 2 * 128 + 64)
    assert two.weights - two.adapter - (one.weights - one.adapter) == weights - 4 * rows


def jobs_of(folder: Path, stored: dict[str, Any], *methods: Any) -> list[Job]:
    config: PreTrainedConfig = make_model("llama", 96).config
    config.quantization_config = stored
    config.save_pretrained(folder)
    recipe = model_recipe(str(folder), method={"name": "lora"}, data={"max_length": 64})
    job = job_of_shape(recipe, torch.bfloat16, 1, on_gpu=True)
    return [job.with_method(name) for name in methods]


@pytest.mark.parametrize("kind", ["gptq", "awq", "fp8"])
def test_what_is_not_trained_on_is_not_planned(kind: str, tmp_path: Path) -> None:
    jobs = jobs_of(tmp_path, {"quant_method": kind, "bits": 8}, "full", "lora")
    with pytest.raises(UserError, match=rf"quantised already \({kind}\), which is for inference"):
        plan_jobs(jobs, find_target("h100"))


def test_methods_that_do_not_train_on_it_are_left_out(tmp_path: Path) -> None:
    notes = Notes()
    jobs = jobs_of(
        tmp_path, {"quant_method": "bitsandbytes", **KINDS["8 bits"]}, "full", "lora", "qlora"
    )
    planned = plan_jobs(jobs, find_target("h100"), on_event=notes, capacity=False)
    assert [plan.method for plan in planned.plans] == ["lora"]
    assert [text.split(":")[0] for text in notes.warnings] == [
        "full is left out",
        "qlora is left out",
    ]
    tried = changes_to_fit(jobs[1], Accelerator("card", 0.81))
    assert not any("qlora" in change.what for change in tried)
