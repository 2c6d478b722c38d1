"""Checks while a run trains: gradients arrive, the learning rate is reached, frozen weights stay.

Gradients are looked at in the first step of a session that counts; of weights a sample where a
checkpoint is due, all at the end: no step pays for them.
"""

import hashlib
from collections.abc import Iterator
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from luthier.errors import UserError
from luthier.train.callbacks import Display
from luthier.train.skips import Skips

# Frozen weights up to so many bytes are hashed whole at the end; of a sample, so many numbers a tensor.
_WHOLE = 2**29
_SAMPLED = 4096
_RATES = 10_000  # steps of the schedule that are looked at


class Watch(TrainerCallback):
    """Stops a run whose adapter does not learn or whose base changes."""

    def __init__(
        self, model: nn.Module, display: Display, skips: Skips, keeps_gradients: bool = True
    ) -> None:
        self.model = model
        self.display = display
        self.skips = skips  # a step that is left out has no gradients to look at
        self.adapter = isinstance(model, PeftModel)
        self.before = {
            sampled: fingerprint(model, sampled) if self.adapter else {}
            for sampled in (True, False)
        }
        self.keeps_gradients = keeps_gradients  # until the step, where they can be looked at
        self.gradients_seen = False

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> None:
        peak = highest_rate(kwargs.get("lr_scheduler"), state.max_steps)
        if peak is None or peak >= 0.99 * args.learning_rate:
            return
        said = (
            f"over {state.max_steps} steps the learning rate climbs to {peak:.2g}, never to "
            f"train.learning_rate {args.learning_rate:.2g}"
        )
        if peak == 0:
            raise UserError(f"{said}: nothing would be learned; set train.warmup_ratio=0")
        self.display.note(f"doubtful: {said}; lower train.warmup_ratio, or train longer")

    def on_pre_optimizer_step(self, *_: Any, **__: Any) -> None:
        if self.keeps_gradients and not self.gradients_seen and not self.skips.left_out:
            self.gradients_seen = True
            check_gradients(self.model, self.display)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        # Before the checkpoint is written, so that those that are there are good.
        if self.adapter and (control.should_save or control.should_evaluate):
            self._check_base(state.global_step, sampled=True)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        if self.adapter:
            self._check_base(state.global_step, sampled=False)

    def _check_base(self, step: int, sampled: bool) -> None:
        before, after = self.before[sampled], fingerprint(self.model, sampled)
        changed = sorted(name for name in before if after.get(name) != before[name])
        if changed:
            raise UserError(
                f"by step {step} frozen weights of the base model had changed ({len(changed)} tensors, "
                f"{changed[0]} first), so the adapter would not fit the base and the run ends here. A "
                "library writes where it must not: report it, with the versions in recipe.yaml"
            )


def highest_rate(scheduler: Any, steps: int) -> float | None:
    """The highest learning rate in ``steps`` steps; None for a schedule that cannot be foretold."""
    if not isinstance(scheduler, LambdaLR) or steps < 1:
        return None
    chosen = range(0, steps, max(1, steps // _RATES))
    return max(
        float(base) * factor(step)
        for base, factor in zip(scheduler.base_lrs, scheduler.lr_lambdas, strict=True)
        for step in chosen
    )


def check_gradients(model: nn.Module, display: Display) -> None:
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
    dead = [name for name, grad in trained.items() if grad is None or not bool(grad.any())]
    if trained and len(dead) == len(trained):
        raise UserError(
            f"none of the {len(trained)} tensors that train got a gradient in the first step "
            f"({dead[0]} …): nothing would be learned; try `--set kernels.lora=false`, and report it"
        )
    if dead:
        display.note(
            f"doubtful: {len(dead)} of {len(trained)} tensors that train got no gradient in the first "
            f"step, {dead[0]} first; if that goes on they learn nothing"
        )


def fingerprint(model: nn.Module, sampled: bool = False) -> dict[str, str]:
    """A hash of each frozen tensor by name, 4-bit scales included; of a large model always a sample."""
    frozen = dict(_frozen(model))
    sampled |= sum(tensor.nbytes for tensor in frozen.values()) > _WHOLE
    return {name: _hash(tensor, sampled) for name, tensor in frozen.items()}


def _frozen(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            continue
        yield name, parameter.detach()
        state = getattr(parameter, "quant_state", None)
        while state is not None:  # the scales, and the scales of the scales
            name += ".absmax"
            yield name, state.absmax
            state = state.state2


def _hash(tensor: Tensor, sampled: bool) -> str:
    numbers = tensor.reshape(-1)
    if sampled:
        numbers = numbers[:: max(1, numbers.numel() // _SAMPLED)]
    data = numbers.contiguous().view(torch.uint8).cpu().numpy()
    return hashlib.sha256(data.data).hexdigest()
