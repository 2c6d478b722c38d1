"""The classic memory tables, computed, beside the figures that are commonly published."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from luthier.plan.from_recipe import job_of_shape
from luthier.plan.machine import CUDA_FRAMEWORK
from luthier.recipe import model_recipe

ASSUMPTIONS = (
    "Computed: one training step of luthier, simulated with fake tensors, and "
    f"{CUDA_FRAMEWORK / 2**30:.1f} GiB for CUDA's context. "
    "'least' is one row of 512 tokens with activations recomputed, 'usual' four rows of 1,024 "
    "tokens without; all tokens supervised. Arithmetic and frozen weights are in bfloat16, trainable "
    "weights in float32 (16 bytes per parameter with gradient and AdamW's two moments); adapters r=16 "
    "on all linear layers; QLoRA: NF4 with double quantisation and 8-bit optimiser state."
)


@dataclass(frozen=True)
class Published:
    """A figure in common use, in GB, and why it misleads."""

    gigabytes: float
    source: str
    flaw: str


_RULE = "LLaMA-Factory's table"
_ZERO = "16 bytes per parameter (ZeRO, section 3.1)"
_FULL = "right for weights, gradients and states; says nothing of batch and length"
_LORA = "2 bytes per parameter are the frozen weights alone: no adapter states, activations, logits"
_QLORA = "half a byte per parameter is the 4-bit code alone: embeddings and head stay in 16 bits"
_STATES = "states only: the activations and the logits of 50,257 words come on top"

_TABLE: tuple[tuple[str, str, Published], ...] = (
    ("llama-2-7b", "full", Published(120, _RULE, _FULL)),
    ("llama-2-7b", "lora", Published(16, _RULE, _LORA)),
    ("llama-2-7b", "qlora", Published(6, _RULE, _QLORA)),
    ("llama-2-13b", "full", Published(240, _RULE, _FULL)),
    ("llama-2-13b", "lora", Published(32, _RULE, _LORA)),
    ("llama-2-13b", "qlora", Published(12, _RULE, _QLORA)),
    ("llama-2-70b", "full", Published(1200, _RULE, _FULL)),
    ("llama-2-70b", "lora", Published(160, _RULE, _LORA)),
    ("llama-2-70b", "qlora", Published(48, _RULE, _QLORA)),
    ("gpt2", "full", Published(2.0, _ZERO, _STATES)),
    ("gpt2-xl", "full", Published(24, _ZERO, _STATES)),
)


@dataclass(frozen=True)
class TableRow:
    """Computed figures in GiB; ``verdict`` compares the published one with them."""

    model: str
    method: str
    least: float
    usual: float
    published: float
    source: str
    verdict: str


def classic_tables() -> Iterator[TableRow]:
    """Each row of the tables, as soon as it is computed."""
    for model, method, published in _TABLE:
        least = _gibibytes(model, method, rows=1, length=512, recompute=True)
        usual = _gibibytes(model, method, rows=4, length=1024, recompute=False)
        yield TableRow(
            model,
            method,
            least,
            usual,
            published.gigabytes,
            published.source,
            _verdict(published, least, usual),
        )


def _gibibytes(model: str, method: str, rows: int, length: int, recompute: bool) -> float:
    recipe = model_recipe(
        model,
        method={"name": method},
        data={"max_length": length},
        train={"per_device_train_batch_size": rows, "gradient_checkpointing": recompute},
    )
    job = job_of_shape(recipe, torch.bfloat16, rows, on_gpu=True)
    return (job.step(job.largest).peak + CUDA_FRAMEWORK) / 2**30


def _verdict(published: Published, least: float, usual: float) -> str:
    if published.gigabytes < least * 0.95:
        return f"too low by {1 - published.gigabytes / least:.0%} or more: {published.flaw}"
    if published.gigabytes > usual * 1.05:
        return f"too high by {published.gigabytes / usual - 1:.0%} or more"
    return f"in the range, by {usual / least:.1f} times from least to usual: {published.flaw}"
