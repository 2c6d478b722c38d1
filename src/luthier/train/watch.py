"""Checks while a run trains: gradients arrive, the learning rate is reached, frozen weights stay.

Gradients are looked at in the first finite step of a session; of frozen weights a sample where a
checkpoint is due, all at the end: other steps pay nothing.
"""

import hashlib
from collections.abc import Iterator

import torch
from peft import PeftModel
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.optim.lr_scheduler import LambdaLR, LRScheduler

from luthier.errors import UserError
from luthier.events import Note, OnEvent
from luthier.kernels.fp8 import is_fp8
from luthier.train.parallel import local, whole

# Frozen weights up to so many bytes are hashed completely at the end; of a sample, so many numbers per tensor.
_WHOLE = 2**29
_SAMPLED = 4096
_RATES = 10_000  # steps of the schedule that are looked at


class Watch:
    """Stops a run whose adapter does not learn or whose base changes."""

    def __init__(self, model: nn.Module, learning_rate: float, on_event: OnEvent) -> None:
        self.model = model
        self.learning_rate = learning_rate
        self.on_event = on_event
        self.adapter = isinstance(model, PeftModel)
        self.before = {
            sampled: fingerprint(model, sampled) if self.adapter else {}
            for sampled in (True, False)
        }
        self.gradients_seen = False

    def check_schedule(self, scheduler: LRScheduler, max_steps: int) -> None:
        """See that the learning rate is reached.

        Raises:
            UserError: it stays at 0.
        """
        peak = highest_rate(scheduler, max_steps)
        if peak is None or peak >= 0.99 * self.learning_rate:
            return
        said = (
            f"over {max_steps} steps the learning rate rises only to {peak:.2g} and never reaches "
            f"train.learning_rate {self.learning_rate:.2g}"
        )
        if peak == 0:
            raise UserError(
                f"{said}: the model would not learn; set the warm-up (train.warmup_ratio or "
                "train.warmup_steps) to 0"
            )
        self.on_event(Note(f"{said}; shorten the warm-up, or train longer", warning=True))

    def on_gradients(self) -> None:
        """Look at the gradients of the first step that counts."""
        if not self.gradients_seen:
            self.gradients_seen = True
            check_gradients(self.model, self.on_event)

    def check_base(self, step: int, sampled: bool) -> None:
        """See that the frozen weights are those of the start.

        Raises:
            UserError: they are not.
        """
        if not self.adapter:
            return
        before, after = self.before[sampled], fingerprint(self.model, sampled)
        changed = sorted(name for name in before if after.get(name) != before[name])
        if changed:
            raise UserError(
                f"frozen weights of the base model have changed by step {step} ({len(changed)} tensors, "
                f"{changed[0]} first), so the adapter would not fit the base and the run ends here. A "
                "library overwrites them: report it, with the versions in provenance.json"
            )


def highest_rate(scheduler: LRScheduler, steps: int) -> float | None:
    """The highest learning rate in ``steps`` steps; None for a schedule that cannot be predicted."""
    if not isinstance(scheduler, LambdaLR) or steps < 1:
        return None
    chosen = range(0, steps, max(1, steps // _RATES))
    return max(
        float(base) * factor(step)
        for base, factor in zip(scheduler.base_lrs, scheduler.lr_lambdas, strict=True)
        for step in chosen
    )


def check_gradients(model: nn.Module, on_event: OnEvent) -> None:
    """See that what trains got a gradient.

    Of a new adapter's two matrices only B has one in the first step: A's is a multiple of B, and
    that begins at zero.

    Raises:
        UserError: nothing that trains got one.
    """
    trained = {
        name: parameter.grad
        for name, parameter in model.named_parameters()
        if parameter.requires_grad and "lora_A" not in name
    }
    dead = [name for name, grad in trained.items() if grad is None or _is_nought(grad)]
    if trained and len(dead) == len(trained):
        raise UserError(
            f"none of the {len(trained)} trainable tensors got a gradient in the first step "
            f"({dead[0]} …): the adapter would not learn; try `--set kernels.lora=false`, and report it"
        )
    if dead:
        on_event(
            Note(
                f"{len(dead)} of {len(trained)} trainable tensors got no gradient in the first step, "
                f"{dead[0]} first; if that continues, they do not learn",
                warning=True,
            )
        )


def _is_nought(grad: Tensor) -> bool:
    if isinstance(grad, DTensor):  # of this process's part alone one cannot say
        return whole(grad.norm()).item() == 0
    return not bool(grad.any())


def fingerprint(model: nn.Module, sampled: bool = False) -> dict[str, str]:
    """A hash of each frozen tensor by name, scales included; of a large model always a sample."""
    frozen = dict(_frozen(model))
    sampled |= sum(tensor.nbytes for tensor in frozen.values()) > _WHOLE
    return {name: _hash(tensor, sampled) for name, tensor in frozen.items()}


def _frozen(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            continue
        yield name, local(parameter.detach())
        state = getattr(parameter, "quant_state", None)
        while state is not None:  # the scales, and the scales of the scales
            name += ".absmax"
            yield name, state.absmax
            state = state.state2
    for name, module in model.named_modules():
        if is_fp8(module):
            yield f"{name}.scale", module.scale


def _hash(tensor: Tensor, sampled: bool) -> str:
    numbers = tensor.reshape(-1)
    if sampled:
        numbers = numbers[:: max(1, numbers.numel() // _SAMPLED)]
    data = numbers.contiguous().view(torch.uint8).cpu().numpy()
    return hashlib.sha256(data.data).hexdigest()
