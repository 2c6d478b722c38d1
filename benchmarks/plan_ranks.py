"""Two processes on this machine: what the plan says of DDP by gloo, beside what was measured.

    python benchmarks/plan_ranks.py [--model smollm2-135m] [--method lora] [--nproc 2] [--steps 6]

First the bandwidth and the cost of a message are measured: all-reduces of two sizes by gloo. Then a
step of the recipe's method on random rows is timed alone in as many processes at once that do not
talk, which is what computing costs on shared cores, and then with PyTorch's DistributedDataParallel.
The plan adds its traffic at the measured bandwidth to the computing; the least step hides all of it.
Peaks are those of resident memory (VmHWM).
"""

import argparse
import os
import statistics
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from rich.console import Console
from rich.table import Table

_PORT = "29571"
_MIB = 2**20


def prepared(model: str, method: str, tokens: int) -> Any:
    """The training model on the CPU."""
    from luthier.models.source import resolve
    from luthier.recipe import model_recipe
    from luthier.train.setup import build_model, choose_setup

    recipe = model_recipe(
        model,
        model={"dtype": "float32"},
        method={"name": method},
        data={"max_length": tokens},
        train={"per_device_train_batch_size": 1, "gradient_accumulation_steps": 1},
    )
    return build_model(recipe, resolve(model, None), choose_setup(recipe), None)


def worker(rank: int, asked: argparse.Namespace, results: Any) -> None:
    torch.set_num_threads(asked.threads)
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": _PORT}
    dist.init_process_group(
        "gloo", rank=rank, world_size=asked.nproc, timeout=timedelta(minutes=10)
    )
    try:
        found = {"reduce": {size: reduced(size) for size in (4, 64 * _MIB)}}
        model = prepared(asked.model, asked.method, asked.tokens)
        model.train()
        ids = torch.randint(model.config.vocab_size, (1, asked.tokens))
        found["alone"] = timed(model, model, ids, asked.steps)
        wrapped = torch.nn.parallel.DistributedDataParallel(model, gradient_as_bucket_view=True)
        found["ddp"] = timed(wrapped, model, ids, asked.steps)
        found["peak"] = peak_bytes()
        if rank == 0:
            results.put(found)
    finally:
        dist.destroy_process_group()


def reduced(size: int) -> float:
    """Seconds of an all-reduce of ``size`` bytes, the median of nine."""
    tensor = torch.zeros(size // 4)
    times = []
    for _ in range(9):
        dist.barrier()
        start = time.perf_counter()
        dist.all_reduce(tensor)
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def timed(called: Any, model: Any, ids: torch.Tensor, steps: int) -> float:
    """Seconds of a step: forward, backward and AdamW; the median after two to warm up."""
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-6, fused=True)
    times = []
    for _ in range(steps + 2):
        dist.barrier()
        start = time.perf_counter()
        called(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        times.append(time.perf_counter() - start)
    return statistics.median(times[2:])


def peak_bytes() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--method", default="lora", choices=["full", "lora"])
    parser.add_argument("--nproc", type=int, default=2)
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--threads", type=int, default=1)
    asked = parser.parse_args()
    results = mp.get_context("spawn").SimpleQueue()
    mp.spawn(worker, (asked, results), nprocs=asked.nproc)
    measured = results.get()

    from luthier.plan.from_recipe import job_of_shape
    from luthier.plan.machine import this_machine
    from luthier.plan.ranks import Ranks, plan_ranks
    from luthier.recipe import model_recipe

    message = measured["reduce"][4] / (2 * (asked.nproc - 1))
    large = measured["reduce"][64 * _MIB] - measured["reduce"][4]
    link = 2 * (asked.nproc - 1) / asked.nproc * 64 * _MIB / large / 1e9
    recipe = model_recipe(
        asked.model,
        method={"name": asked.method},
        data={"max_length": asked.tokens},
        train={"per_device_train_batch_size": 1, "gradient_accumulation_steps": 1},
    )
    job = job_of_shape(recipe, torch.float32, 8, on_gpu=False)
    ranks = Ranks(asked.nproc, 1, link, message=message)
    alone = measured["alone"]
    (planned,) = plan_ranks(
        job, job.steps_of_both(), (alone, alone), ranks, this_machine(), 0, ("ddp",)
    )
    console = Console()
    console.print(f"gloo: {link:.2f} GB/s, {message * 1e6:.0f} µs a message")
    table = Table(
        title=f"{asked.model}, {asked.method}, {asked.tokens} tokens, {asked.nproc} ranks"
    )
    for column in ("", "planned", "measured"):
        table.add_column(column, justify="right" if column else "left")
    assert planned.step is not None
    assert planned.sending is not None
    low, high = planned.step
    table.add_row("computing, s", "", f"{alone:.3f}")
    table.add_row("sent a step, MiB", f"{planned.traffic.bytes / _MIB:.1f}", "")
    table.add_row("sending, s", f"{planned.sending:.3f}", f"{measured['ddp'] - alone:.3f}")
    table.add_row("step, s", f"{low:.3f} – {high:.3f}", f"{measured['ddp']:.3f}")
    table.add_row(
        "peak of a rank, MiB",
        f"{planned.peak / _MIB:,.0f} in tensors",
        f"{measured['peak'] / _MIB:,.0f} resident",
    )
    console.print(table)


if __name__ == "__main__":
    main()
