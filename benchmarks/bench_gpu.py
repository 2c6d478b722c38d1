"""On a GPU: tokens a second, peak memory and utilisation of 1B and 8B models, against peers.

    make bench-gpu
    python benchmarks/bench_gpu.py [--sizes 1b,8b] [--methods lora,qlora,full] [--tokens 2048,8192]

First what `gpu_checks.py` looks at: gradients, dropout, lengths that stall, a killed run, a trace. All
that is printed is kept in build/gpu/ too. The models' tokenizer must be in the cache
(`luthier models pull smollm2-135m`); nothing else is fetched. Random weights of Llama's shapes, random tokens, one row, bfloat16, activations recomputed on all
sides. Peers: Transformers + PEFT; with Liger's kernels where `liger-kernel` is installed; Unsloth where
`unsloth` is. Each runs in a process of its own and prints what failed if it does. Utilisation is of the
model's own operations (recomputation not counted) over the data sheet's dense peak. The last column
is CUDA's peak of our step over what `luthier plan` foretells. Without a GPU: nothing, and it says so.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from bench_step import Side, our_side, peers_side, step
from gpu_checks import CHECKS, check
from rich.console import Console
from rich.table import Table
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig

from luthier.data.batches import Batch
from luthier.kernels.fp8_base import store_in_fp8
from luthier.models.adapters import attach_adapter
from luthier.models.load import load_model, quantization
from luthier.models.pull import pull
from luthier.plan.catalogues import card_named
from luthier.plan.simulate import Step, Workload, simulate
from luthier.recipe import KernelsGroup, MethodGroup
from luthier.train.setup import recompute_activations

SIZES: dict[str, dict[str, int]] = {
    "1b": {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16},
    "8b": {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32},
}
FP8 = "luthier, FP8"  # kernels.fp8_base, of LoRA
PEERS = ("luthier", FP8, "peft", "liger", "unsloth")
OPTIM = {"full": "adamw_bf16", "lora": "adamw_torch_fused", "qlora": "adamw_torch_fused"}


def config_of(size: str) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=128_256,
        num_attention_heads=32,
        num_key_value_heads=8,
        head_dim=SIZES[size]["hidden_size"] // 32,
        max_position_embeddings=16_384,
        rope_parameters={"rope_type": "default", "rope_theta": 500_000.0},
        tie_word_embeddings=size == "1b",
        use_cache=False,
        **SIZES[size],
    )


def side_of(who: str, folder: Path, method: MethodGroup, tokens: int) -> Side:
    device, dtype = torch.device("cuda"), torch.bfloat16
    if who == "unsloth":
        return unsloth(folder, method, tokens)
    if who == "liger":
        from liger_kernel.transformers import apply_liger_kernel_to_llama

        apply_liger_kernel_to_llama()
    model: Any = load_model(folder, dtype, quantization=quantization(method, dtype), device=device)
    model.config.use_cache = False
    if method.name != "full":
        model = attach_adapter(model, method)
    recompute_activations(model)
    model.train()
    if who == FP8:
        store_in_fp8(model, device)
    trained = [p for p in model.parameters() if p.requires_grad]
    if who in ("luthier", FP8):
        return our_side(model, optimizer_of(trained, method), dtype)
    return peers_side(model, optimizer_of(trained, method), dtype, hugging_face(model))


def optimizer_of(trained: list[Any], method: MethodGroup) -> torch.optim.Optimizer:
    if method.name == "full":
        from luthier.train.bf16_adamw import BF16AdamW

        return BF16AdamW(trained, lr=1e-5)
    return torch.optim.AdamW(trained, lr=1e-5, fused=True)


def hugging_face(model: Any) -> Any:
    return lambda batch: model(input_ids=batch.input_ids, labels=batch.labels).loss


def unsloth(folder: Path, method: MethodGroup, tokens: int) -> Side:
    from unsloth import FastLanguageModel

    model, _ = FastLanguageModel.from_pretrained(
        str(folder), max_seq_length=tokens, load_in_4bit=method.name == "qlora",
        dtype=torch.bfloat16, full_finetuning=method.name == "full",
    )  # fmt: skip
    if method.name != "full":
        names = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
        model = FastLanguageModel.get_peft_model(
            model, r=method.lora_r, lora_alpha=method.lora_alpha, target_modules=names,
            use_gradient_checkpointing=True,
        )  # fmt: skip
    trained = [p for p in model.parameters() if p.requires_grad]
    return peers_side(model, optimizer_of(trained, method), torch.bfloat16, hugging_face(model))


def measure(who: str, folder: Path, method: MethodGroup, tokens: int) -> dict[str, float]:
    side = side_of(who, folder, method, tokens)
    ids = torch.randint(128_256, (1, tokens))
    batch = Batch(
        input_ids=ids,
        position_ids=torch.arange(tokens)[None],
        labels=ids,
        predicts=torch.arange(tokens - 1),
        row_lengths=(tokens,),
    ).to(torch.device("cuda"))
    for _ in range(3):
        step(side, batch)
    torch.cuda.reset_peak_memory_stats()
    times = [step(side, batch)[0] for _ in range(8)]
    return {"seconds": statistics.median(times), "peak": torch.cuda.max_memory_allocated()}


def planned(
    size: str, method: MethodGroup, tokens: int, recomputing: bool, in_8_bits: bool = False
) -> Step:
    work = Workload(
        [tokens],
        tokens - 1,
        torch.bfloat16,
        OPTIM[method.name],
        recomputing,
        kernels=KernelsGroup(fp8_base=in_8_bits),
        on_gpu=True,
    )
    return simulate(config_of(size), method, work)


def peak_rate() -> float | None:
    """Dense bfloat16 operations a second of this GPU, where the catalogue knows it."""
    memory = torch.cuda.get_device_properties(0).total_memory / 2**30
    found = card_named(torch.cuda.get_device_name(), memory)
    tflops = found.tflops("bfloat16") if found is not None else None
    return None if tflops is None else tflops * 1e12


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", default="1b,8b")
    parser.add_argument("--methods", default="lora,qlora,full")
    parser.add_argument("--tokens", default="2048,8192")
    parser.add_argument("--checks", default=CHECKS, help="those of gpu_checks.py, or none")
    parser.add_argument("--out", type=Path, default=Path("build/gpu"))
    parser.add_argument("--one", nargs=4, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if not torch.cuda.is_available():
        print("no GPU here: nothing measured")
        return
    if chosen.one:
        who, folder, name, tokens = chosen.one
        print(json.dumps(measure(who, Path(folder), MethodGroup(name=name), int(tokens))))
        return
    console = Console(width=120, record=True)
    console.print(torch.cuda.get_device_name(), torch.__version__)
    if chosen.checks != "none":
        check(chosen.checks, torch.device("cuda"), chosen.out, console)
    table = Table("model", "method", "tokens", "who", "tok/s", "GiB", "utilisation", "peak/plan")
    for size in chosen.sizes.split(","):
        with tempfile.TemporaryDirectory() as scratch:
            torch.set_default_device("cuda")
            model = AutoModelForCausalLM.from_config(config_of(size), dtype=torch.bfloat16)
            torch.set_default_device("cpu")
            model.save_pretrained(scratch)
            del model
            torch.cuda.empty_cache()
            AutoTokenizer.from_pretrained(pull("smollm2-135m").folder).save_pretrained(scratch)
            for name in chosen.methods.split(","):
                for tokens in map(int, chosen.tokens.split(",")):
                    compare(table, size, MethodGroup(name=name), tokens, scratch)
    console.print(table)
    chosen.out.mkdir(parents=True, exist_ok=True)
    console.save_text(str(chosen.out / "bench_gpu.txt"))


def compare(table: Table, size: str, method: MethodGroup, tokens: int, folder: str) -> None:
    needed = planned(size, method, tokens, recomputing=False).flops
    rate = peak_rate()
    for who in PEERS:
        if who == FP8 and method.name != "lora":
            continue
        command = [sys.executable, __file__, "--one", who, folder, method.name, str(tokens)]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode != 0:
            reason = (done.stderr.strip().splitlines() or ["no message"])[-1]
            table.add_row(size, method.name, str(tokens), who, f"did not run: {reason[:60]}")
            continue
        found = json.loads(done.stdout.splitlines()[-1])
        foretold = planned(size, method, tokens, recomputing=True, in_8_bits=who == FP8).peak
        table.add_row(
            *(size, method.name, str(tokens), who, f"{tokens / found['seconds']:,.0f}"),
            f"{found['peak'] / 2**30:.2f}",
            f"{needed / found['seconds'] / rate:.0%}" if rate else "peak unknown",
            f"{found['peak'] / foretold:.2f}" if who in ("luthier", FP8) else "",
        )


if __name__ == "__main__":
    main()
