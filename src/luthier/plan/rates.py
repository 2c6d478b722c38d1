"""How fast a machine does the work of a step: calibrated, or a range by its data sheet."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import torch

from luthier.plan.catalogues import Accelerator
from luthier.plan.simulate import Step

# Share of the dense peak that training reaches, in counted operations (recomputation included).
# Hugging Face stacks without compilation lie near the lower end; torchtune's published table
# (Llama 3.1 8B on an RTX 4090, 2,048 packed tokens, compiled) comes to 0.64 (full) to 0.9 (LoRA).
EFFICIENCY = {"full": (0.30, 0.65), "lora": (0.30, 0.65), "qlora": (0.20, 0.55)}
CPU_EFFICIENCY = (0.25, 0.6)

# Bytes that the optimiser reads and writes per trainable parameter: weight, gradient and two means.
_OPTIMIZER_BYTES = {"sgd": 12, "adamw_8bit": 16, "paged_adamw_8bit": 16, "adamw_bf16": 14}
_ADAMW_BYTES = 28


# Matrix-product operations, attention operations, bytes moved, operations run, bytes updated.
Units = tuple[float, float, float, float, float]


@dataclass(frozen=True)
class Rates:
    """Seconds per unit of each kind of work; a step's time is their sum.

    t = matmul · flops + attention · attention_flops + byte · moved + operation · operations
        + update · bytes the optimiser reads and writes
    """

    matmul: float
    attention: float
    byte: float
    operation: float
    update: float

    def of(self, units: Units) -> float:
        """Seconds for this much of each kind of work."""
        return sum(a * b for a, b in zip(asdict(self).values(), units, strict=True))


def work(step: Step, optim: str, updates: float = 1.0) -> Units:
    """The units of a micro-batch, and of ``updates`` updates of the weights besides."""
    updated = step.trainable * _OPTIMIZER_BYTES.get(optim, _ADAMW_BYTES) * updates
    products = step.flops - step.attention_flops
    return (products, step.attention_flops, step.moved, step.operations, updated)


def fit_rates(steps: Sequence[Units], seconds: Sequence[float]) -> Rates:
    """The rates that explain measured steps best: least squares of relative errors, none negative."""
    measured = torch.tensor(seconds, dtype=torch.float64)
    relative = torch.tensor(steps, dtype=torch.float64) / measured[:, None]
    scale = relative.abs().amax(0).clamp_min(1e-30)
    active = list(range(relative.shape[1]))
    target = torch.ones(len(seconds), 1, dtype=torch.float64)
    while True:  # dropping the most negative one, until none is (few unknowns: this suffices)
        matrix = (relative / scale)[:, active]
        solved = torch.linalg.lstsq(matrix, target, driver="gelsd").solution[:, 0]
        if (solved >= 0).all():
            break
        del active[int(solved.argmin())]
    rates = [0.0] * relative.shape[1]
    for index, value in zip(active, solved.tolist(), strict=True):
        rates[index] = value / scale[index].item()
    return Rates(*rates)


def stated_seconds(
    flops: float, accelerator: Accelerator, method: str, dtype: str, fp8_share: float = 0.0
) -> tuple[float, float] | None:
    """Least and most seconds that this work takes on a device of the catalogue.

    ``fp8_share`` of it is products of 8-bit numbers, taken to reach the same share of their own peak.
    """
    peak = accelerator.tflops(dtype)
    if peak is None:
        return None
    low, high = CPU_EFFICIENCY if accelerator.is_cpu else EFFICIENCY[method]
    at_peak = flops * (1 - fp8_share + fp8_share * peak / (accelerator.float8 or peak))
    return at_peak / (peak * 1e12 * high), at_peak / (peak * 1e12 * low)
