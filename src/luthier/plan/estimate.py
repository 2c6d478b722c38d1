"""The plan of a job: memory, time, money and energy, as plan.json holds them."""

from luthier.plan.calibrate import Calibration
from luthier.plan.catalogues import Accelerator
from luthier.plan.job import Job
from luthier.plan.machine import framework_bytes
from luthier.plan.rates import stated_seconds, work
from luthier.plan.simulate import Step
from luthier.records.plan import Memory, Plan, Range, Work


def make_plan(
    job: Job,
    accelerator: Accelerator,
    calibration: Calibration | None = None,
    framework: int | None = None,
    steps: tuple[Step, Step] | None = None,
) -> Plan:
    """Simulate ``job`` and predict what it takes on ``accelerator``.

    Args:
        calibration: measured rates, where ``accelerator`` is the machine they are of.
        framework: bytes of the process before the first tensor, where they are known.
        steps: its ``steps_of_both``, where they were simulated before.

    Raises:
        UserError: the model cannot be planned for; see ``simulate``.
    """
    largest, typical = steps or job.steps_of_both()
    memory = memory_of(largest, framework_bytes(accelerator) if framework is None else framework)
    done = _work(job, typical)
    dtype = str(job.dtype).removeprefix("torch.")
    seconds: Range | None
    if calibration is not None and calibration.dtype == dtype:
        micro = work(typical, job.optim, 1 / job.gradient_accumulation_steps)
        took = calibration.rates.of(micro) * job.tokens_of_work / sum(job.typical)
        seconds = (took, took)
        basis = f"calibrated on this machine ({calibration.measured})"
    else:
        in_fp8 = typical.fp8_flops / typical.flops
        seconds = stated_seconds(done.flops, accelerator, job.method.name, dtype, in_fp8)
        basis = "a range by the device's data sheet" if seconds else "unknown: not calibrated"
        if seconds and in_fp8 and accelerator.float8:
            basis += ", 8-bit products by their own peak (never measured)"
    return Plan(
        model=job.model,
        method=job.method.name,
        dtype=dtype,
        optim=job.optim,
        gradient_checkpointing=job.gradient_checkpointing,
        rows=len(job.typical),
        gradient_accumulation_steps=job.gradient_accumulation_steps,
        largest_batch_tokens=sum(job.largest),
        trainable_parameters=largest.trainable,
        total_parameters=largest.parameters,
        device=accelerator.name,
        device_bytes=accelerator.bytes,
        fits=memory.peak <= accelerator.bytes,
        memory=memory,
        work=done,
        seconds=seconds,
        tokens_per_second=(job.tokens / seconds[1], job.tokens / seconds[0]) if seconds else None,
        cost=_times(seconds, accelerator.price_per_hour, 3600),
        energy=_times(seconds, accelerator.watts, 3.6e6),
        basis=basis,
        reference=_teacher(job, largest, memory) or job.reference,
    )


def _teacher(job: Job, step: Step, memory: Memory) -> str | None:
    """What a teacher takes, in words: its file, its work, and memory where that is more than a step's."""
    top_k = job.objective.top_k
    if top_k is None:
        return None
    k = min(top_k, job.config.get_text_config().vocab_size)
    kept = job.taught * (8 * k + 4) / 2**20
    # A forward is 2N operations a token, a step 6N or 4N of the student's.
    passes = 6 if job.method.name == "full" else 4
    epochs = 2 * job.teacher_parameters / (passes * step.multiplied)
    text = (
        f"the teacher {job.objective.teacher}, asked once before the first step: the work of "
        f"{epochs:.1f} epochs; its top {k} of {job.taught:,} tokens take {kept:,.1f} MiB of the run folder"
    )
    loaded = memory.framework + step.weights + job.teacher_parameters * job.dtype.itemsize
    if loaded > memory.peak:
        text += f"; loading it beside the model needs about {loaded / 2**30:.2f} GiB, more than the steps"
    return text


def memory_of(step: Step, framework: int) -> Memory:
    """The memory of a step, with the framework's on top."""
    parts = {
        "weights": step.weights - step.adapter,
        "adapter": step.adapter,
        "gradients": step.gradients,
        "optimizer": step.optimizer,
        "activations": step.activations,
        "logits_and_loss": step.logits,
        "temporary": step.temporary,
    }
    phases = {
        "load": step.load_peak,
        "forward": step.forward_peak,
        "backward": step.backward_peak,
        "step": step.step_peak,
    }
    with_framework = {name: size + framework for name, size in phases.items()}
    return Memory(
        parts=parts, phases=with_framework, framework=framework, peak=step.peak + framework
    )


def _work(job: Job, typical: Step) -> Work:
    tokens = sum(job.typical)
    per_token = typical.flops / tokens
    passes = 6 if job.method.name == "full" else 4
    return Work(
        tokens=job.tokens,
        steps=job.steps,
        flops=per_token * job.tokens_of_work,
        flops_per_token=per_token,
        attention_share=typical.attention_flops / typical.flops,
        by_rule=passes * typical.multiplied * job.tokens,
    )


def _times(seconds: Range | None, rate: float | None, divisor: float) -> Range | None:
    if seconds is None or rate is None:
        return None
    return seconds[0] * rate / divisor, seconds[1] * rate / divisor
