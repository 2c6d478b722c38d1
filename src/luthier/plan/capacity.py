"""What fits: the most tokens a device has room for, and what to change if a job does not fit."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from luthier.errors import UserError
from luthier.kernels.head import positions_at_once
from luthier.plan.catalogues import Accelerator
from luthier.plan.estimate import memory_of
from luthier.plan.job import Job
from luthier.plan.machine import framework_bytes
from luthier.plan.simulate import Step
from luthier.recipe import MethodName

_SIZES = (256, 1024, 4096)  # tokens of the micro-batches that are simulated
_LAST = 2**19  # nobody needs more than half a million tokens per micro-batch
_MOST_GPUS = 64
_LEAST_SAVED = 0.01  # of the peak, for a change to be worth making


@dataclass(frozen=True)
class Capacity:
    """Room on one device.

    Attributes:
        tokens: most tokens of one micro-batch; 0 where not even the weights fit.
        rows: how many rows of the job's length that is.
        sequence: longest single row, no longer than the model can read.
    """

    device: str
    tokens: int
    rows: int
    sequence: int


def capacities(job: Job, devices: Sequence[Accelerator]) -> list[Capacity]:
    """Room for ``job`` on each of ``devices``.

    A step of one row is simulated at a few sizes. Between two of them the peak is taken from the
    straight line that joins them, beyond the last from the parabola through the last three: memory
    is linear in tokens, but for a mask over pairs where a model needs one.
    """
    row = max(job.largest)
    peaks = {}
    for on_gpu in {not device.is_cpu for device in devices}:
        there = replace(job, on_gpu=on_gpu)
        sizes = _sizes(there)
        peaks[on_gpu] = sizes, [there.step([tokens]).peak for tokens in sizes]
    found = []
    for device in devices:
        room = device.bytes - framework_bytes(device)
        fitting = _invert(*peaks[not device.is_cpu], room)
        longest = min(fitting // job.objective.together, job.positions or fitting)
        found.append(Capacity(device.name, fitting, fitting // row, longest))
    return found


def _sizes(job: Job) -> list[int]:
    """``_SIZES``, and where the head's first piece is full: from there on logits take no more memory."""
    words = job.config.get_text_config().vocab_size
    full = math.ceil(positions_at_once(words, job.on_gpu) / job.supervised)
    return sorted({*_SIZES, full} if _SIZES[0] < full < _SIZES[-1] else _SIZES)


def _invert(sizes: Sequence[int], peaks: Sequence[int], room: int) -> int:
    """Most tokens whose peak is no more than ``room``."""
    if room < peaks[0]:
        return 0
    for i in range(len(sizes) - 1):
        if room < peaks[i + 1]:
            share = (room - peaks[i]) / (peaks[i + 1] - peaks[i])
            return int(sizes[i] + share * (sizes[i + 1] - sizes[i]))
    (s1, s2, s3), (p1, p2, p3) = sizes[-3:], peaks[-3:]
    before, slope = (p2 - p1) / (s2 - s1), (p3 - p2) / (s3 - s2)
    bend = max(0.0, (slope - before) / (s3 - s1))
    # p3 + (slope + bend (s3 - s2)) d + bend d² = room, for d tokens more than the last size.
    first, rest = slope + bend * (s3 - s2), room - p3
    more = 2 * rest / (first + math.sqrt(first**2 + 4 * bend * rest))
    return min(_LAST, int(s3 + more))


@dataclass(frozen=True)
class Change:
    """One change that makes a job fit, on top of those before it (methods begin anew)."""

    what: str
    setting: str
    peak: int
    fits: bool


_Try = tuple[str, str, Callable[[Job], Job]]  # what, how it is set, and the job with it


def changes_to_fit(job: Job, accelerator: Accelerator) -> list[Change]:
    """Changes in order of what they cost, until one fits; the last says whether it does.

    Recomputation costs a third more work and nothing in quality, small micro-batches cost speed, an
    8-bit optimiser nothing that was ever measured, an adapter perhaps quality, more GPUs money. What saves
    less than ``_LEAST_SAVED`` of the peak is left as it is, unless the job fits by it.
    """
    search = _Search(job, accelerator)
    if search.settings(_settings(job, accelerator)) or search.methods():
        return search.tried
    # More GPUs: the asked method, with all that costs no quality.
    framework = framework_bytes(accelerator)
    sparing = replace(job, gradient_checkpointing=True).with_rows(1)
    step = sparing.step(sparing.largest)
    for gpus in (2**k for k in range(1, int(math.log2(_MOST_GPUS)) + 1)):
        peak = sharded_peak(step, gpus, job.config.get_text_config()) + framework
        search.add(f"{gpus} of them, sharded (FSDP)", f"{gpus} GPUs", peak)
        if search.tried[-1].fits:
            break
    return search.tried


class _Search:
    """Changes to ``job``, which becomes what it is with those that were ``tried``."""

    def __init__(self, job: Job, accelerator: Accelerator) -> None:
        self.job = job
        self.accelerator = accelerator
        self.peak = self._peak(job)
        self.tried: list[Change] = []

    def _peak(self, job: Job) -> int:
        return memory_of(job.step(job.largest), framework_bytes(self.accelerator)).peak

    def add(self, what: str, setting: str, peak: int) -> None:
        self.tried.append(Change(what, setting, peak, peak <= self.accelerator.bytes))

    def _take(self, what: str, setting: str, changed: Job, peak: int) -> None:
        self.job, self.peak = changed, peak
        self.add(what, setting, peak)

    def settings(self, each: Sequence[_Try]) -> bool:
        """Take those that save something, and where they are not enough the others too; whether it fits."""
        left: list[_Try] = []
        for what, setting, change in each:
            changed = change(self.job)
            try:
                peak = self._peak(changed)
            except UserError:  # it is not for this model
                continue
            left = [other for other in left if _key(other[1]) != _key(setting)]
            if peak > self.accelerator.bytes and self.peak - peak < _LEAST_SAVED * self.peak:
                left.append((what, setting, change))
                continue
            self._take(what, setting, changed, peak)
            if self.tried[-1].fits:
                return True
        together = self.job
        for *_, change in left:
            together = change(together)
        if self._peak(together) > self.accelerator.bytes:
            return False
        for what, setting, change in left:
            changed = change(self.job)
            self._take(what, setting, changed, self._peak(changed))
            if self.tried[-1].fits:
                break
        return True

    def methods(self) -> bool:
        """Take a method that needs less, where the base's weights can be trained on by it."""
        asked = self.job.method.name
        others: dict[MethodName, tuple[MethodName, ...]]
        others = {"full": ("lora", "qlora"), "lora": ("qlora",), "qlora": ()}
        for name in others[asked]:
            changed = self.job.with_method(name)
            try:
                changed.check_base()
            except UserError:
                continue
            peak = self._peak(changed)
            self._take(
                f"{name} instead of {asked}", _method(name, self.job, changed), changed, peak
            )
            if self.tried[-1].fits:
                return True
        return False


def _method(name: MethodName, before: Job, after: Job) -> str:
    """How a method is set, with what was set for the one before and does not go with it."""
    setting = f"method.name={name}"
    if after.optim != before.optim:
        setting += f" train.optim={after.optim}"
    if before.kernels.fp8_base and not after.kernels.fp8_base:
        setting += " kernels.fp8_base=false"
    return setting


def _key(setting: str) -> str:
    """The first key that a change sets."""
    return setting.partition("=")[0]


def _settings(job: Job, accelerator: Accelerator) -> list[_Try]:
    """What may be set otherwise on ``accelerator`` under the method that was asked for."""
    found: list[_Try] = []
    if not job.gradient_checkpointing:
        found.append(
            (
                "recompute activations",
                "train.gradient_checkpointing=true",
                lambda j: replace(j, gradient_checkpointing=True),
            )
        )
    if job.method.name == "qlora" and job.kernels.keep_expanded:
        found.append(
            (
                "expand 4-bit weights once more in the backward pass",
                "kernels.keep_expanded=false",
                lambda j: replace(j, kernels=j.kernels.model_copy(update={"keep_expanded": False})),
            )
        )
    rows = len(job.largest)
    while rows > 1:
        rows = max(1, rows // 2)
        accumulation = math.ceil(job.gradient_accumulation_steps * len(job.largest) / rows)
        found.append(
            (
                f"micro-batches of {rows}",
                f"train.per_device_train_batch_size={rows} "
                f"train.gradient_accumulation_steps={accumulation}",
                lambda j, rows=rows: j.with_rows(rows),  # type: ignore[misc]
            )
        )
    if "8bit" not in job.optim:
        found.append(
            (
                "8-bit paged optimiser",
                "train.optim=paged_adamw_8bit",
                lambda j: replace(j, optim="paged_adamw_8bit"),
            )
        )
    if job.method.name == "full" and job.optim != "adamw_bf16":
        found.append(
            (
                "bfloat16 weights and states, rounded stochastically",
                "train.optim=adamw_bf16",
                lambda j: replace(j, optim="adamw_bf16"),
            )
        )
    method, kernels = job.method, job.kernels
    plain = method.init_lora_weights in (True, "gaussian") and not method.use_dora
    wide = method.name == "lora" and plain and kernels.lora and not kernels.fp8_base
    if wide and accelerator.float8:
        found.append(
            (
                "frozen weights in 8 bits",
                "kernels.fp8_base=true",
                lambda j: replace(j, kernels=j.kernels.model_copy(update={"fp8_base": True})),
            )
        )
    return found


def sharded_peak(step: Step, gpus: int, config: object) -> int:
    """Bytes on each of ``gpus`` devices when weights, gradients and states are split over them.

    ZeRO stage 3, as FSDP does it (Rajbhandari et al. 2020, section 5): 1/k of what stays, all that
    a micro-batch leaves, and the weights of two layers gathered whole, the one that computes and
    the next.
    """
    layers = max(1, int(getattr(config, "num_hidden_layers", 1)))
    stays = (step.weights + step.optimizer + step.gradients) / gpus
    passing = step.activations + step.logits
    return round(stays + passing + 2 * step.weights / layers)
