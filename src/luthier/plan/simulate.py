"""One training step on fake tensors (shapes without storage): its memory and its work."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd import Variable
from transformers import PreTrainedConfig, PreTrainedModel, get_scheduler

from luthier.data.batches import Batch, Judged, Taught
from luthier.errors import UserError
from luthier.kernels import dropout
from luthier.kernels.casts import casts_of
from luthier.kernels.fast import install
from luthier.kernels.fp8_base import store_in_fp8
from luthier.kernels.head import HeadLoss
from luthier.kernels.lora import is_known
from luthier.kernels.triton import switch
from luthier.models.adapters import inner
from luthier.models.dtype import trained_dtype
from luthier.objectives.choose import choose
from luthier.objectives.objective import Objective, Parts
from luthier.objectives.reference import AdapterOff, Stored
from luthier.objectives.sft import SFT
from luthier.plan.cuda_rules import CudaRules
from luthier.plan.fake import give_storages, meta_model, storages
from luthier.plan.flops import CountWork
from luthier.plan.live import LiveStorage
from luthier.plan.watch import Watch
from luthier.recipe import OBJECTIVES, KernelsGroup, MethodGroup, ObjectiveGroup
from luthier.train.loop import Learner, arithmetic, train_step
from luthier.train.optimizers import step_in_backward
from luthier.train.setup import recompute_activations

_8BIT_BLOCK = 256  # numbers that share a constant in an 8-bit state
_8BIT_LEAST = 4096  # smaller tensors keep 32-bit state (bitsandbytes' min_8bit_size)
_CUDA_BLOCK = 512  # bytes, of which CUDA's allocator hands out multiples (its kMinBlockSize)


@dataclass(frozen=True)
class Workload:
    """One micro-batch and how it is trained on.

    Attributes:
        lengths: tokens of each row; the batch is laid end to end, without padding. Where rows stay
            together, as those of pairs do, of both: they are taken to be halves.
        supervised: tokens that count in the loss, of all rows together.
        optim: the recipe's name.
        tokens: whose rows of the embedding train beside an adapter, so many.
        asks_reference: the model is asked without its adapter, too, in every step.
        on_gpu: a GPU computes, with Triton's kernels where ``kernels`` wants them; whether this machine
            has Triton is not asked.
        accumulates: it comes after others of the same step, whose gradients are there.
    """

    lengths: Sequence[int]
    supervised: int
    dtype: torch.dtype
    optim: str
    gradient_checkpointing: bool = False
    optimizer_in_backward: bool = False
    kernels: KernelsGroup = field(default_factory=KernelsGroup)
    tokens: int = 0
    objective: ObjectiveGroup = field(default_factory=ObjectiveGroup)
    asks_reference: bool = False
    on_gpu: bool = False
    accumulates: bool = False


@dataclass(frozen=True)
class Step:
    """Bytes of tensors, and the work, of one training step (the second: optimiser state is there).

    Attributes:
        weights: all of the model, quantisation constants and ``adapter`` included.
        adapter: the part of the weights that LoRA adds, and that part cast for the products; 0 for
            full fine-tuning.
        activations: what the layers leave for the backward pass.
        logits: what head and loss come to on top of that, at most.
        load_peak, forward_peak, backward_peak, step_peak: all that is alive in that phase, at most.
        flops: floating-point operations of forward and backward (two per multiply-add), recomputation
            included; matrix products and attention only.
        fp8_flops, attention_flops, moved, operations: see ``CountWork``.
        trainable: trainable parameters.
        parameters: all parameters, each 4-bit one counted.
        multiplied: those of the base model that a token is multiplied with: the matrices of all
            layers and the head, not the table of embeddings.
    """

    weights: int
    adapter: int
    gradients: int
    optimizer: int
    activations: int
    logits: int
    load_peak: int
    forward_peak: int
    backward_peak: int
    step_peak: int
    flops: int
    fp8_flops: int
    attention_flops: int
    moved: int
    operations: int
    trainable: int
    parameters: int
    multiplied: int

    @property
    def peak(self) -> int:
        return max(self.load_peak, self.forward_peak, self.backward_peak, self.step_peak)

    @property
    def temporary(self) -> int:
        """What of the peak is in none of the other parts: intermediate results."""
        stays = self.weights + self.optimizer
        passing = max(self.activations + self.logits, self.gradients)
        return max(0, self.peak - stays - passing)


Moment = tuple[str, *tuple[int, ...]]


@dataclass(frozen=True)
class Counted:
    """A step in pieces, each of which grows evenly with the number of layers.

    Attributes:
        figures: those of a ``Step`` that are no peaks.
        before_head: bytes alive where the head begins.
        peaks: most bytes alive by the piece of the step: ("forward", pass, n) before and in layer n, counted
            from 1, ("backward", pass, n) after and in it, and what lies between those and the end.
    """

    figures: dict[str, int]
    before_head: int
    peaks: dict[Moment, int]

    def step(self) -> Step:
        phases = {
            name: max((p for moment, p in self.peaks.items() if moment[0] == name), default=0)
            for name in ("forward", "backward", "step")
        }
        return Step(
            logits=phases["forward"] - self.before_head,
            forward_peak=phases["forward"],
            backward_peak=phases["backward"],
            step_peak=phases["step"],
            **self.figures,
        )


def simulate(
    config: PreTrainedConfig, method: MethodGroup, work: Workload, watch: Watch | None = None
) -> Step:
    """A step of training the model of ``config``; no weights are loaded or downloaded.

    The model, the loss and the step are those of ``luthier train``; ``LiveStorage`` counts. What
    lies outside of tensors is not included: the framework, its GPU context, the allocator's slack.

    Args:
        watch: looks at the step, which runs as on a GPU. All weights have to be in ``work.dtype``: what
            autocast casts is not kept, as weights that train are.

    Raises:
        UserError: ``method`` does not fit the model (see ``attach_adapter``), its rank is larger than
            a layer, or the model has an operation that cannot be simulated (experts in float32).
    """
    return count(config, method, work, watch).step()


def count(
    config: PreTrainedConfig, method: MethodGroup, work: Workload, watch: Watch | None = None
) -> Counted:
    """What ``simulate`` makes its answer of; arguments and errors are the same."""
    counter = CountWork(work.lengths)
    if watch is None and not work.on_gpu:
        return _count(config, method, work, counter, LiveStorage(), None)
    work = replace(work, on_gpu=True)
    with (
        switch.simulated_gpu(work.kernels.triton),
        CudaRules(_on_read(watch)),
        counter.of_triton(),
        _seen_by(watch),
    ):
        return _count(config, method, work, counter, LiveStorage(_CUDA_BLOCK), watch)


def _on_read(watch: Watch | None) -> Callable[[], None]:
    return watch.waited if watch is not None else lambda: None


def _seen_by(watch: Watch | None) -> AbstractContextManager[None]:
    return nullcontext() if watch is None else watch.of_triton()


def _count(
    config: PreTrainedConfig,
    method: MethodGroup,
    work: Workload,
    counter: CountWork,
    live: LiveStorage,
    watch: Watch | None,
) -> Counted:
    scores = work.objective.scores
    model = meta_model(config, method, work.dtype, trained_dtype(work.optim), work.tokens, scores)
    whole = sum(p.nbytes for p in model.parameters())
    if work.kernels.fp8_base and isinstance(model, PeftModel):
        store_in_fp8(model, torch.device("meta"))
    model.config.use_cache = False
    _check_rank(model, method)
    total, multiplied = _sizes(model)
    fast = install(
        model, work.kernels.model_copy(update={"loss": work.kernels.loss and not scores})
    )
    tables = []
    masks = work.kernels.lora and method.lora_dropout and any(map(is_known, model.modules()))
    if masks and not work.on_gpu:
        tables.append(dropout.table(method.lora_dropout, work.dtype))
    device = torch.device("cpu" if watch is None else "meta")
    with _on_processor() if watch is None else device:
        give_storages(model)
        if work.gradient_checkpointing:
            recompute_activations(model)
        live.add(storages(model))
        weights = live.live
        trained = [p for p in model.parameters() if p.requires_grad]
        state = _optimizer_state(trained, work.optim)
        live.add(state)
        load_peak = live.peak
        # A GPU is given the 8 bits of layer after layer.
        if work.kernels.fp8_base and not work.on_gpu:
            load_peak = max(load_peak, whole)
        resident = live.live
        live.add(tables)
        before = live.live
        if work.accumulates:
            for parameter in trained:
                parameter.grad = torch.empty_like(parameter)
            live.add(parameter.grad for parameter in trained)
        accumulated = live.live - before
        phases = _Phases(live, _objective(work, fast.head), watch, work.optimizer_in_backward)
        _head(model).register_forward_pre_hook(phases.at_head)
        for number, layer in enumerate(layers_of(model)):
            layer.register_forward_pre_hook(partial(phases.at_layer, number))
        optimizer = _Planned(trained, phases.at_update, work)
        if work.optimizer_in_backward:
            step_in_backward(optimizer)
        learner = _Learner(
            model,
            phases,
            optimizer,
            get_scheduler("constant", optimizer),
            device,
            work.dtype,
            max_grad_norm=0.0 if work.optimizer_in_backward else 1.0,
            steps_in_backward=work.optimizer_in_backward,
            read=_zeros if watch is None else watch.read,
        )
        with live, counter, watch or nullcontext():
            with torch.device("cpu"):
                batch = _batch(work, config.get_text_config().vocab_size)
            live.restart_peak()
            try:
                train_step(learner, [batch])
            except RuntimeError as error:  # an operation that has no fake form
                raise UserError(
                    f"the step of this {config.model_type} model cannot be simulated with float32 "
                    f"weights ({str(error).splitlines()[0]}); plan LoRA or QLoRA in bfloat16"
                ) from error
    cast = [tensor.untyped_storage().nbytes() for kept in casts_of(model) for tensor in kept.kept()]
    resident += sum(cast)
    weights += sum(cast)
    phases.cut(("step",))
    return Counted(
        peaks=phases.peaks,
        before_head=phases.before_head,
        figures={
            "weights": weights,
            "adapter": 0
            if method.name == "full"
            else sum(4 * p.numel() for p in trained) + sum(cast),
            "gradients": phases.gradients,
            "optimizer": resident - weights,
            "activations": phases.before_head - resident - accumulated,
            "load_peak": load_peak,
            "flops": counter.flops,
            "fp8_flops": counter.fp8_flops,
            "attention_flops": counter.attention_flops,
            "moved": counter.moved,
            "operations": counter.operations,
            "trainable": sum(p.numel() for p in trained),
            "parameters": total,
            "multiplied": multiplied,
        },
    )


@contextmanager
def _on_processor() -> Iterator[None]:
    with FakeTensorMode(allow_non_fake_inputs=True), switch.fake_cpu_is_gpu():
        yield


class _Learner(Learner):
    """On a device that stands for another, which autocast does not know."""

    def arithmetic(self) -> AbstractContextManager[None]:
        return arithmetic(torch.device("cpu"), self.dtype)


class _Phases:
    """An objective, and a look at what is alive as the step passes from piece to piece."""

    def __init__(
        self, live: LiveStorage, objective: Objective, watch: Watch | None, in_backward: bool
    ) -> None:
        self.live = live
        self.objective = objective
        self.watch = watch
        self.collate, self.count = objective.collate, objective.count
        self.before_head = self.gradients = self.passes = 0
        self.is_forward = True
        self.in_backward = in_backward  # updates are
        self.peaks: dict[Moment, int] = {}

    def cut(self, moment: Moment) -> None:
        """End the piece of this name."""
        self.peaks[moment] = max(self.peaks.get(moment, 0), self.live.peak)
        self.live.restart_peak()

    def at_layer(self, number: int, _: nn.Module, inputs: tuple[Any, ...]) -> None:
        if not self.is_forward:  # it is computed again
            return
        self.passes += number == 0
        self.cut(("forward", self.passes, number))
        if inputs and inputs[0].requires_grad:
            moment: Moment = ("backward", self.passes, number)
            inputs[0].register_hook(lambda _: self.cut(moment))

    def at_head(self, *_: Any) -> None:
        self.before_head = self.live.live

    def loss(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Parts]:
        if self.watch is not None:
            self.watch.counting = True
        found = self.objective.loss(model, batch)
        if self.watch is not None:
            found[0].register_hook(self.at_backward)
        self.is_forward = False
        self.cut(("forward",))
        return found

    def at_backward(self, _: Tensor) -> None:
        """Have the watch stop counting once the backward is through."""
        Variable._execution_engine.queue_callback(self.stop_counting)

    def stop_counting(self) -> None:
        assert self.watch is not None
        self.watch.counting = False

    def at_update(self, trained: Sequence[Tensor]) -> None:
        """All gradients are there, or the one that is used at once."""
        if not self.in_backward:
            self.cut(("backward",))
        storages = [p.grad.untyped_storage() for p in trained if p.grad is not None]
        self.gradients = sum({s._cdata: s.nbytes() for s in storages}.values())


class _Planned(torch.optim.Optimizer):
    """Stands for an optimiser whose state is counted apart."""

    def __init__(
        self,
        trained: Sequence[Tensor],
        at_update: Callable[[Sequence[Tensor]], None],
        work: Workload,
    ) -> None:
        super().__init__(trained, {"lr": 1.0})
        self.trained = trained
        self.at_update = at_update
        self.work = work

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        self.at_update(self.trained)
        sizes = [p.numel() for p in self.trained if p.grad is not None]
        torch.empty(_update_numbers(sizes, self.work.optim, self.work.on_gpu))


def _update_numbers(sizes: Sequence[int], optim: str, on_gpu: bool) -> int:
    """Float32 numbers that an update of tensors of ``sizes`` numbers needs for a moment.

    PyTorch's own operations go from tensor to tensor on a processor, and through all at once on a GPU.
    Adafactor goes from tensor to tensor on both; the other optimisers need nothing.
    """
    at_once = sum(sizes) if on_gpu else max(sizes, default=0)
    if optim == "sgd":  # gradients with the decayed weights added
        return at_once
    if optim == "adamw_torch":  # roots of the second moments, and those divided
        return at_once if on_gpu else 2 * at_once
    return 2 * max(sizes, default=0) if optim == "adafactor" else 0


def _zeros(figures: Tensor) -> list[float]:
    """What is read of tensors without values."""
    return [0.0] * figures.numel()


def _check_rank(model: PreTrainedModel | PeftModel, method: MethodGroup) -> None:
    config = model.config.get_text_config()
    # A router has as many outputs as there are experts: fewer than any sensible rank.
    experts = {getattr(config, key, None) for key in ("num_local_experts", "num_experts")}
    for name, module in model.named_modules():
        # A gate of one output, Qwen 2's for its shared expert, has rank 1 and is trained beside the others.
        if not isinstance(module, LoraLayer) or module.out_features in {1, *experts}:
            continue
        least = min(module.in_features, module.out_features)
        if method.lora_r > least:
            raise UserError(
                f"method.lora_r {method.lora_r} is larger than the layer "
                f"{name.removeprefix('base_model.model.')} ({module.in_features} x "
                f"{module.out_features}), whose rank is {least} at most; use {least} or less"
            )


def layers_of(model: nn.Module) -> Sequence[nn.Module]:
    """The decoder's layers, in order; none where they are not in one list."""
    body = inner(model)
    number = body.config.get_text_config().num_hidden_layers
    found = [m for m in body.modules() if isinstance(m, nn.ModuleList) and len(m) == number]
    return list(found[0]) if len(found) == 1 else []


def _head(model: nn.Module) -> Any:
    """The output layer: over words, or the one of a score."""
    return model.get_output_embeddings() or inner(model).score  # type: ignore[operator]


def _sizes(model: nn.Module) -> tuple[int, int]:
    """All numbers of ``model``, and those of them that a token is multiplied with."""
    tables = [m for m in model.modules() if isinstance(m, nn.Embedding)]
    embeddings = sum(m.weight.numel() for m in tables)
    base = [p for name, p in model.named_parameters() if "lora_" not in name]
    size = sum({id(p): p.numel() for p in base}.values())
    adapter = sum(p.numel() for name, p in model.named_parameters() if "lora_" in name)
    head = _head(model)
    tied = any(head.weight is table.weight for table in tables)
    return size + adapter, size - embeddings + (head.weight.numel() if tied else 0)


def _objective(work: Workload, head: HeadLoss | None) -> Objective:
    """That of a run; a plugin's is taken for supervised fine-tuning."""
    if work.objective.name not in OBJECTIVES:
        return SFT(head=head)
    reference = AdapterOff() if work.asks_reference else Stored({})
    return choose(work.objective, True, head, reference)


def _batch(work: Workload, words: int) -> Batch:
    kind, top_k = work.objective.learns_from, work.objective.top_k
    if kind == "answers":
        rows = _rows(work.lengths, work.supervised)
        if top_k is None:
            return rows
        k = min(top_k, words)
        ids = torch.zeros(work.supervised, k, dtype=torch.int32)
        return replace(rows, taught=Taught(ids, torch.zeros(work.supervised, k + 1)))
    halves = [half for length in work.lengths for half in (length - length // 2, length // 2)]
    if kind == "labels":
        real, others = halves[::2], halves[1::2]
        counted = -(-work.supervised // 2)
        mismatched = replace(
            _rows(others, counted), judged=Judged(reference=torch.zeros(len(others)))
        )
        judged = Judged(
            torch.zeros(len(real)), torch.zeros(len(real), dtype=torch.bool), mismatched=mismatched
        )
        return replace(_rows(real, counted), judged=judged)
    prompts = work.objective.name == "orpo"  # of chosen rows, which count too
    supervised = (work.supervised + sum(work.lengths)) // 2 if prompts else work.supervised
    judged = Judged(
        torch.zeros(len(halves)),
        answers=torch.zeros(supervised, dtype=torch.bool) if prompts else None,
    )
    return replace(_rows(halves, supervised), judged=judged)


def _rows(lengths: Sequence[int], supervised: int) -> Batch:
    total = sum(lengths)
    return Batch(
        input_ids=torch.zeros(1, total, dtype=torch.long),
        position_ids=torch.zeros(1, total, dtype=torch.long),
        labels=torch.zeros(1, total, dtype=torch.long),
        predicts=torch.zeros(supervised, dtype=torch.long),
        row_lengths=tuple(lengths),
    )


def _optimizer_state(trained: Sequence[torch.Tensor], optim: str) -> list[Any]:
    """What the optimiser keeps of each trained tensor (bytes per parameter: AdamW 8, adamw_bf16 4, 8-bit 2, SGD 0)."""
    if optim == "sgd":
        return []
    if optim == "adafactor":  # a row's and a column's mean of squares (Shazeer and Stern 2018)
        shapes = [p.shape for p in trained]
        return [torch.empty(n) for s in shapes for n in (s[:-1].numel(), s[:-2].numel() * s[-1])]
    kept: list[Any] = []
    for parameter in trained:
        count = parameter.numel()
        for _ in range(2):  # the means of gradients and of their squares
            if "8bit" in optim and count >= _8BIT_LEAST:
                kept.append(torch.empty(count, dtype=torch.uint8))
                kept.append(torch.empty(-(-count // _8BIT_BLOCK)))
            else:
                kept.append(torch.empty(count, dtype=trained_dtype(optim)))
    return kept
