"""How fast this machine trains: a minute of real steps of small random models."""

import json
import platform
import statistics
import tempfile
import time
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from luthier.data.batches import Batch
from luthier.events import OnEvent, ignore, tracked
from luthier.files import write_json
from luthier.kernels.fast import install
from luthier.models.adapters import attach_adapter
from luthier.models.dtype import pick_device, pick_dtype
from luthier.models.load import load_model, quantization
from luthier.models.pull import cache_folder
from luthier.objectives.sft import SFT
from luthier.plan.rates import Rates, Units, fit_rates, work
from luthier.plan.simulate import Workload, simulate
from luthier.recipe import KernelsGroup, MethodGroup, MethodName, TrainGroup
from luthier.runtime import keep_freed_memory
from luthier.train.loop import Learner, train_step
from luthier.train.optimizers import make_optimizer, make_scheduler
from luthier.train.setup import recompute_activations

_WARM_UP, _REPEATS = 2, 7


@dataclass(frozen=True)
class Sample:
    """One kind of step that is timed; ``width`` is the model's hidden size."""

    width: int
    layers: int
    vocabulary: int
    method: MethodName
    tokens: int
    gradient_checkpointing: bool = False


# Chosen to tell the kinds of work apart: wide and narrow layers, short and long batches, a large
# and a small head, and what each method does besides the matrix products.
_SAMPLES = (
    Sample(576, 6, 4096, "full", 256),
    Sample(576, 6, 32768, "full", 512, True),
    Sample(576, 6, 4096, "lora", 128),
    Sample(576, 6, 32768, "lora", 512),
    Sample(576, 6, 4096, "lora", 1536),
    Sample(1024, 4, 4096, "full", 512),
    Sample(1024, 4, 16384, "lora", 256, True),
    Sample(576, 6, 4096, "qlora", 512),
    Sample(1024, 4, 16384, "qlora", 256),
    Sample(576, 6, 4096, "qlora", 128),
)


@dataclass(frozen=True)
class Calibration:
    """Time per unit of work on this machine; ``error``: the samples' median relative error."""

    dtype: str
    rates: Rates
    error: float
    measured: str


def calibration_path(dtype: torch.dtype) -> Path:
    """Where the figures are kept: apart for each device, thread count and version of torch."""
    device = pick_device()
    where = torch.cuda.get_device_name() if device.type == "cuda" else platform.machine()
    name = f"{where}-{torch.get_num_threads()}-{torch.__version__}-{dtype}".replace(" ", "_")
    return cache_folder() / "calibration" / f"{name.replace('/', '_')}.json"


def load_calibration(dtype: torch.dtype) -> Calibration | None:
    """What ``calibrate`` measured on this machine earlier, if it did."""
    path = calibration_path(dtype)
    if not path.is_file():
        return None
    found = json.loads(path.read_text("utf-8"))
    return Calibration(**{**found, "rates": Rates(**found["rates"])})


def calibrate(on_event: OnEvent = ignore) -> Calibration:
    """Time real steps on this machine in the dtype it trains in, and keep the rates."""
    device = pick_device()
    dtype = pick_dtype(device)
    keep_freed_memory()
    rows: list[Units] = []
    seconds: list[float] = []
    for sample in tracked(_SAMPLES, "calibrating", on_event, len(_SAMPLES), "samples"):
        units, took = _measure(sample, device, dtype)
        rows.append(units)
        seconds.append(took)
    rates = fit_rates(rows, seconds)
    errors = [abs(rates.of(u) / took - 1) for u, took in zip(rows, seconds, strict=True)]
    name = str(dtype).removeprefix("torch.")
    found = Calibration(name, rates, statistics.median(errors), date.today().isoformat())
    path = calibration_path(dtype)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, asdict(found))
    return found


def _measure(sample: Sample, device: torch.device, dtype: torch.dtype) -> tuple[Units, float]:
    """The work of a step as ``fit_rates`` takes it, and the seconds it took."""
    config = LlamaConfig(
        vocab_size=sample.vocabulary,
        hidden_size=sample.width,
        intermediate_size=sample.width * 8 // 3 // 64 * 64,
        num_hidden_layers=sample.layers,
        num_attention_heads=sample.width // 64,
        num_key_value_heads=sample.width // 64,
        tie_word_embeddings=True,
        use_cache=False,
    )
    method = MethodGroup(name=sample.method)
    optim = "adamw_8bit" if sample.method == "qlora" else "adamw_torch_fused"
    lengths = [sample.tokens // 2] * 2
    supervised = sample.tokens // 2
    step = simulate(
        config,
        method,
        Workload(
            lengths,
            supervised,
            dtype,
            optim,
            sample.gradient_checkpointing,
            on_gpu=device.type == "cuda",
        ),
    )
    model = _build(config, method, device, dtype)
    head = install(model, KernelsGroup()).head
    if sample.gradient_checkpointing:
        recompute_activations(model)
    train = TrainGroup(learning_rate=1e-5, weight_decay=0.0, warmup_ratio=0.0)
    optimizer = make_optimizer(model, train, optim)
    learner = Learner(
        model,
        SFT(head=head),
        optimizer,
        make_scheduler(optimizer, train, _WARM_UP + _REPEATS),
        device,
        dtype,
        max_grad_norm=1.0,
    )
    # One shape of batch: what a new one costs is shared by all layers, and these models have few.
    batch = _random_batch(sample, lengths, supervised, device)
    times = []
    for _ in range(_WARM_UP + _REPEATS):
        begin = _now(device)
        train_step(learner, [batch])
        times.append(_now(device) - begin)
    return work(step, optim), statistics.median(times[_WARM_UP:])


def _random_batch(
    sample: Sample, lengths: list[int], supervised: int, device: torch.device
) -> Batch:
    """Rows of random tokens, so many of which count."""
    tokens = torch.randint(sample.vocabulary, (1, sum(lengths)))
    batch = Batch(
        input_ids=tokens,
        position_ids=torch.cat([torch.arange(n) for n in lengths])[None],
        labels=tokens,
        predicts=torch.arange(supervised),
        row_lengths=tuple(lengths),
    )
    return batch.to(device)


def _build(
    config: LlamaConfig, method: MethodGroup, device: torch.device, dtype: torch.dtype
) -> Any:
    whole = method.name == "full"
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32 if whole else dtype)
    if method.name == "qlora":  # 4-bit weights are made when loading
        with tempfile.TemporaryDirectory() as folder:
            model.save_pretrained(folder)
            model = load_model(
                Path(folder), dtype, quantization=quantization(method, dtype), device=device
            )
    model = model.to(device)
    return model.train() if whole else attach_adapter(model, method).train()


def _now(device: torch.device) -> float:
    if device.type != "cpu":
        torch.accelerator.synchronize()
    return time.perf_counter()
