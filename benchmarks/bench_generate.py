"""Generation beside Transformers' `generate`, its continuous batching, and llama.cpp.

    python benchmarks/bench_generate.py [RUN] [--new 16]

Without a run, one of the real 135M model is made first, of two steps. All ways answer the same
questions of nl2bash with the same adapter, unmerged, in answers of a fixed length: ours and
Transformers' in float32 from the run's weights, llama.cpp from the f16 GGUF files, exported before.
Each way runs in a process of its own, for `--limit` seconds at most; what it has measured by then
counts. All of it takes some eight minutes. "products" is the floor: the matrix products of a step
alone, the adapter's left out. "own, no guesses" is ours without prompt lookup, which answers that go
on past their end, as here, flatter.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

DATA = Path(__file__).parents[2] / "shared/data/nl2bash.jsonl"
WAYS = ("products", "own", "own, no guesses", "generate", "llama.cpp", "continuous batching")
EXPORT = "export"  # not timed
AT_ONCE = (1, 8, 16)

Answerer = Callable[[list[list[int]], int, int], None]  # prompts, new tokens of each, at once


def make_run(folder: Path) -> Path:
    import luthier

    rows = folder / "rows.jsonl"
    rows.write_text("".join(DATA.read_text("utf-8").splitlines(True)[:12]), "utf-8")
    run = luthier.train(
        {
            "model": {"source": "smollm2-135m", "dtype": "float32"},
            "method": {"name": "lora", "lora_dropout": 0.0},
            "data": {"train": str(rows), "max_length": 128},
            "train": {
                "max_steps": 2,
                "per_device_train_batch_size": 1,
                "gradient_accumulation_steps": 1,
            },
            "evaluate": {"probe": False},
            "run": {"dir": str(folder), "name": "bench"},
        }
    )
    return run.root


def load(run: Path, count: int = 64) -> tuple[Any, list[list[int]]]:
    """The tuned model with its base, and token ids of ``count`` prompts."""
    from luthier.generate.answer import encode_prompt
    from luthier.models.tuned import load_tuned
    from luthier.run import open_run

    models = load_tuned(open_run(run))
    models.tuned.float()
    rows = [json.loads(line) for line in DATA.read_text("utf-8").splitlines()[200 : 200 + count]]
    asked = [f"{row['instruction']} {row['input']}" for row in rows]
    prompts = [encode_prompt(models.tokenizer, ({"role": "user", "content": a},)) for a in asked]
    return models, prompts


def products(models: Any, rows: int) -> float:
    """Seconds that the products of one token of ``rows`` answers take."""
    import torch

    from luthier.generate.decoder import Decoder

    decoder = Decoder(models.tuned)
    if rows > 1:
        decoder.pack()
    each = decoder._products()
    inputs = {size: torch.randn(rows, size) for size in {p.weight.shape[1] for p in each}}
    with torch.no_grad():
        times = []
        for _ in range(12):
            started = time.perf_counter()
            for product in each:
                product(inputs[product.weight.shape[1]], ())
            times.append(time.perf_counter() - started)
    return sorted(times)[len(times) // 2]


def own(models: Any, guesses: bool) -> Answerer:
    from luthier.generate.batching import Batch, Task
    from luthier.generate.decoder import find_decoder
    from luthier.generate.lookup import Lookup
    from luthier.generate.sampling import Sampling

    if not guesses:
        Lookup.guess = lambda *_args, **_kwargs: []  # type: ignore[method-assign]

    def answer(prompts: list[list[int]], new: int, at_once: int) -> None:
        decoder = find_decoder(models.tuned)
        assert decoder is not None
        tasks = [Task(i, prompt, new, "default") for i, prompt in enumerate(prompts)]
        made = dict(Batch(decoder, tasks, Sampling(), [], at_once).run())
        assert all(len(tokens) == new for tokens in made.values())

    return answer


def transformers(models: Any, *, continuous: bool) -> Answerer:
    import torch
    from transformers import ContinuousBatchingConfig, GenerationConfig

    base = models.tuned.get_base_model()

    def generate(prompts: list[list[int]], new: int, _at_once: int) -> None:
        longest = max(map(len, prompts))
        ids = torch.tensor([[0] * (longest - len(p)) + p for p in prompts])
        mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts])
        settings = {"max_new_tokens": new, "do_sample": False, "pad_token_id": 0}
        base.generation_config = GenerationConfig(eos_token_id=None, **settings)
        base.generate(input_ids=ids, attention_mask=mask)

    def batching(prompts: list[list[int]], new: int, at_once: int) -> None:
        config = GenerationConfig(
            max_new_tokens=new, do_sample=False, eos_token_id=-1, pad_token_id=0
        )
        # Left to itself it takes most of the machine's memory.
        pages = -(-(max(map(len, prompts)) + new) // 256)
        settings = ContinuousBatchingConfig(
            max_requests_per_batch=at_once,
            num_blocks=at_once * pages + 1,
            max_batch_tokens=512,
        )
        base.generate_batch(prompts, generation_config=config, continuous_batching_config=settings)

    return batching if continuous else generate


def llama_cpp(run: Path) -> tuple[Answerer, Any]:
    from luthier.serve.limits import Limits
    from luthier.serve.llama_cpp import LlamaCppModels

    served = LlamaCppModels([f"tuned={run}"], Limits(batch=max(AT_ONCE), context=512))
    (gguf,) = served.files

    def one(prompt: list[int], new: int) -> None:
        body = {"prompt": prompt, "n_predict": new, "temperature": 0.0, "ignore_eos": True}
        body |= {"lora": [{"id": 0, "scale": 1.0}]}
        reply = json.load(gguf.post("/completion", body, 300).getresponse())
        assert reply["tokens_predicted"] == new, reply

    def answer(prompts: list[list[int]], new: int, at_once: int) -> None:
        with ThreadPoolExecutor(at_once) as pool:
            list(pool.map(lambda prompt: one(prompt, new), prompts))

    return answer, gguf


def resident(process: int) -> int:
    import psutil

    return int(psutil.Process(process).memory_info().rss)


def measure(way: str, run: Path, new: int) -> Iterator[dict[str, Any]]:
    """One figure after another, as they are known."""
    from luthier.runtime import peak_memory

    if way == EXPORT:
        llama_cpp(run)[1].close()
        return
    models, prompts = load(run)
    if way == "products":
        for rows in AT_ONCE:
            yield {"at_once": rows, "step": products(models, rows)}
        return
    memory: Callable[[], int] = peak_memory
    if way == "llama.cpp":
        del models
        answer, gguf = llama_cpp(run)
        memory = partial(resident, gguf._process.pid)
    elif way.startswith("own"):
        answer = own(models, guesses=way == "own")
    else:
        answer = transformers(models, continuous=way == "continuous batching")
    answer(prompts[:1], 4, 1)  # first-time costs
    started = time.perf_counter()
    answer(prompts[1:2], 1, 1)
    yield {"first": time.perf_counter() - started}
    for at_once in AT_ONCE:
        started = time.perf_counter()
        answer(prompts[2 : 2 + at_once], new, at_once)
        yield {"at_once": at_once, "step": (time.perf_counter() - started) / new}
        yield {"memory": memory()}


def figures(way: str, run: Path, options: argparse.Namespace) -> tuple[dict[str, Any], str]:
    """What a process for ``way`` has told within its time, and why it told no more."""
    command = [sys.executable, __file__, str(run), "--way", way, "--new", str(options.new)]
    try:
        done = subprocess.run(command, capture_output=True, timeout=options.limit)
        said, why = done.stdout, "" if done.returncode == 0 else f"failed ({done.returncode})"
    except subprocess.TimeoutExpired as over:
        said, why = over.stdout or b"", f"stopped after {options.limit} s"
    found: dict[str, Any] = {"step": {}}
    for line in said.decode().splitlines():
        if not line.startswith("{"):
            continue
        told = json.loads(line)
        if "at_once" in told:
            found["step"][told["at_once"]] = told["step"]
        else:
            found |= told
    return found, why


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path, nargs="?")
    parser.add_argument("--new", type=int, default=16, help="tokens of each answer")
    parser.add_argument("--limit", type=int, default=45, help="seconds of each way, at most")
    parser.add_argument("--way", choices=(EXPORT, *WAYS), help=argparse.SUPPRESS)
    options = parser.parse_args()
    from luthier.runtime import prepare

    prepare()
    if options.way:
        for told in measure(options.way, options.run, options.new):
            print(json.dumps(told), flush=True)
        return
    with tempfile.TemporaryDirectory() as folder:
        report(options.run or make_run(Path(folder)), options)


def report(run: Path, options: argparse.Namespace) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console(width=130)
    table = Table("", *(f"tok/s, {n}" for n in AT_ONCE), *(f"× products, {n}" for n in AT_ONCE))
    for head in ("first token", "memory", ""):
        table.add_column(head)
    figures(EXPORT, run, options)
    floor: dict[int, float] = {}
    for way in WAYS:
        found, why = figures(way, run, options)
        step = found["step"]
        floor = floor or step
        table.add_row(
            way,
            *(f"{n / step[n]:.1f}" if n in step else "–" for n in AT_ONCE),
            *(f"{step[n] / floor[n]:.2f}" if n in step else "–" for n in AT_ONCE),
            f"{found['first'] * 1000:.0f} ms" if "first" in found else "",
            f"{found['memory'] / 2**20:,.0f} MiB" if "memory" in found else "",
            why,
        )
    console.print(table)


if __name__ == "__main__":
    main()
