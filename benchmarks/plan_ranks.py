"""Two processes on this machine: what the plan says of DDP, ZeRO-2 and FSDP2 by gloo, beside what happened.

    python benchmarks/plan_ranks.py [--model smollm2-135m] [--method lora] [--nproc 2] [--rounds 7]

Bytes are counted, not timed: every collective of a step as it is called, at what a ring sends for it. Times are
medians of rounds, each of which measures all in turn: a large all-reduce and a small one (the bandwidth and the
cost of a message), a step in as many processes that do not talk (computing on shared cores), and the step with
DDP. So what else the machine does falls on each alike. The plan adds its traffic at the measured bandwidth to
the computing; the least step hides all of it.
"""

import argparse
import os
import statistics
import time
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from rich.console import Console
from rich.table import Table
from torch.distributed.algorithms.ddp_comm_hooks import default_hooks

from luthier.train.sharded import shard

_PORT = "29571"
_MIB = 2**20
_LARGE = 64 * _MIB  # of the all-reduce that gives the bandwidth


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


class Sent:
    """Counts the bytes that a ring of ``size`` sends for what DDP and ``fully_shard`` ask of it."""

    def __init__(self, size: int) -> None:
        self.share, self.bytes = (size - 1) / size, 0.0
        self._gather, self._reduce = dist.all_gather_single, dist.reduce_scatter_single
        dist.all_gather_single, dist.reduce_scatter_single = self.gather, self.reduce

    def gather(self, *args: Any, **named: Any) -> Any:
        self._add(args, named)
        return self._gather(*args, **named)

    def reduce(self, *args: Any, **named: Any) -> Any:
        self._add(args, named)
        return self._reduce(*args, **named)

    def _add(self, args: tuple[Any, ...], named: dict[str, Any]) -> None:
        """Of what goes in and comes out, one is whole and one a part."""
        tensors = [each for each in (*args, *named.values()) if isinstance(each, torch.Tensor)]
        self.bytes += self.share * max(tensor.nbytes for tensor in tensors)

    def hook(self, _state: None, bucket: dist.GradBucket) -> torch.futures.Future[torch.Tensor]:
        """Of DDP: an all-reduce, which is a reduction to parts and a gathering."""
        self.bytes += 2 * self.share * bucket.buffer().nbytes
        return default_hooks.allreduce_hook(dist.group.WORLD, bucket)


class Step:
    """Forward, backward and AdamW on ``ids``."""

    def __init__(self, called: Any, ids: torch.Tensor) -> None:
        trained = [p for p in called.parameters() if p.requires_grad]
        self.called, self.ids = called, ids
        self.optimizer = torch.optim.AdamW(trained, lr=1e-6, fused=True)

    def __call__(self) -> None:
        self.called(input_ids=self.ids, labels=self.ids).loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()


def worker(rank: int, asked: argparse.Namespace, results: Any) -> None:
    torch.set_num_threads(asked.threads)
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": _PORT}
    dist.init_process_group(
        "gloo", rank=rank, world_size=asked.nproc, timeout=timedelta(minutes=10)
    )
    try:
        model = prepared(asked.model, asked.method, asked.tokens)
        model.train()
        ids = torch.randint(model.config.vocab_size, (1, asked.tokens))
        small, large = torch.zeros(1), torch.zeros(_LARGE // 4)
        ddp = torch.nn.parallel.DistributedDataParallel(model, gradient_as_bucket_view=True)
        calls = {
            "message": lambda: dist.all_reduce(small),
            "large": lambda: dist.all_reduce(large),
            "alone": Step(model, ids),
            "ddp": Step(ddp, ids),
        }
        times: dict[str, list[float]] = {name: [] for name in calls}
        for _ in range(asked.rounds + 1):
            for name, call in calls.items():
                dist.barrier()
                start = time.perf_counter()
                call()
                times[name].append(time.perf_counter() - start)
        found = {name: statistics.median(each[1:]) for name, each in times.items()}
        counting, sent = Sent(asked.nproc), {}
        ddp.register_comm_hook(None, counting.hook)
        sent["ddp"] = counted(calls["ddp"], counting)
        for way, weights in (("zero2", False), ("fsdp2", True)):
            model = prepared(asked.model, asked.method, asked.tokens)
            model.train()
            shard(model, torch.device("cpu"), asked.nproc, weights=weights)
            sent[way] = counted(Step(model, ids), counting)
        if rank == 0:
            results.put((found, sent))
    finally:
        dist.destroy_process_group()


def counted(step: Step, counting: Sent) -> float:
    """Bytes of one step."""
    counting.bytes = 0.0
    step()
    return counting.bytes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--method", default="lora", choices=["full", "lora"])
    parser.add_argument("--nproc", type=int, default=2)
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    asked = parser.parse_args()
    results = mp.get_context("spawn").SimpleQueue()
    mp.spawn(worker, (asked, results), nprocs=asked.nproc)
    measured, sent = results.get()

    from luthier.plan.from_recipe import job_of_shape
    from luthier.plan.machine import this_machine
    from luthier.plan.ranks import Ranks, Strategy, plan_ranks
    from luthier.recipe import model_recipe

    message = measured["message"] / (2 * (asked.nproc - 1))
    large = measured["large"] - measured["message"]
    link = 2 * (asked.nproc - 1) / asked.nproc * _LARGE / large / 1e9
    recipe = model_recipe(
        asked.model,
        method={"name": asked.method},
        data={"max_length": asked.tokens},
        train={"per_device_train_batch_size": 1, "gradient_accumulation_steps": 1},
    )
    job = job_of_shape(recipe, torch.float32, 8, on_gpu=False)
    ranks = Ranks(asked.nproc, 1, link, message=message)
    alone = measured["alone"]
    ways: tuple[Strategy, ...] = ("ddp", "zero2", "fsdp2")
    planned = {
        each.strategy: each
        for each in plan_ranks(
            job, job.steps_of_both(), (alone, alone), ranks, this_machine(), 0, ways
        )
    }
    console = Console()
    console.print(f"gloo: {link:.2f} GB/s, {message * 1e6:.0f} µs a message")
    table = Table(
        title=f"{asked.model}, {asked.method}, {asked.tokens} tokens, {asked.nproc} ranks"
    )
    for column in ("", "planned", "measured", "error"):
        table.add_column(column, justify="right" if column else "left")
    for way in ways:
        bytes_planned = planned[way].traffic.bytes
        table.add_row(
            f"{way}: sent a step, MiB",
            f"{bytes_planned / _MIB:.2f}",
            f"{sent[way] / _MIB:.2f}",
            f"{bytes_planned / sent[way] - 1:+.1%}",
        )
    ddp = planned["ddp"]
    assert ddp.step is not None
    low, high = ddp.step
    took = measured["ddp"]
    inside = "inside" if low <= took <= high else f"{min(took - low, took - high, key=abs):+.3f} s"
    table.add_row("computing, s", "", f"{alone:.3f}", "")
    table.add_row("ddp: step, s", f"{low:.3f} – {high:.3f}", f"{took:.3f}", inside)
    console.print(table)


if __name__ == "__main__":
    main()
