"""A training step as a GPU would take it, without one: what it waits for, launches and needs.

    python benchmarks/gpu_step.py [--model llama-3.1-8b] [--card h100] [--rows 4] [--length 2048]

The step of `luthier train` runs on tensors without numbers (`plan/watch.py`), with Triton's kernels
where Triton is installed. The first table is of tiny models of several families: launches of one layer,
forward and backward, are those of a model of three layers less those of one of two. The second expects
the time of a step by roofline: a product takes its operations at 80% of the data sheet's dense peak,
attention its own at 35% (Shah et al. 2024, "FlashAttention-3", section 1: 80 to 90% for products and 35%
for FlashAttention-2 on an H100), everything else its bytes at 85% of the bandwidth (an assumption);
no kernel takes less than 3 us, and the host launches one in 10 us beside them (assumptions). Products of 8-bit
numbers take theirs at 80% of the 8-bit peak (an assumption). Utilisation is of the
operations without recomputation over the peak of bfloat16. Nothing of it has been measured on a GPU.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from families import config_of

from luthier.plan.catalogues import Accelerator, find_accelerator, find_config
from luthier.plan.rates import work as units
from luthier.plan.simulate import Step, Workload, simulate
from luthier.plan.watch import Kernel, Watch
from luthier.recipe import KernelsGroup, MethodGroup

FAMILIES = ("llama", "mistral-window", "qwen3", "gemma3", "gpt2")
FP8 = "lora, FP8"  # the frozen weights in 8 bits: kernels.fp8_base
METHODS = ("full", "lora", FP8, "qlora")
OPTIM = {"full": "adamw_bf16", "lora": "adamw_torch_fused", "qlora": "adamw_torch_fused"}
OF_PRODUCTS, OF_ATTENTION, OF_BANDWIDTH = 0.80, 0.35, 0.85
LEAST, HOST = 3e-6, 10e-6


def tiny(family: str, layers: int) -> Any:
    """Without the dropout of GPT-2, which one kernel on a GPU computes and several do here."""
    config = config_of(family, 96)
    config.num_hidden_layers = layers
    if getattr(config, "layer_types", None):
        config.layer_types = [config.layer_types[i % 2] for i in range(layers)]
    for name in ("attn_pdrop", "embd_pdrop", "resid_pdrop"):
        if hasattr(config, name):
            setattr(config, name, 0.0)
    return config


def work_of(method: str, lengths: Sequence[int], recomputes: bool, triton: bool = True) -> Workload:
    return Workload(
        lengths,
        sum(lengths) - len(lengths),
        torch.bfloat16,
        OPTIM[name_of(method)],
        recomputes,
        kernels=KernelsGroup(triton=triton, fp8_base=method == FP8),
        on_gpu=True,
    )


def name_of(method: str) -> str:
    return method.partition(",")[0]


def watched(config: Any, method: str, work: Workload) -> tuple[Watch, Step]:
    watch = Watch(work.lengths)
    return watch, simulate(config, MethodGroup(name=name_of(method)), work, watch)  # type: ignore[arg-type]


def of_a_layer(
    family: str, method: str, recomputes: bool, triton: bool = True
) -> tuple[Watch, int]:
    """The step of three layers, and what one of them launches."""
    two, three = (
        watched(tiny(family, layers), method, work_of(method, [24, 40], recomputes, triton))[0]
        for layers in (2, 3)
    )
    return three, len(three.kernels) - len(two.kernels)


def seconds(kernel: Kernel, card: Accelerator) -> float:
    peak = 1e12 * card.tflops("float8" if kernel.kind == "fp8" else "bfloat16")  # type: ignore[operator]
    bandwidth = card.bandwidth * 1e9  # type: ignore[operator]
    reached = OF_ATTENTION if kernel.kind == "attention" else OF_PRODUCTS
    return max(kernel.flops / (peak * reached), kernel.moved / (bandwidth * OF_BANDWIDTH), LEAST)


def families() -> Table:
    table = Table("family", "method", "recomputes", "waits", "reads", "with Triton", "without")
    for family in FAMILIES:
        for method in METHODS:
            for recomputes in (False, True):
                watch, launches = of_a_layer(family, method, recomputes)
                _, without = of_a_layer(family, method, recomputes, triton=False)
                bad = [*watch.waits.elements(), *watch.mixed.elements()]
                table.add_row(
                    *(family, method, "yes" if recomputes else "", ", ".join(bad) or "none"),
                    *map(str, (watch.reads, launches, without)),
                )
    return table


def roofline(name: str, card: Accelerator, lengths: Sequence[int]) -> Table:
    table = Table(
        *("method", "recomputes", "launches", "products", "attention", "rest", "update", "step"),
        *("tok/s", "utilisation", "peak, GiB", "plan, GiB"),
    )
    config = find_config(name)
    for method in METHODS:
        if method == FP8 and card.lacks_float8:
            continue
        needed = 0
        for recomputes in (False, True):
            work = work_of(method, lengths, recomputes)
            watch, step = watched(config, method, work)
            parts = {
                kinds: sum(seconds(k, card) for k in watch.kernels if k.kind in kinds)
                for kinds in (("product", "fp8"), ("attention",), ("other",))
            }
            needed = needed or sum(kernel.flops for kernel in watch.kernels)
            update = bytes_updated(step, OPTIM[name_of(method)]) / (
                card.bandwidth * 1e9 * OF_BANDWIDTH
            )  # type: ignore[operator]
            took = max(sum(parts.values()), HOST * len(watch.kernels)) + update
            planned = simulate(config, MethodGroup(name=name_of(method)), work)  # type: ignore[arg-type]
            table.add_row(
                *(method, "yes" if recomputes else "", f"{len(watch.kernels):,}"),
                *(f"{1e3 * t:.0f} ms" for t in (*parts.values(), update, took)),
                f"{sum(lengths) / took:,.0f}",
                f"{needed / took / (card.bfloat16 * 1e12):.0%}",  # type: ignore[operator]
                f"{step.peak / 2**30:.2f}",
                f"{planned.peak / 2**30:.2f}",
            )
    return table


def bytes_updated(step: Step, optim: str) -> float:
    return units(step, optim)[-1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="llama-3.1-8b")
    parser.add_argument("--card", default="h100")
    parser.add_argument("--rows", type=int, default=4)
    parser.add_argument("--length", type=int, default=2048)
    chosen = parser.parse_args()
    console = Console(width=130)
    console.print(families())
    card = find_accelerator(chosen.card)
    console.print(
        chosen.model, "on", card.name, "in bfloat16,", chosen.rows, "rows of", chosen.length
    )
    console.print(roofline(chosen.model, card, [chosen.length] * chosen.rows))


if __name__ == "__main__":
    main()
