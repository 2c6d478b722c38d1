"""Speed and memory of a LoRA step against the length of a row and the size of the vocabulary.

    python benchmarks/bench_scaling.py [--longest 8192]

One row of random tokens, half of them supervised, through SmolLM2-135M; then 1,024 tokens through a
random model of four layers with vocabularies of different sizes. Memory is that of all tensors alive
at once beyond weights and optimiser, counted operation by operation; with it the logits that a
loss over all positions would hold (float32, with their gradient).
"""

import argparse
import time
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from transformers import AutoModelForCausalLM, LlamaConfig

from luthier.data.batches import Batch
from luthier.kernels.fast import install
from luthier.models.adapters import attach_adapter
from luthier.models.dtype import pick_device, pick_dtype
from luthier.models.load import load_model
from luthier.models.pull import pull
from luthier.objectives.supervised import loss_sum
from luthier.plan.live import LiveStorage
from luthier.recipe import KernelsGroup, MethodGroup
from luthier.runtime import keep_freed_memory


def row(length: int, vocabulary: int, device: torch.device) -> Batch:
    tokens = torch.randint(vocabulary, (1, length))
    batch = Batch(
        input_ids=tokens,
        position_ids=torch.arange(length)[None],
        labels=tokens,
        predicts=torch.arange(length // 2, length - 1),
        row_lengths=(length,),
    )
    return batch.to(device)


def step(model: Any, head: Any, batch: Batch, dtype: torch.dtype) -> float:
    device = batch.input_ids.device
    started = time.perf_counter()
    with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
        loss = loss_sum(model, batch, head=head) / batch.supervised
    loss.backward()
    model.zero_grad()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - started


def figures(base: Any, length: int, dtype: torch.dtype, device: torch.device) -> tuple[float, int]:
    """Seconds of a step, and bytes alive at its peak beyond what stays."""
    base.config.use_cache = False
    model = attach_adapter(base, MethodGroup()).train()
    head = install(model, KernelsGroup()).head
    batch = row(length, base.config.vocab_size, device)
    step(model, head, batch, dtype)
    seconds = step(model, head, batch, dtype)
    with LiveStorage() as live:
        live.add([*model.parameters(), *model.buffers()])
        before = live.live
        live.restart_peak()
        step(model, head, batch, dtype)
    return seconds, live.peak - before


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--longest", type=int, default=8192)
    longest = parser.parse_args().longest
    device = pick_device()
    dtype = pick_dtype(device)
    if device.type == "cpu":
        keep_freed_memory()
    console = Console(width=100)
    console.print(f"LoRA r=16, {str(dtype).removeprefix('torch.')} on {device.type}")
    table = Table("row", "tok/s", "MiB", "KiB a token", "MiB of all logits")
    length = 256
    while length <= longest:
        base = load_model(pull("smollm2-135m").folder, dtype, device=device)
        seconds, memory = figures(base, length, dtype, device)
        table.add_row(
            *(f"{length:,}", f"{length / seconds:.0f}", f"{memory / 2**20:,.0f}"),
            *(f"{memory / 2**10 / length:.0f}", f"{8 * length * 49152 / 2**20:,.0f}"),
        )
        length *= 2
    console.print(table)
    table = Table("vocabulary", "tok/s", "MiB", "MiB of all logits")
    for vocabulary in (32_768, 65_536, 131_072, 262_144):
        config = LlamaConfig(
            vocab_size=vocabulary,
            hidden_size=576,
            intermediate_size=1536,
            num_hidden_layers=4,
            num_attention_heads=9,
            num_key_value_heads=3,
        )
        base = AutoModelForCausalLM.from_config(config, dtype=dtype).to(device)
        seconds, memory = figures(base, 1024, dtype, device)
        table.add_row(
            *(f"{vocabulary:,}", f"{1024 / seconds:.0f}", f"{memory / 2**20:,.0f}"),
            f"{8 * 1024 * vocabulary / 2**20:,.0f}",
        )
    console.print(table)


if __name__ == "__main__":
    main()
