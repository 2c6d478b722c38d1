"""All fast paths on one model: put in, checked against the reference, and taken out again."""

from dataclasses import dataclass, field

import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from transformers import PreTrainedModel

from luthier.kernels import attention, compiling, experts, fp8, gated, layer, lora, norm, rotary
from luthier.kernels.head import HeadLoss, find_head, head_agrees
from luthier.kernels.triton import switch
from luthier.models.adapters import inner
from luthier.recipe import KernelsGroup

_LAYERS = 8  # that are compared; kinds of layers take turns in fewer


@dataclass
class Fast:
    """What was put into a model.

    Attributes:
        head: for ``loss_sum``; None where the loss needs all logits.
        missing: what runs the reference path, and why.
    """

    head: HeadLoss | None = None
    missing: list[str] = field(default_factory=list)
    changed: list[nn.Module] = field(default_factory=list)


def install(model: PreTrainedModel | PeftModel, wanted: KernelsGroup) -> Fast:
    """Put the fast paths that ``wanted`` names into ``model``, where they are known to be right.

    Modules stay what they are; only the ``forward`` of some instances is replaced. Needs no real
    weights.
    """
    base = inner(model)
    kind = base.config.get_text_config().model_type
    fast = Fast()
    if wanted.loss:
        fast.head = find_head(model)
        if fast.head is None:
            fast.missing.append("loss: the output layer is not a plain one, so all logits are kept")
    if wanted.attention and not attention.install(base):
        fast.missing.append(f"attention: {kind} runs over all packed tokens with a mask")
    if wanted.lora and isinstance(model, PeftModel):
        found = list(lora.groups(model))
        for group in found:
            group.install(wanted.keep_expanded)
            fast.changed += group.layers
        of_experts = experts.install(model)
        fast.changed += of_experts
        adapted = sum(isinstance(m, LoraLayer) for m in model.modules())
        known = sum(len(group.layers) for group in found) + len(of_experts)
        if known < adapted:
            fast.missing.append(f"lora: {adapted - known} of {adapted} layers run PEFT's own path")
        fp8.use_products(model, True)
    if wanted.norm:
        fast.changed += norm.install(base)
        if wanted.triton and switch.is_for(base.device):
            fast.changed += layer.install(base)
    if wanted.gated:
        fast.changed += gated.install(base)
    if wanted.rotary:
        rotary.install(base)
    return fast


def install_checked(
    model: PreTrainedModel | PeftModel, wanted: KernelsGroup, compiled: bool = False
) -> Fast:
    """``install``, and ``remove`` if the model's outputs are not what they were.

    ``compiled`` compiles their element-wise parts, in this process from now on.
    """
    switch.enable(False)
    before = _hidden_states(model)
    fast = install(model, wanted)
    in_8_bits = fp8.use_products(model, False)  # which round, and are judged by themselves
    if wanted.triton and (trouble := start_triton(model)) is not None:
        fast.missing.append(f"triton: {trouble}")
    compiling.enable(compiled)
    if compiled and (trouble := _compile_trouble(model)) is not None:
        compiling.enable(False)
        fast.missing.append(f"compile: {trouble}")
    after = _states_without_what_fails(model, fast)
    if after is None:
        remove(model, fast)
        return fast
    if fast.head is not None and not head_agrees(model, fast.head):
        fast.head = None
        fast.missing.append("loss: this model changes its logits, so all of them are kept")
    tolerance = 1e-4 if after.dtype == torch.float32 else 0.05
    if not _difference(after, before) <= tolerance:
        remove(model, fast)
        fast.missing.append("all: the outputs differ from the reference path, which runs instead")
    elif in_8_bits:
        try:
            found = fp8.trouble(in_8_bits)
        except Exception as error:  # a card that lacks such products says so in many ways
            found = _first_line(error)
        fp8.use_products(model, found is None)
        if found is not None:
            fast.missing.append(f"fp8_base: {found}; its weights are expanded for each product")
    return fast


def remove(model: PreTrainedModel | PeftModel, fast: Fast) -> None:
    """Take out what ``install`` put into ``model`` (rotary embeddings stay: they are exact)."""
    for module in fast.changed:
        vars(module).pop("forward", None)  # of adapters in each other the outer one has it
    fast.changed.clear()
    fast.head = None
    switch.enable(False)
    fp8.use_products(model, False)
    attention.remove(inner(model))


def _compile_trouble(model: PreTrainedModel | PeftModel) -> str | None:
    """Compile all there is for this model's dtype; in a word, why that failed."""
    weights = next(model.parameters())
    numbers = torch.linspace(-2, 2, 96, device=weights.device, dtype=weights.dtype).view(3, 32)
    found = []
    try:
        for on in (False, True):
            compiling.enable(on)
            leaves = [numbers.clone().requires_grad_() for _ in range(2)]
            normed = norm.rms_norm(leaves[0], torch.ones_like(weights[0][:1]).expand(32), 1e-6)
            total = sum(gated.gated(normed, leaves[1], kind).sum() for kind in gated.KINDS.values())
            found.append(torch.autograd.grad(total, leaves))  # type: ignore[arg-type]
    except Exception as error:  # the compiler's own errors come in many kinds
        return _first_line(error)
    agree = all(torch.allclose(a, b, rtol=0.05, atol=0.05) for a, b in zip(*found, strict=True))
    return None if agree else "its outputs differ from the reference"


def _states_without_what_fails(model: PreTrainedModel | PeftModel, fast: Fast) -> Tensor | None:
    """``_hidden_states``, where a GPU has no kernel for its attention without it; None where all fails.

    A fast path that fails on a CPU is an error of ours.
    """
    for part in ("attention", "all"):
        try:
            return _hidden_states(model)
        except Exception as error:  # a GPU's compilers have errors of many kinds
            if not attention.has_packed(inner(model).device):
                raise
            fast.missing.append(f"{part}: {_first_line(error)}; the reference path runs instead")
            attention.remove(inner(model))
    return None


def start_triton(model: PreTrainedModel | PeftModel) -> str | None:
    """Use Triton's kernels from now on if they compute what PyTorch does; in a word, why they do not.

    None also for devices that have none. Widths are the model's, of which the kernels are compiled.
    """
    weights = next(model.parameters())
    if not switch.is_for(weights.device):
        return None
    if not switch.is_installed():
        return "Triton is not installed, so PyTorch's operations run"
    from luthier.kernels.triton.check import trouble

    width = model.config.get_text_config().hidden_size
    in_8_bits = any(map(fp8.is_fp8, model.modules()))
    try:
        found = trouble(weights.device, weights.dtype, width, in_8_bits)
    except Exception as error:  # the compiler's own errors come in many kinds
        found = _first_line(error)
    switch.enable(found is None)
    return found


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0]}"


@torch.no_grad()
def _hidden_states(model: PreTrainedModel | PeftModel) -> Tensor:
    """What the first layers make of a short row (layers, tokens, H), without dropout.

    Later layers amplify differences of rounding, most of all for the tokens at the start of a
    vocabulary, which are often untrained.
    """
    training = model.training
    model.eval()
    try:
        device = next(model.parameters()).device
        vocabulary = model.config.get_text_config().vocab_size
        tokens = (torch.arange(24, device=device)[None] * 2039 + 17) % vocabulary
        extra = attention.row_inputs(inner(model), (24,))
        output = model(input_ids=tokens, use_cache=False, output_hidden_states=True, **extra)
        states = torch.cat(output.hidden_states[1 : 1 + _LAYERS])
    finally:
        model.train(training)
    return states


def _difference(one: Tensor, other: Tensor) -> float:
    """Of the layer where it is largest, the mean over tokens of the relative difference."""
    one, other = one.float(), other.float()
    return float(((one - other).norm(dim=-1) / other.norm(dim=-1)).mean(-1).max())
