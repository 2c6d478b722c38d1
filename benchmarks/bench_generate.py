"""Generation against Transformers' `generate` and its continuous batching, on the same weights.

    python benchmarks/bench_generate.py [--answers 2] [--new 64]

SmolLM2-135M in float32 with LoRA r=16 on all layers, unmerged; greedy answers of a fixed length to
questions of nl2bash. Each way runs in a process of its own. "products" is the floor: the matrix
products of a step alone, the adapter's left out. "own, no guesses" is ours without prompt lookup, which
answers that go on past their end, as here, flatter.
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

DATA = Path(__file__).parents[2] / "shared/data/nl2bash.jsonl"
WAYS = ("products", "own", "own, no guesses", "generate", "continuous batching")
AT_ONCE = (1, 8, 16)


def prepare() -> tuple[Any, list[list[int]]]:
    """The model, and token ids of prompts."""
    from luthier.runtime import prepare

    prepare()
    import torch

    from luthier.generate.answer import encode_prompt
    from luthier.models.adapters import attach_adapter
    from luthier.models.load import load_model, load_tokenizer
    from luthier.models.source import resolve
    from luthier.recipe import MethodGroup

    folder = resolve("smollm2-135m").folder
    torch.manual_seed(0)
    model = attach_adapter(load_model(folder, torch.float32), MethodGroup(lora_dropout=0.0)).eval()
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data = torch.randn(parameter.shape) * 1e-3
    tokenizer = load_tokenizer(folder)
    rows = [json.loads(line) for line in DATA.read_text("utf-8").splitlines()[:64]]
    asked = [f"{row['instruction']} {row['input']}" for row in rows]
    return model, [encode_prompt(tokenizer, ({"role": "user", "content": a},)) for a in asked]


def products(model: Any, rows: int) -> float:
    """Seconds that the products of one token of ``rows`` answers take."""
    import torch
    import torch.nn.functional as F

    base = model.get_base_model()
    weights = [
        module.base_layer.weight for module in base.modules() if hasattr(module, "base_layer")
    ] + [base.get_output_embeddings().weight]
    inputs = {weight.shape[1]: torch.randn(rows, weight.shape[1]) for weight in weights}
    with torch.no_grad():
        times = []
        for _ in range(12):
            started = time.perf_counter()
            for weight in weights:
                F.linear(inputs[weight.shape[1]], weight)
            times.append(time.perf_counter() - started)
    return sorted(times)[len(times) // 2]


def answerer(way: str, model: Any) -> Callable[[list[list[int]], int, int], None]:
    """A function of prompts, new tokens of each, and answers at once."""
    import torch
    from transformers import ContinuousBatchingConfig, GenerationConfig

    from luthier.generate.batching import Batch, Task
    from luthier.generate.decoder import find_decoder
    from luthier.generate.lookup import Lookup
    from luthier.generate.sampling import Sampling

    base = model.get_base_model()

    def own(prompts: list[list[int]], new: int, at_once: int) -> None:
        decoder = find_decoder(model)
        assert decoder is not None
        tasks = [Task(i, prompt, new, "default") for i, prompt in enumerate(prompts)]
        made = dict(Batch(decoder, tasks, Sampling(), [], at_once).run())
        assert all(len(tokens) == new for tokens in made.values())

    def generate(prompts: list[list[int]], new: int, at_once: int) -> None:
        order = sorted(prompts, key=len)
        for start in range(0, len(order), at_once):
            batch = order[start : start + at_once]
            longest = max(map(len, batch))
            ids = torch.tensor([[0] * (longest - len(p)) + p for p in batch])
            mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in batch])
            settings = {"max_new_tokens": new, "do_sample": False, "pad_token_id": 0}
            base.generation_config = GenerationConfig(eos_token_id=None, **settings)
            base.generate(input_ids=ids, attention_mask=mask)

    def continuous(prompts: list[list[int]], new: int, at_once: int) -> None:
        config = GenerationConfig(
            max_new_tokens=new, do_sample=False, eos_token_id=-1, pad_token_id=0
        )
        # Left to itself it takes most of the machine's memory.
        pages = -(-(max(map(len, prompts)) + new) // 256)
        batching = ContinuousBatchingConfig(
            max_requests_per_batch=at_once,
            num_blocks=at_once * pages + 1,
            max_batch_tokens=512,
        )
        base.generate_batch(prompts, generation_config=config, continuous_batching_config=batching)

    if way == "own, no guesses":
        Lookup.guess = lambda *_args, **_kwargs: []  # type: ignore[method-assign]
    return {"generate": generate, "continuous batching": continuous}.get(way, own)


def measure(way: str, rounds: int, new: int) -> dict[str, Any]:
    model, prompts = prepare()
    from luthier.runtime import peak_memory

    if way == "products":
        return {"step": {rows: products(model, rows) for rows in AT_ONCE}}
    answer = answerer(way, model)
    answer(prompts[:1], 4, 1)  # first-time costs
    started = time.perf_counter()
    answer(prompts[1:2], 1, 1)
    found: dict[str, Any] = {"first": time.perf_counter() - started, "step": {}}
    for at_once in AT_ONCE:
        chosen = (prompts * 8)[: at_once * rounds]
        started = time.perf_counter()
        answer(chosen, new, at_once)
        found["step"][at_once] = (time.perf_counter() - started) / (rounds * new)
    return {**found, "memory": peak_memory()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--answers", type=int, default=2, help="rounds of each number at once")
    parser.add_argument("--new", type=int, default=64, help="tokens of each answer")
    parser.add_argument("--way", choices=WAYS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.way:
        print(json.dumps(measure(options.way, options.answers, options.new)))
        return
    from rich.console import Console
    from rich.table import Table

    table = Table("", *(f"tok/s, {n}" for n in AT_ONCE), *(f"× products, {n}" for n in AT_ONCE))
    for head in ("first token", "memory"):
        table.add_column(head)
    floor: dict[str, float] = {}
    for way in WAYS:
        command = [sys.executable, __file__, "--way", way]
        command += ["--answers", str(options.answers), "--new", str(options.new)]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode != 0:
            table.add_row(way, f"failed ({done.returncode})")
            continue
        found = json.loads(done.stdout.splitlines()[-1])
        floor = floor or found["step"]
        table.add_row(
            way,
            *(f"{n / found['step'][str(n)]:.1f}" for n in AT_ONCE),
            *(f"{found['step'][str(n)] / floor[str(n)]:.2f}" for n in AT_ONCE),
            f"{found['first'] * 1000:.0f} ms" if "first" in found else "",
            f"{found['memory'] / 2**20:,.0f} MiB" if "memory" in found else "",
        )
    Console(width=130).print(table)


if __name__ == "__main__":
    main()
