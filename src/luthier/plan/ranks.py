"""Several processes: what each holds, what they send each other, and how long that takes.

Bytes are those that one rank sends. A ring of k ranks all-reduces S bytes by sending 2 (k-1)/k · S of
them in 2 (k-1) messages, and gathers or reduce-scatters them by half of both (Patarasuk and Yuan 2009,
"Bandwidth optimal all-reduce algorithms"; Thakur et al. 2005, section 4.5, has the term for messages).
What is sent follows Rajbhandari et al. 2020 (ZeRO, sections 5 and 7) and, for FSDP, Zhao et al. 2023
("PyTorch FSDP", section 3). On several machines the ring is as fast as its slowest link.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from luthier.models.dtype import trained_dtype
from luthier.plan.capacity import sharded_peak
from luthier.plan.catalogues import Accelerator
from luthier.plan.job import Job
from luthier.plan.simulate import Step
from luthier.records.plan import Plan, Range

Strategy = Literal["ddp", "zero2", "zero3", "fsdp2"]
STRATEGIES: tuple[Strategy, ...] = ("ddp", "zero2", "zero3", "fsdp2")

# Seconds of a message between ranks before its first byte: an assumption, and little beside the bytes
# until there are hundreds of ranks.
MESSAGE = 5e-6
_MOST = 1024  # ranks of a scaling table


@dataclass(frozen=True)
class Ranks:
    """``nproc`` ranks on each of ``nodes`` machines.

    Attributes:
        link, network: GB/s that a rank sends to another of its machine, and of another machine; None
            where that is unknown.
        message: seconds of a message before its first byte.
    """

    nproc: int
    nodes: int = 1
    link: float | None = None
    network: float | None = None
    message: float = MESSAGE

    @property
    def size(self) -> int:
        return self.nproc * self.nodes

    @property
    def bandwidth(self) -> float | None:
        """GB/s of the slowest link of a ring through all of them."""
        wires = ([self.link] if self.nproc > 1 else []) + ([self.network] if self.nodes > 1 else [])
        known = [wire for wire in wires if wire is not None]
        return min(known) if known and len(known) == len(wires) else None


@dataclass(frozen=True)
class Traffic:
    """What a rank sends in one optimiser step: bytes and messages."""

    bytes: float
    messages: int

    def seconds(self, ranks: Ranks) -> float | None:
        """How long it takes; None where a bandwidth is unknown."""
        if ranks.size == 1:
            return 0.0
        if ranks.bandwidth is None:
            return None
        return self.bytes / (ranks.bandwidth * 1e9) + self.messages * ranks.message


@dataclass(frozen=True)
class RankPlan:
    """One strategy on so many ranks.

    Attributes:
        peak: bytes of each rank at its peak, the framework included.
        computing: seconds of a step without communication, least and most; None where unknown.
        sending: seconds of communication in it.
        step: seconds of a step: all communication behind the computing, or none of it.
        efficiency: share of the speed of as many ranks that need not communicate, least and most.
    """

    strategy: Strategy
    ranks: int
    nodes: int
    peak: int
    fits: bool
    traffic: Traffic
    computing: Range | None
    sending: float | None
    step: Range | None
    tokens_per_second: Range | None
    efficiency: Range | None


def traffic(
    strategy: Strategy,
    weights: int,
    trained: int,
    size: int,
    layers: int,
    micro_batches: int,
    outside: int = 0,
) -> Traffic:
    """What one of ``size`` ranks sends in a step of ``micro_batches`` micro-batches.

    ddp: one all-reduce of the gradients, in the last micro-batch. zero2: in each micro-batch gradients
    reduced to where their states are, and once the updated weights gathered. zero3 and fsdp2: in each micro-batch the
    weights of each layer are gathered for the forward and again for the backward pass, and its
    gradients reduced to where they belong; fsdp2 keeps what is outside of the layers in between.

    Args:
        weights: bytes of all of them, as they are stored.
        trained: bytes of those that train, and of their gradients.
        outside: bytes of the weights outside of the layers: embedding and head.
    """
    if size == 1:
        return Traffic(0.0, 0)
    half = (size - 1) / size  # of a gathering, or of a reduction to parts
    if strategy == "ddp":
        buckets = max(1, math.ceil(trained / _BUCKET))
        return Traffic(2 * half * trained, 2 * (size - 1) * buckets)
    if strategy == "zero2":
        times = micro_batches + 1
        return Traffic(half * trained * times, (size - 1) * (layers + 1) * times)
    gathered = 2 * weights - (outside if strategy == "fsdp2" else 0)
    sent = half * (gathered + trained) * micro_batches
    return Traffic(sent, 3 * (size - 1) * (layers + 1) * micro_batches)


_BUCKET = 25 * 2**20  # bytes: DistributedDataParallel's bucket_cap_mb


def peak(strategy: Strategy, step: Step, size: int, job: Job) -> int:
    """Bytes of tensors on each rank.

    ddp: all of a step, and the gradients from its beginning on, for its buckets stay. zero2: gradients and
    states in parts (ZeRO, section 5.2). zero3 and fsdp2: weights, too; see ``sharded_peak``.
    """
    if size == 1:
        return step.peak
    if strategy == "ddp":
        kept = 0 if job.gradient_accumulation_steps > 1 else step.gradients
        return max(step.peak, step.forward_peak + kept)
    if strategy == "zero2":
        return step.peak - round((step.gradients + step.optimizer) * (1 - 1 / size))
    return sharded_peak(step, size, job.config.get_text_config())


def plan_ranks(
    job: Job,
    steps: tuple[Step, Step],
    computing: Range | None,
    ranks: Ranks,
    accelerator: Accelerator,
    framework: int,
    strategies: Sequence[Strategy] = STRATEGIES,
) -> Iterator[RankPlan]:
    """Each of ``strategies`` on ``ranks``, every one of which does the recipe's micro-batches.

    Args:
        steps: the job's ``steps_of_both``.
        computing: seconds of a step on one device, least and most.
    """
    largest, typical = steps
    config = job.config.get_text_config()
    layers = max(1, int(getattr(config, "num_hidden_layers", 1)))
    trained = trained_dtype(job.optim)
    stored = trained if job.method.name == "full" else job.dtype
    tables = 1 if config.tie_word_embeddings else 2
    outside = tables * config.vocab_size * config.hidden_size * stored.itemsize
    tokens = sum(job.typical) * job.gradient_accumulation_steps * ranks.size
    for strategy in strategies:
        sent = traffic(
            strategy,
            typical.weights,
            typical.trainable * trained.itemsize,
            ranks.size,
            layers,
            job.gradient_accumulation_steps,
            outside,
        )
        sending = sent.seconds(ranks)
        step: Range | None = None
        if computing is not None and sending is not None:
            step = max(computing[0], sending), computing[1] + sending
        needed = peak(strategy, largest, ranks.size, job) + framework
        yield RankPlan(
            strategy=strategy,
            ranks=ranks.size,
            nodes=ranks.nodes,
            peak=needed,
            fits=needed <= accelerator.bytes,
            traffic=sent,
            computing=computing,
            sending=sending,
            step=step,
            tokens_per_second=(tokens / step[1], tokens / step[0]) if step else None,
            efficiency=_efficiency(computing, sending),
        )


def seconds_of_a_step(plan: Plan) -> Range | None:
    """Of one optimiser step on one device, least and most."""
    if plan.seconds is None:
        return None
    least, most = (seconds / plan.work.steps for seconds in plan.seconds)
    return least, most


def _efficiency(computing: Range | None, sending: float | None) -> Range | None:
    """Least: nothing overlaps and the computing is fast; most: all overlaps and it is slow."""
    if computing is None or sending is None:
        return None
    least = computing[0] / (computing[0] + sending)
    most = computing[1] / max(computing[1], sending)
    return least, most


def sizes(ranks: Ranks) -> Iterator[Ranks]:
    """1, 2, 4 … 1,024 ranks, on as few machines of ``nproc`` as they need."""
    for size in (2**power for power in range(int(math.log2(_MOST)) + 1)):
        nodes = math.ceil(size / ranks.nproc)
        here = min(size, ranks.nproc)
        yield Ranks(here, nodes, ranks.link, ranks.network, ranks.message)
