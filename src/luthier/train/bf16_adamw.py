"""AdamW for full fine-tuning in half the memory."""

import random
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from luthier.kernels.rounding import PIECE, round_into
from luthier.kernels.triton.switch import fused
from luthier.train.parallel import local


class BF16AdamW(Optimizer):
    """AdamW whose weights, gradients and means are bfloat16, rounded stochastically.

    8 bytes per weight where float32 takes 16. The arithmetic is AdamW's (Loshchilov and Hutter 2019) in
    float32; only what is stored is rounded, by chance, so that small updates add up.
    """

    def __init__(
        self,
        params: Any,
        lr: float,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.01,
    ) -> None:
        super().__init__(
            params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        )

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """One update of every weight that has a gradient. Raises ValueError for other dtypes."""
        assert closure is None
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._update(parameter, group)

    def _update(self, parameter: Tensor, group: dict[str, Any]) -> None:
        if parameter.dtype != torch.bfloat16:
            raise ValueError(f"adamw_bf16 trains bfloat16 weights, not {parameter.dtype}")
        state = self.state[parameter]
        if not state:
            state["step"] = 0
            state["exp_avg"] = torch.zeros_like(parameter)
            state["exp_avg_sq"] = torch.zeros_like(parameter)
        state["step"] += 1
        # From PyTorch's generator, whose state a checkpoint keeps.
        seed = int(torch.randint(2**62, ()))
        assert parameter.grad is not None
        # Of a weight in parts, this process's own: it draws for no others.
        means = state["exp_avg"], state["exp_avg_sq"]
        weight, gradient, mean, square = map(local, (parameter, parameter.grad, *means))
        if fused(weight) and weight.is_contiguous():
            from luthier.kernels.triton import adamw

            adamw.update(
                weight,
                gradient,
                mean,
                square,
                step=state["step"],
                lr=group["lr"],
                betas=group["betas"],
                eps=group["eps"],
                weight_decay=group["weight_decay"],
                seed=seed,
            )
            return
        places = random.Random(seed)  # noqa: S311
        flat = [t.view(-1) for t in (weight, mean, square)]
        slopes = gradient.reshape(-1)
        for start in range(0, len(slopes), PIECE):
            piece = slice(start, start + PIECE)
            kept = [t[piece] for t in flat]
            values = new, first, second = [t.float() for t in kept]
            _adamw(new, first, second, slopes[piece].float(), state["step"], group)
            for target, value in zip(kept, values, strict=True):
                round_into(target, value, places)


def _adamw(
    weight: Tensor, mean: Tensor, square: Tensor, slope: Tensor, step: int, group: dict[str, Any]
) -> None:
    """One step of AdamW in place, in float32."""
    first, second = group["betas"]
    mean.lerp_(slope, 1 - first)
    square.mul_(second).addcmul_(slope, slope, value=1 - second)
    weight.mul_(1 - group["lr"] * group["weight_decay"])
    scale = (square / (1 - second**step)).sqrt_().add_(group["eps"])
    weight.addcdiv_(mean, scale, value=-group["lr"] / (1 - first**step))
