"""What `bench_gpu.py` looks at besides speed: gradients, stalls, a trace, and a run that is killed.

    python benchmarks/gpu_checks.py [--device cuda] [--only gradients,dropout,lengths,resume,trace] [--out DIR]

All by tiny random models; with `--device cpu` it proves itself where there is no GPU.
"""

import argparse
import inspect
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import torch
from bench_step import our_side, step
from rich.console import Console
from rich.table import Table
from transformers import logging

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from adapting import fill_up
from families import MODEL_FAMILIES, make_model, save_tiny
from helpers import gradients, random_rows

from luthier import runtime
from luthier.data.batches import collate
from luthier.kernels import dropout, packed
from luthier.kernels.fast import install_checked, remove
from luthier.kernels.fp8_base import store_in_fp8
from luthier.kernels.triton import switch
from luthier.models.adapters import attach_adapter
from luthier.objectives.supervised import loss_sum
from luthier.recipe import KernelsGroup, MethodGroup

NONE = KernelsGroup(**dict.fromkeys(KernelsGroup.model_fields, False))
STEPS, KILLED_AT = 20, 8


def allow_older_pytorch() -> None:
    """Run with a PyTorch that came with the card's machine: before 2.13 grouped heads are not asked for."""
    plain = packed.varlen_attn
    known = inspect.signature(plain).parameters
    if "enable_gqa" not in known:
        packed.varlen_attn = lambda *args, **named: plain(
            *args, **{name: value for name, value in named.items() if name in known}
        )


def adapted(family: str, dtype: torch.dtype, device: torch.device, rate: float = 0.0) -> Any:
    method = MethodGroup(lora_dropout=rate, lora_r=8)
    model = attach_adapter(make_model(family, 96).to(dtype), method)
    fill_up(model)
    return model.to(device).eval()


def gradients_agree(device: torch.device, seconds: float) -> Table:
    """Of adapters, packed: the distance from float32 without any fast path, with them and without, and in 8 bits.

    No family is begun after ``seconds``.
    """
    until = time.monotonic() + seconds
    table = Table("family", "dtype", "fast paths", "reference", "8 bits", "not in use")
    batch = collate([[row] for row in random_rows(6)]).to(device)
    for family in MODEL_FAMILIES:
        if time.monotonic() > until:
            table.add_row(family, "not reached")
            continue
        exact: dict[str, torch.Tensor] = {}
        for dtype in (torch.float32, torch.bfloat16, torch.float16):
            off, said = [], ""
            for wanted in (NONE, KernelsGroup(), KernelsGroup(fp8_base=True)):
                model = adapted(family, dtype, device)
                if wanted.fp8_base:
                    store_in_fp8(model, device)
                fast = install_checked(model, wanted)
                with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
                    loss = loss_sum(model, batch, head=fast.head)
                found = {n: g.float() for n, g in gradients(model, loss).items() if "lora_" in n}
                exact = exact or found
                apart = sum((found[n] - exact[n]).norm() ** 2 for n in exact)
                off.append(float((apart / sum(exact[n].norm() ** 2 for n in exact)) ** 0.5))
                said = "; ".join(fast.missing)
                remove(model, fast)
            name = str(dtype).removeprefix("torch.")
            table.add_row(family, name, *(f"{off[n]:.1e}" for n in (1, 0, 2)), said)
    return table


def lengths_do_not_stall(device: torch.device, count: int = 50) -> Table:
    """Steps of ``count`` row lengths never seen before, against the same ones again."""
    model = adapted(
        "llama", torch.bfloat16 if device.type == "cuda" else torch.float32, device, 0.05
    )
    trained = [p for p in model.parameters() if p.requires_grad]
    side = our_side(
        model.train(), torch.optim.AdamW(trained, lr=1e-5), next(model.parameters()).dtype
    )
    rows = random_rows(3 * count)
    batches = [collate([[r] for r in rows[3 * i : 3 * i + 1 + i % 3]]) for i in range(count)]
    step(side, batches[0].to(device))  # what is compiled once
    first, again = ([step(side, b.to(device))[0] for b in batches] for _ in range(2))
    table = Table("lengths", "first time, s", "again, s", "the longest first step, s")
    table.add_row(str(count), f"{sum(first):.2f}", f"{sum(again):.2f}", f"{max(first):.3f}")
    return table


def dropout_repeats(device: torch.device) -> Table:
    """The share that is dropped, and whether a seed drops the same again, in place and in bfloat16."""
    values = torch.ones(513, 700, device=device)
    table = Table("by", "dropped of 0.1", "the same again")
    for triton in (True, False):
        if triton and not (switch.is_for(device) and switch.is_installed()):
            continue
        switch.enable(triton)
        masks = [dropout.drop(values, 0.1, 7), dropout.drop_(values.clone(), 0.1, 7)]
        masks.append(dropout.drop(values.bfloat16(), 0.1, 7).float())
        switch.enable(False)
        again = all(torch.equal(m, masks[0]) for m in masks)
        table.add_row(
            "Triton" if triton else "PyTorch", f"{1 - float(masks[0].mean()):.4f}", str(again)
        )
    return table


def a_killed_run_goes_on(folder: Path) -> Table:
    """`luthier train` of a few steps, killed between checkpoints and started again, against a whole one."""
    model = save_tiny(folder / "model")
    rows = [
        {"prompt": f"What is {n} plus one?", "completion": f"It is {n + 1}."} for n in range(64)
    ]
    data = folder / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    losses = []
    for name in ("whole", "killed"):
        run = folder / name
        settings = {
            "model.source": model, "data.train": data, "data.max_length": 128, "run.dir": folder, "run.name": name,
            "train.max_steps": STEPS, "train.save_steps": 5, "train.logging_steps": 1,
            "train.learning_rate": 1e-3, "data.validation_fraction": 0.1,
        }  # fmt: skip
        recipe = folder / f"{name}.yaml"
        sets = [part for k, v in settings.items() for part in ("--set", f"{k}={v}")]
        recipe.write_text("")
        command = [sys.executable, "-m", "luthier.cli.main", "train", str(recipe), *sets]
        if name == "killed":
            kill_at(command, run / "metrics.jsonl", KILLED_AT)
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(done.stdout[-2000:] + done.stderr[-2000:])
        lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
        losses.append({line["step"]: line["loss"] for line in lines if "loss" in line})
    off = max(abs(losses[0][n] - losses[1][n]) for n in losses[0])
    table = Table("steps", "killed at", "largest difference of a loss")
    table.add_row(str(len(losses[1])), str(KILLED_AT), f"{off:.2g}")
    return table


def kill_at(command: list[str], metrics: Path, wanted: int) -> None:
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while process.poll() is None:
        if metrics.is_file() and f'"step": {wanted},' in metrics.read_text():
            os.kill(process.pid, signal.SIGKILL)
            break
        time.sleep(0.02)
    process.wait()


def trace(device: torch.device, out: Path) -> Table:
    """A profile of three steps for chrome://tracing, and the operations that take most time."""
    model = adapted(
        "llama", torch.bfloat16 if device.type == "cuda" else torch.float32, device, 0.05
    )
    trained = [p for p in model.parameters() if p.requires_grad]
    side = our_side(
        model.train(), torch.optim.AdamW(trained, lr=1e-5), next(model.parameters()).dtype
    )
    batch = collate([[row] for row in random_rows(6)]).to(device)
    for _ in range(2):
        step(side, batch)
    with torch.profiler.profile() as profile:
        for _ in range(3):
            step(side, batch)
    out.mkdir(parents=True, exist_ok=True)
    profile.export_chrome_trace(str(out / "trace.json"))
    table = Table("operation", "times", "ms")
    on_gpu = device.type == "cuda"
    taken = {
        e.key: (e.count, (e.self_device_time_total if on_gpu else e.self_cpu_time_total) / 1000)
        for e in profile.key_averages()
    }
    for name, (times, ms) in sorted(taken.items(), key=lambda item: -item[1][1])[:12]:
        table.add_row(name[:60], str(times), f"{ms:.2f}")
    return table


CHECKS = "gradients,dropout,lengths,resume,trace"


def check(only: str, device: torch.device, out: Path, seconds: float, console: Console) -> None:
    """Run those that ``only`` names, and print each one's table."""
    runtime.prepare()
    allow_older_pytorch()
    warnings.simplefilter("ignore")  # of libraries, about tiny models
    logging.set_verbosity_error()
    for name in only.split(","):
        if name == "gradients":
            table = gradients_agree(device, seconds)
        elif name == "lengths":
            table = lengths_do_not_stall(device)
        elif name == "dropout":
            table = dropout_repeats(device)
        elif name == "trace":
            table = trace(device, out)
        else:
            with tempfile.TemporaryDirectory() as scratch:
                table = a_killed_run_goes_on(Path(scratch))
        table.title = name
        console.print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--only", default=CHECKS)
    parser.add_argument("--out", type=Path, default=Path("build/gpu"))
    parser.add_argument("--seconds", type=float, default=600.0, help="of comparing gradients")
    chosen = parser.parse_args()
    console = Console(width=120)
    check(chosen.only, torch.device(chosen.device), chosen.out, chosen.seconds, console)


if __name__ == "__main__":
    main()
