"""The recipe's optimiser and schedule, made of PyTorch's, bitsandbytes' and Transformers' own."""

from typing import Any

from torch import Tensor, nn
from torch.autograd.graph import increment_version
from torch.optim import SGD, AdamW, Optimizer
from torch.optim.lr_scheduler import LRScheduler
from transformers import Adafactor, get_scheduler
from transformers.trainer_pt_utils import get_parameter_names

from luthier.errors import UserError
from luthier.recipe import TrainGroup
from luthier.recipe.schedules import check_phases
from luthier.train.bf16_adamw import BF16AdamW

_NOT_DECAYED = (r"bias", r"layernorm", r"rmsnorm", r"(?:^|\.)norm(?:$|\.)", r"_norm(?:$|\.)")


def make_optimizer(
    model: nn.Module, train: TrainGroup, name: str, loraplus_lr_ratio: float | None = None
) -> Optimizer:
    """The optimiser ``name`` over all that trains in ``model``.

    Weight decay spares biases and norms, as in Transformers' Trainer. An update raises the version of
    each weight that it changes, also where the optimiser itself does not (bitsandbytes, Adafactor):
    adapters are cast for the products anew where it has risen.

    Args:
        loraplus_lr_ratio: the adapter's B, and vectors beside it, learn so many times as fast as
            the rest (LoRA+, Hayou et al. 2024).
    """
    rate, decay = train.learning_rate, train.weight_decay
    assert rate is not None and decay is not None  # the recipe filled in the method's
    decayed = set(get_parameter_names(model, [nn.LayerNorm], list(_NOT_DECAYED)))
    trained = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
    groups: list[dict[str, Any]] = [
        {"params": [p for n, p in trained if n in decayed], "weight_decay": decay},
        {"params": [p for n, p in trained if n not in decayed], "weight_decay": 0.0},
    ]
    if loraplus_lr_ratio is not None:
        fast = {id(p) for n, p in trained if "lora_B" in n or p.ndim == 1}
        groups = [
            {
                "params": [p for p in group["params"] if (id(p) in fast) is faster],
                "weight_decay": group["weight_decay"],
                "lr": rate * loraplus_lr_ratio if faster else rate,
            }
            for faster in (False, True)
            for group in groups
        ]
    optimizer = _named(name, model, groups, rate)
    optimizer.register_step_post_hook(_raise_versions)
    return optimizer


def _raise_versions(optimizer: Optimizer, *_: Any) -> None:
    increment_version(
        p for group in optimizer.param_groups for p in group["params"] if p.grad is not None
    )


def _named(name: str, model: nn.Module, groups: list[dict[str, Any]], rate: float) -> Optimizer:
    if name == "adamw_bf16":
        return BF16AdamW(groups, lr=rate)
    if name == "adafactor":
        return Adafactor(groups, lr=rate, scale_parameter=False, relative_step=False)
    if name == "sgd":
        return SGD(groups, lr=rate)
    if name in ("adamw_torch", "adamw_torch_fused"):
        return AdamW(groups, lr=rate, fused=True if name == "adamw_torch_fused" else None)
    return _bitsandbytes(model, groups, rate, name)


def _bitsandbytes(
    model: nn.Module, groups: list[dict[str, Any]], rate: float, name: str
) -> Optimizer:
    from bitsandbytes.optim import AdamW as BnbAdamW
    from bitsandbytes.optim import GlobalOptimManager

    bits = 8 if "8bit" in name else 32
    if bits == 8:  # embeddings are unstable with 8-bit states (Dettmers et al. 2022, section 2.3)
        manager = GlobalOptimManager.get_instance()
        for module in model.modules():
            if isinstance(module, nn.Embedding):
                manager.register_module_override(module, "weight", {"optim_bits": 32})
    made: Optimizer = BnbAdamW(
        groups, lr=rate, betas=(0.9, 0.999), eps=1e-8, optim_bits=bits, is_paged="paged" in name
    )
    return made


def make_scheduler(optimizer: Optimizer, train: TrainGroup, max_steps: int) -> LRScheduler:
    """Warm-up, then ``lr_scheduler_type``, over ``max_steps``.

    Raises:
        UserError: its phases do not fit into the steps that the epochs come to.
    """
    name, arguments = train.lr_scheduler_type, train.lr_scheduler_kwargs
    warmup = train.warmup_of(max_steps)
    if train.max_steps < 0:  # else it was checked when the recipe was read
        try:
            check_phases(name, arguments, warmup, max_steps)
        except ValueError as error:
            raise UserError(str(error)) from None
    return get_scheduler(
        name,
        optimizer,
        num_warmup_steps=warmup,
        num_training_steps=max_steps,
        scheduler_specific_kwargs=arguments,
    )


def step_in_backward(optimizer: Optimizer) -> None:
    """Update each weight as soon as its gradient is complete, and drop the gradient.

    So there is never more than one gradient (Lv et al. 2023, "Full Parameter Fine-tuning for Large
    Language Models with Limited Resources"). The optimiser's own ``step`` finds nothing left to do.
    Good for one micro-batch per step and no clipping, which needs all gradients at once.
    """

    def update(parameter: Tensor) -> None:
        optimizer.step()  # passes over all weights but this one: they have no gradient
        parameter.grad = None

    for group in optimizer.param_groups:
        for parameter in group["params"]:
            parameter.register_post_accumulate_grad_hook(update)
