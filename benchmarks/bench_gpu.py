"""On a GPU: tokens a second, peak memory and utilisation of 8B and 1B models, against peers; and checks.

    make bench-gpu
    python benchmarks/bench_gpu.py [--minutes 18] [--sizes 8b,1b] [--methods lora,qlora,full] [--out build/gpu]

It needs no network and no weights: models are random, of Llama's shapes, made on the card. Parts run in the
order of what they tell, each in a process of its own, which is ended when it takes too long; what fails or is
not reached is said and stops nothing. After each part all that was found is in OUT/bench_gpu.json, and
as tables in OUT/bench_gpu.txt. Tokens are random, in bfloat16. Peers: Transformers + PEFT; with Liger's
kernels where `liger-kernel` is installed; Unsloth where `unsloth` is. Utilisation is of the model's own
operations (recomputation not counted) over the data sheet's dense peak; "peak/plan" is CUDA's peak of our
step over what `luthier plan` foretells. Checks are those of `gpu_checks.py`. Without a GPU: nothing, and it
says so; `--device cpu --sizes tiny` runs all of it in little.
"""

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from importlib.util import find_spec
from io import StringIO
from pathlib import Path
from typing import Any

import torch
from bench_step import Side, our_side, peers_side, step
from gpu_checks import CHECKS, allow_older_pytorch
from rich.console import Console
from rich.table import Table
from torch import nn
from transformers import AutoModelForCausalLM, LlamaConfig

from luthier import runtime
from luthier.data.batches import Batch
from luthier.files import write_json, write_text
from luthier.kernels.fp8_base import store_in_fp8
from luthier.models.adapters import attach_adapter
from luthier.plan.catalogues import card_named
from luthier.plan.depth import step_by_layers
from luthier.plan.simulate import Step, Workload
from luthier.recipe import KernelsGroup, MethodGroup
from luthier.train.setup import recompute_activations

SIZES: dict[str, dict[str, int]] = {
    "1b": {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16},
    "8b": {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32},
    "tiny": {"hidden_size": 1024, "intermediate_size": 128, "num_hidden_layers": 2},
}
FP8 = "luthier, FP8"  # kernels.fp8_base, of LoRA
PEERS = {
    "luthier": "torch",
    FP8: "torch",
    "peft": "peft",
    "liger": "liger_kernel",
    "unsloth": "unsloth",
}
OPTIM = {"full": "adamw_bf16", "lora": "adamw_torch_fused", "qlora": "adamw_torch_fused"}
DTYPE = torch.bfloat16
_WARM, _TIMED = 3, 8  # steps
_LEAST = 20.0  # seconds, without which no part is begun
_MOST = {"speed": 240.0, "check": 150.0}  # seconds of a part


@dataclass(frozen=True)
class Case:
    """A micro-batch of ``rows`` of ``length`` tokens."""

    rows: int
    length: int
    recomputes: bool

    @property
    def tokens(self) -> int:
        return self.rows * self.length

    def __str__(self) -> str:
        return f"{self.rows} x {self.length}{', recomputes' if self.recomputes else ''}"


def cases(size: str, method: str) -> list[Case]:
    """Those that recompute last: a model does not go back. 8B whole fits no card of 80 GB without."""
    if size == "tiny":
        return [Case(2, 24, False), Case(1, 24, True)]
    if method == "full":
        kept = [Case(4, 2048, False)] if size == "1b" else []
        return [*kept, Case(1, 4096, True), Case(4, 2048, True)]
    return [Case(4, 2048, False), Case(1, 4096, False), Case(4, 2048, True)]


def config_of(size: str) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=512 if size == "tiny" else 128_256,
        num_attention_heads=32,
        num_key_value_heads=8,
        head_dim=SIZES[size]["hidden_size"] // 32,
        max_position_embeddings=16_384,
        rope_parameters={"rope_type": "default", "rope_theta": 500_000.0},
        tie_word_embeddings=size != "8b",
        use_cache=False,
        **SIZES[size],
    )


def side_of(who: str, size: str, method: MethodGroup, device: torch.device) -> tuple[Side, Any]:
    """Who trains, and the model; it does not recompute yet."""
    if who == "unsloth":
        return unsloth(size, method)
    if who == "liger":
        from liger_kernel.transformers import apply_liger_kernel_to_llama

        apply_liger_kernel_to_llama()
    with device:
        model: Any = AutoModelForCausalLM.from_config(config_of(size), dtype=DTYPE)
    if method.name == "qlora":
        quantise(model, method, device)
    if method.name != "full":
        model = attach_adapter(model, method)
    if who == FP8:
        store_in_fp8(model, device)
    model.train()
    trained = [p for p in model.parameters() if p.requires_grad]
    if who in ("luthier", FP8):
        return our_side(model, optimizer_of(trained, method), DTYPE), model
    return peers_side(model, optimizer_of(trained, method), DTYPE, hugging_face(model)), model


def quantise(model: Any, method: MethodGroup, device: torch.device) -> None:
    """Layer by layer where they are; loading from a file would take longer than all that is measured."""
    from bitsandbytes.nn import Linear4bit, Params4bit

    kinds = {
        "quant_type": method.bnb_4bit_quant_type,
        "compress_statistics": method.bnb_4bit_use_double_quant,
    }
    for name, layer in list(model.named_modules()):
        if not isinstance(layer, nn.Linear) or name == "lm_head":
            continue
        with torch.device("meta"):
            new = Linear4bit(layer.in_features, layer.out_features, False, DTYPE, **kinds)
        new.weight = Params4bit(layer.weight.data, requires_grad=False, **kinds)
        new.support_avx512bf16_for_cpu = False
        model.set_submodule(name, new.to(device))
    model.is_loaded_in_4bit = True


def optimizer_of(trained: list[Any], method: MethodGroup) -> torch.optim.Optimizer:
    if method.name == "full":
        from luthier.train.bf16_adamw import BF16AdamW

        return BF16AdamW(trained, lr=1e-5)
    return torch.optim.AdamW(trained, lr=1e-5, fused=True)


def hugging_face(model: Any) -> Any:
    def loss(batch: Batch) -> Any:
        ids = batch.input_ids.view(len(batch.row_lengths), -1)
        return model(input_ids=ids, labels=ids).loss

    return loss


def unsloth(size: str, method: MethodGroup) -> tuple[Side, Any]:
    from unsloth import FastLanguageModel

    sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
    from families import CHAT_FAMILIES, make_tokenizer

    with tempfile.TemporaryDirectory() as folder:  # it takes nothing but files
        with torch.device("cuda"):
            AutoModelForCausalLM.from_config(config_of(size), dtype=DTYPE).save_pretrained(folder)
        make_tokenizer(CHAT_FAMILIES["chatml"]).save_pretrained(folder)
        torch.cuda.empty_cache()
        model, _ = FastLanguageModel.from_pretrained(
            folder, max_seq_length=4096, load_in_4bit=method.name == "qlora",
            dtype=DTYPE, full_finetuning=method.name == "full",
        )  # fmt: skip
    if method.name != "full":
        names = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
        model = FastLanguageModel.get_peft_model(
            model, r=method.lora_r, lora_alpha=method.lora_alpha, target_modules=names,
            use_gradient_checkpointing=False,
        )  # fmt: skip
    trained = [p for p in model.parameters() if p.requires_grad]
    return peers_side(model, optimizer_of(trained, method), DTYPE, hugging_face(model)), model


def measure(who: str, size: str, method: MethodGroup, device: torch.device) -> None:
    """Print a line of JSON for each case, as soon as it is known."""
    allow_older_pytorch()
    side, model = side_of(who, size, method, device)
    on_gpu = device.type == "cuda"
    for case in cases(size, method.name):
        if case.recomputes:
            recompute_activations(model)
        said: dict[str, Any] = asdict(case)
        try:
            batch = batch_of(case, size).to(device)
            for _ in range(_WARM):
                step(side, batch)
            if on_gpu:
                torch.cuda.reset_peak_memory_stats()
            said["seconds"] = statistics.median(step(side, batch)[0] for _ in range(_TIMED))
            said["peak"] = torch.cuda.max_memory_allocated() if on_gpu else None
        except torch.OutOfMemoryError:
            said["failed"] = "out of memory"
        if "failed" in said:  # out of the handler, whose traceback holds the step's tensors
            for parameter in model.parameters():
                parameter.grad = None
            torch.cuda.empty_cache()
        print(json.dumps(said), flush=True)


def batch_of(case: Case, size: str) -> Batch:
    """All rows end to end; all tokens count but the last of each row."""
    ids = torch.randint(config_of(size).vocab_size, (1, case.tokens))
    places = torch.arange(case.tokens).view(case.rows, -1)
    return Batch(
        input_ids=ids,
        position_ids=torch.arange(case.length).repeat(1, case.rows),
        labels=ids,
        predicts=places[:, :-1].flatten(),
        row_lengths=(case.length,) * case.rows,
    )


def planned(size: str, method: str, case: Case, who: str) -> tuple[Step, int]:
    """The step as it is planned, and the operations that it needs without recomputation."""
    lengths, supervised = [case.length] * case.rows, case.tokens - case.rows
    work = Workload(
        lengths, supervised, DTYPE, OPTIM[method],
        kernels=KernelsGroup(fp8_base=who == FP8), on_gpu=True,
    )  # fmt: skip
    recomputing, plain = (
        step_by_layers(
            config_of(size),
            MethodGroup(name=method),  # type: ignore[arg-type]
            replace(work, gradient_checkpointing=recomputes),
        )
        for recomputes in (case.recomputes, False)
    )
    return recomputing, plain.flops


def peak_rate() -> float | None:
    """Dense bfloat16 operations a second of this GPU, where the catalogue knows it."""
    if not torch.cuda.is_available():
        return None
    memory = torch.cuda.get_device_properties(0).total_memory / 2**30
    found = card_named(torch.cuda.get_device_name(), memory)
    tflops = found.tflops("bfloat16") if found is not None else None
    return None if tflops is None else tflops * 1e12


class Bench:
    """What was found so far, which is written after each part."""

    def __init__(self, device: str, out: Path, minutes: float) -> None:
        self.device, self.out = device, out
        self.until = time.monotonic() + 60 * minutes
        card = torch.cuda.get_device_name() if device == "cuda" else device
        self.found: dict[str, Any] = {
            "device": card,
            "torch": torch.__version__,
            "rate": peak_rate(),
        }
        self.speed: list[dict[str, Any]] = []
        self.checks: list[dict[str, Any]] = []
        self.messages: dict[str, list[str]] = {}
        self._planned: dict[tuple[str, str, Case, str], tuple[Step, int] | None] = {}

    def speed_of(self, size: str, method: str, who: str) -> None:
        asked = ["--one", who, size, method]
        each_case = cases(size, method)
        lines, trouble, took = self._run(
            [__file__, "--device", self.device, *asked],
            "speed",
            lambda: [self.planned(size, method, case, who) for case in each_case],
        )
        told = {"size": size, "method": method, "who": who, "part_seconds": round(took, 1)}
        measured = [json.loads(line) for line in lines if line.startswith("{")]
        for each, case in zip(measured, each_case):  # noqa: B905  # it may have been ended
            if "seconds" in each:
                each["tokens_per_second"] = case.tokens / each["seconds"]
                if (plan := self.planned(size, method, case, who)) is not None:
                    foretold, needed = plan
                    each["flops"] = needed / each["seconds"]
                    each["planned_peak"] = foretold.peak
        if len(measured) < len(each_case):
            measured.append({"failed": trouble or "no answer"})
        self.speed += [{**told, **each} for each in measured]
        self.save()

    def planned(self, size: str, method: str, case: Case, who: str) -> tuple[Step, int] | None:
        """None where it cannot be planned: what is measured is measured all the same."""
        key = size, method, case, who if who == FP8 else ""  # the others are held to ours
        if key not in self._planned:
            try:
                self._planned[key] = planned(size, method, case, who)
            except Exception as error:
                self._planned[key] = None
                self.messages[f"plan of {size} {method} {case}"] = [f"{error}"[:300]]
        return self._planned[key]

    def check(self, name: str) -> None:
        script, out = str(Path(__file__).with_name("gpu_checks.py")), str(self.out)
        asked = ["--only", name, "--device", self.device, "--out", out, "--seconds", "100"]
        lines, trouble, took = self._run([script, *asked], "check")
        self.checks.append(
            {"check": name, "seconds": round(took, 1), "failed": trouble, "said": lines}
        )
        self.save()

    def _run(
        self, command: list[str], kind: str, meanwhile: Callable[[], object] = lambda: None
    ) -> tuple[list[str], str | None, float]:
        """What it printed, why it failed if it did, and the seconds it took; ``meanwhile`` runs here."""
        started = time.monotonic()
        left = min(self.until - started, _MOST[kind])
        if left < _LEAST:
            return [], "not reached: the time was up", 0.0
        process = subprocess.Popen(
            [sys.executable, *command],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,  # to be ended with all that it started
        )
        meanwhile()
        trouble = None
        try:
            printed, said = process.communicate(timeout=max(0, started + left - time.monotonic()))
            if process.returncode != 0:
                trouble = (said.strip().splitlines() or ["no message"])[-1][:300]
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            printed, said = process.communicate()
            trouble = f"ended after {left:.0f} s"
        self.messages[" ".join(command[1:])] = said.splitlines()[-5:]
        return printed.splitlines(), trouble, time.monotonic() - started

    def save(self) -> None:
        self.out.mkdir(parents=True, exist_ok=True)
        whole = {
            **self.found,
            "speed": self.speed,
            "checks": self.checks,
            "messages": self.messages,
        }
        write_json(self.out / "bench_gpu.json", whole)
        text = StringIO()
        self.show(Console(width=120, file=text))
        write_text(self.out / "bench_gpu.txt", text.getvalue())

    def show(self, console: Console) -> None:
        console.print(self.found["device"], "torch", self.found["torch"])
        table = Table(
            "model", "method", "rows x tokens", "who", "tok/s", "GiB", "utilisation", "peak/plan"
        )
        for each in self.speed:
            told = [each["size"], each["method"]]
            if "rows" not in each:
                table.add_row(*told, "", each["who"], f"failed: {each['failed']}")
                continue
            case = Case(each["rows"], each["length"], each["recomputes"])
            if "failed" in each:
                table.add_row(*told, str(case), each["who"], each["failed"])
                continue
            rate, peak, foretold = self.found["rate"], each["peak"], each.get("planned_peak")
            table.add_row(
                *(*told, str(case), each["who"], f"{case.tokens / each['seconds']:,.0f}"),
                f"{peak / 2**30:.2f}" if peak else "",
                f"{each['flops'] / rate:.0%}" if rate and "flops" in each else "",
                f"{peak / foretold:.3f}"
                if peak and foretold and each["who"] in ("luthier", FP8)
                else "",
            )
        console.print(table)
        for each in self.checks:
            console.print(f"{each['check']} ({each['seconds']} s)", each["failed"] or "")
            console.print("\n".join(each["said"]), markup=False, highlight=False)


def parts(bench: Bench, sizes: list[str], methods: list[str], checks: list[str]) -> None:
    """All of them, the most telling first: LoRA of the largest model, then whether it is right."""
    who = [name for name, package in PEERS.items() if find_spec(package)]
    for number, size in enumerate(sizes):
        for method in methods:
            for each in who:
                if each == FP8 and method != "lora":
                    continue
                bench.speed_of(size, method, each)
            if number == 0 and method == methods[0]:
                for name in checks[:3]:
                    bench.check(name)
        if number == 0:
            for name in checks[3:]:
                bench.check(name)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", default="8b,1b")
    parser.add_argument("--methods", default="lora,qlora,full")
    parser.add_argument("--checks", default=CHECKS, help="those of gpu_checks.py, or none")
    parser.add_argument("--minutes", type=float, default=18.0, help="no part begins after these")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--out", type=Path, default=Path("build/gpu"))
    parser.add_argument("--one", nargs=3, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.device == "cuda" and not torch.cuda.is_available():
        print("no GPU here: nothing measured")
        return
    if chosen.one:
        who, size, name = chosen.one
        measure(who, size, MethodGroup(name=name), torch.device(chosen.device))
        return
    runtime.prepare()  # for the parts' processes
    bench = Bench(chosen.device, chosen.out, chosen.minutes)
    checks = [] if chosen.checks == "none" else chosen.checks.split(",")
    parts(bench, chosen.sizes.split(","), chosen.methods.split(","), checks)
    bench.show(Console(width=120))


if __name__ == "__main__":
    main()
