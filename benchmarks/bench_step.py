"""Step time against Transformers + PEFT on the same tokens without padding, and the share of the limit.

    python benchmarks/bench_step.py [--methods lora,full,qlora] [--dtypes float32,bfloat16] [--repeats 3]

Both sides get the same packed batches (real rows of alpaca_en_demo, end to end, with positions that
start anew) and take turns, batch by batch; the median counts. The peer is the model as Transformers
and PEFT make it, with its own block-diagonal mask and its own loss. Losses of both are printed.

The limit: every matrix product of our step is timed by itself, in its shape and dtype. Counted
operations of the whole step (products and attention) over its time, over the rate of those products,
is the share of the limit.
"""

import argparse
import statistics
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoModelForCausalLM, get_scheduler

from luthier.data.batches import Batch, collate
from luthier.data.prepare import read_for_evaluation, tokenise
from luthier.data.tokens import Tokenizer
from luthier.kernels.fast import install, start_triton
from luthier.models.adapters import attach_adapter
from luthier.models.dtype import pick_device
from luthier.models.load import load_model, load_tokenizer, quantization
from luthier.models.pull import pull
from luthier.objectives.sft import SFT
from luthier.plan.flops import CountWork
from luthier.recipe import DataGroup, KernelsGroup, MethodGroup
from luthier.runtime import keep_freed_memory
from luthier.train.loop import Learner, train_step

DATA = Path(__file__).parents[2] / "shared" / "data" / "alpaca_en_demo.jsonl"
PRODUCTS = {"aten::mm", "aten::addmm", "aten::addmm_", "aten::mm.out"}


@dataclass
class Side:
    """Who takes part: ``take`` a training step on a batch and return its loss."""

    take: Callable[[Batch], float]


def our_side(model: Any, optimizer: torch.optim.Optimizer, dtype: torch.dtype) -> Side:
    """The step of `luthier train`."""
    objective = SFT(head=install(model, KernelsGroup()).head)
    if (trouble := start_triton(model)) is not None:
        print(f"without Triton: {trouble}", file=sys.stderr)
    device = next(model.parameters()).device
    schedule = get_scheduler("constant", optimizer)
    learner = Learner(model, objective, optimizer, schedule, device, dtype, max_grad_norm=1.0)
    return Side(lambda batch: train_step(learner, [batch]).loss)


def peers_side(
    model: Any,
    optimizer: torch.optim.Optimizer,
    dtype: torch.dtype,
    loss_of: Callable[[Batch], Tensor],
) -> Side:
    """A step as most scripts write it."""
    trained = [p for p in model.parameters() if p.requires_grad]

    def take(batch: Batch) -> float:
        with torch.autocast(batch.input_ids.device.type, dtype, enabled=dtype != torch.float32):
            loss = loss_of(batch)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        return loss.item()

    return Side(take)


def build(method: MethodGroup, dtype: torch.dtype, device: torch.device, fast: bool) -> Side:
    folder = pull("smollm2-135m").folder
    stored = torch.float32 if method.name == "full" else dtype
    if fast or method.name == "qlora":
        model: Any = load_model(
            folder, stored, quantization=quantization(method, dtype), device=device
        )
    else:
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=stored).to(device)
    model.config.use_cache = False
    if method.name != "full":
        model = attach_adapter(model, method)
    model.train()
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-5, fused=True)
    if fast:
        return our_side(model, optimizer, dtype)

    def theirs(batch: Batch) -> Tensor:
        loss: Tensor = model(
            input_ids=batch.input_ids, position_ids=batch.position_ids, labels=batch.labels
        ).loss
        return loss

    return peers_side(model, optimizer, dtype, theirs)


def step(side: Side, batch: Batch) -> tuple[float, float]:
    """Seconds of a step, and its loss."""
    device = batch.input_ids.device
    synchronise(device)
    started = time.perf_counter()
    loss = side.take(batch)
    synchronise(device)
    return time.perf_counter() - started, loss


def synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


class Products(TorchDispatchMode):
    """Which matrix products run: shapes, dtype, whether an operand is transposed."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: Counter[Any] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.name() in PRODUCTS:
            left, right = args[-2:] if "addmm" in func.name() else args[:2]
            key = (left.shape, right.shape, left.dtype)
            self.seen[*key, left.is_contiguous(), right.is_contiguous()] += 1
        return func(*args, **(kwargs or {}))


def limit(seen: Counter[Any], device: torch.device) -> tuple[float, float]:
    """Seconds that all products take by themselves, and their floating-point operations."""
    seconds = flops = 0.0
    for (left, right, dtype, plain_left, plain_right), count in seen.items():
        a = operand(left, dtype, plain_left, device)
        b = operand(right, dtype, plain_right, device)
        times = []
        for _ in range(6):
            synchronise(device)
            started = time.perf_counter()
            a @ b
            synchronise(device)
            times.append(time.perf_counter() - started)
        seconds += count * statistics.median(times[1:])
        flops += count * 2 * left[0] * left[1] * right[1]
    return seconds, flops


def operand(shape: Any, dtype: torch.dtype, plain: bool, device: torch.device) -> Tensor:
    if plain:
        return torch.randn(shape, device=device).to(dtype)
    return torch.randn(shape[::-1], device=device).to(dtype).t()


def batches_of(tokens: int, count: int, device: torch.device) -> list[Batch]:
    """Rows end to end up to ``tokens``."""
    folder = pull("smollm2-135m").folder
    group = DataGroup(train=str(DATA), max_length=512, on_too_long="truncate", max_rows=400)
    encoder = Tokenizer(load_tokenizer(folder), "completions")
    rows = iter(tokenise(read_for_evaluation(str(DATA), group), group, encoder))
    batches = []
    for _ in range(count):
        batch: list[Any] = []
        while sum(map(len, batch)) < tokens:
            batch.append(next(rows))
        batches.append(collate([batch]).to(device))
    return batches


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--methods", default="lora,full,qlora")
    parser.add_argument("--dtypes", default="float32,bfloat16")
    parser.add_argument("--tokens", type=int, default=900, help="tokens of a batch, about")
    parser.add_argument("--batches", type=int, default=3)
    parser.add_argument("--repeats", type=int, default=2)
    chosen = parser.parse_args()
    device = pick_device()
    if device.type == "cpu":
        keep_freed_memory()
    batches = batches_of(chosen.tokens, chosen.batches, device)
    tokens = sum(batch.tokens for batch in batches)
    console = Console(width=120)
    console.print(
        f"{torch.get_num_threads()} threads, torch {torch.__version__}, {device.type}; SmolLM2-135M, "
        f"{len(batches)} batches of {tokens // len(batches)} tokens, no padding, median of "
        f"{chosen.repeats} after one pass to warm up"
    )
    table = Table(
        *("method", "dtype", "tok/s", "peer tok/s", "ratio", "GFLOP/s", "products'", "share"),
        *("loss", "peer's"),
    )
    for name in chosen.methods.split(","):
        for kind in chosen.dtypes.split(","):
            dtype = getattr(torch, kind)
            method = MethodGroup(name=name, lora_dropout=0.05)
            sides = [build(method, dtype, device, fast) for fast in (True, False)]
            for batch in batches:
                for side in sides:
                    step(side, batch)
            times: dict[tuple[int, int], list[float]] = {}
            losses: list[list[float]] = [[], []]
            for _ in range(chosen.repeats):
                for place, batch in enumerate(batches):
                    for who, side in enumerate(sides):
                        took, loss = step(side, batch)
                        times.setdefault((who, place), []).append(took)
                        losses[who].append(loss)
            totals = [
                sum(statistics.median(times[who, place]) for place in range(len(batches)))
                for who in range(2)
            ]
            counted = CountWork()
            with counted:
                step(sides[0], batches[0])
            products = Products()
            with products:
                step(sides[0], batches[0])
            seconds, flops = limit(products.seen, device)
            achieved = counted.flops / statistics.median(times[0, 0])
            table.add_row(
                name,
                kind,
                *(f"{tokens / total:.0f}" for total in totals),
                f"{totals[1] / totals[0]:.2f}×",
                f"{achieved / 1e9:.0f}",
                f"{flops / seconds / 1e9:.0f}",
                f"{achieved / (flops / seconds):.0%}",
                *(f"{statistics.mean(found):.4f}" for found in losses),
            )
            del sides
    console.print(table)


if __name__ == "__main__":
    main()
