"""Predicted against measured peak memory of training, configuration by configuration.

    python benchmarks/plan_memory.py [--only SUBSTRING]

Predicted: `luthier.plan.simulate`, with fake tensors. Measured: `luthier train`'s own step on
real tensors in a process of its own, in its second step. PyTorch's allocator reports every
allocation to the profiler; the highest sum of those of the step, added to the weights and the
optimiser state that were there when it began, is the peak. (Resident memory is more: the
interpreter, libraries, and what the allocator keeps for later.)
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table


@dataclass(frozen=True)
class Case:
    """``size`` is a key of ``CONFIGS``; ``rows`` of ``length`` tokens make the micro-batch."""

    size: str
    method: str
    rows: int
    length: int
    dtype: str
    checkpointing: bool

    @property
    def name(self) -> str:
        kept = "recompute" if self.checkpointing else "keep"
        return f"{self.size} {self.method} {self.rows}x{self.length} {self.dtype} {kept}"


LLAMA = {
    "vocab_size": 49152, "max_position_embeddings": 2048, "tie_word_embeddings": True,
}  # fmt: skip
CONFIGS: dict[str, dict[str, Any]] = {
    "135M": {
        **LLAMA, "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30,
        "num_attention_heads": 9, "num_key_value_heads": 3,
    },
    "360M": {
        **LLAMA, "hidden_size": 960, "intermediate_size": 2560, "num_hidden_layers": 32,
        "num_attention_heads": 15, "num_key_value_heads": 5,
    },
    "600M": {
        **LLAMA, "hidden_size": 1280, "intermediate_size": 3840, "num_hidden_layers": 28,
        "num_attention_heads": 20, "num_key_value_heads": 4, "tie_word_embeddings": False,
    },
}  # fmt: skip

CASES = [
    *(
        Case("135M", method, rows, length, dtype, checkpointing)
        for method in ("full", "lora", "qlora")
        for rows, length, dtype, checkpointing in (
            (4, 128, "bfloat16", False),
            (4, 128, "bfloat16", True),
            (2, 512, "bfloat16", False),
            (2, 256, "float32", False),
            (1, 1024, "float32", True),
        )
    ),
    *(
        Case(size, method, 2, 256, "bfloat16", checkpointing)
        for size in ("360M", "600M")
        for method, checkpointing in (("full", True), ("lora", False), ("qlora", True))
    ),
]


def recipe_for(case: Case, folder: Path) -> list[str]:
    return [
        f"model.source={folder / 'model'}", f"model.dtype={case.dtype}",
        f"method.name={case.method}", f"data.train={folder / 'rows.jsonl'}",
        f"data.max_length={case.length}", "data.validation_fraction=0",
        f"train.per_device_train_batch_size={case.rows}", "train.gradient_accumulation_steps=1",
        f"train.gradient_checkpointing={str(case.checkpointing).lower()}", "train.max_steps=2",
        "train.report_to=[]", "train.save_steps=1000", f"run.dir={folder}", "run.name=run",
    ]  # fmt: skip


def measure(case: Case) -> int:
    """Bytes at the peak of the second step of a real run."""
    import torch
    from torch._C._profiler import _EventType
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    from luthier.models.pull import pull
    from luthier.plan.fake import storages
    from luthier.recipe import parse_recipe
    from luthier.run import claim_run
    from luthier.train import loop
    from luthier.train.fit import fit

    found: dict[str, int] = {}
    real = loop.train_step

    def watched(learner: Any, *args: Any) -> Any:
        if learner.scheduler.last_epoch != 1:  # the second step: optimiser state is there
            return real(learner, *args)
        kept = [t for s in learner.optimizer.state.values() for t in s.values()]
        tensors = [t for t in (*storages(learner.model), *kept) if torch.is_tensor(t)]
        sizes = {t.untyped_storage()._cdata: t.untyped_storage().nbytes() for t in tensors}
        found["resident"] = sum(sizes.values())
        with torch.profiler.profile(
            activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
        ) as profile:
            result = real(learner, *args)
        allocations: list[tuple[int, int]] = []
        waiting = list(profile.profiler.kineto_results.experimental_event_tree())
        while waiting:
            event = waiting.pop()
            waiting += event.children
            if event.tag == _EventType.Allocation:
                allocations.append((event.start_time_ns, event.extra_fields.alloc_size))
        live = peak = 0
        for _, size in sorted(allocations):
            live += size
            peak = max(peak, live)
        found["step"] = peak
        return result

    loop.train_step = watched
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        torch.manual_seed(0)
        LlamaForCausalLM(LlamaConfig(**CONFIGS[case.size])).save_pretrained(folder / "model")
        AutoTokenizer.from_pretrained(pull("smollm2-135m").folder).save_pretrained(folder / "model")
        # Plain text is cut into rows of exactly max_length tokens.
        text = "one two three four five six seven eight nine ten " * (case.length * case.rows)
        (folder / "rows.jsonl").write_text(json.dumps({"text": text}) + "\n")
        recipe = parse_recipe("", recipe_for(case, folder))
        fit(recipe, claim_run(recipe, "x"))
    return found["resident"] + found["step"]


def predict(case: Case) -> int:
    import torch
    from transformers import LlamaConfig

    from luthier.plan.simulate import Workload, simulate
    from luthier.recipe import MethodGroup

    work = Workload(
        lengths=[case.length] * case.rows,
        supervised=(case.length - 1) * case.rows,
        dtype=getattr(torch, case.dtype),
        optim="adamw_8bit" if case.method == "qlora" else "adamw_torch_fused",
        gradient_checkpointing=case.checkpointing,
    )
    config = LlamaConfig(**CONFIGS[case.size])
    return simulate(config, MethodGroup(name=case.method), work).peak  # type: ignore[arg-type]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="", help="cases whose name holds this")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.one:
        case = next(case for case in CASES if case.name == chosen.one)
        print(json.dumps({"predicted": predict(case), "measured": measure(case)}))
        return
    console = Console(width=100)
    table = Table("configuration", "predicted MiB", "measured MiB", "error")
    errors = []
    for case in (case for case in CASES if chosen.only in case.name):
        command = [sys.executable, __file__, "--one", case.name]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode != 0:
            sys.exit(f"{case.name} failed:\n{done.stderr}")
        figures = json.loads(done.stdout.splitlines()[-1])
        error = figures["predicted"] / figures["measured"] - 1
        errors.append(abs(error))
        sizes = [f"{figures[key] / 2**20:,.1f}" for key in ("predicted", "measured")]
        table.add_row(case.name, *sizes, f"{error:+.2%}")
        print(case.name, *sizes, f"{error:+.2%}", file=sys.stderr, flush=True)
    console.print(table)
    console.print(f"median error {statistics.median(errors):.2%}, worst {max(errors):.2%}")


if __name__ == "__main__":
    main()
