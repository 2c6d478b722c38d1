"""An evaluation's answers, base and tuned, beside Transformers; and what the products alone would take.

    OMP_NUM_THREADS=1 python benchmarks/bench_sides.py [RUN] [--rows 40] [--new 64]

Both ways answer the same rows of nl2bash in float32, each in a process of its own, one after the other:
Transformers with prompts padded, 16 of one side at once, as version 0.1 did; ours with 64 of each side at
once, as `luthier evaluate` does. Loading is not timed; what ours does first (the check against
Transformers, packing the weights) is. CPU seconds, because other work may run beside it.

"products" are those with the model's weights, the adapter's and attention left out. Those that each way
did are counted from the tokens its layers and its head read, padding included. Those that are needed have
each token of a prompt once (a common start of several once a side) and each token that was said. Their time
is at the best speed that the machine showed for them, of several numbers of rows, in the process of ours:
the bound for any way in float32. (A prompt's tokens can skip most of the last layer, as ours do; that is not
counted: of 30 layers, 3% of the prompts' products.)
"""

import argparse
import hashlib
import json
import subprocess
import sys
import tempfile
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from bench_generate import load, make_run

WAYS = ("Transformers, 16 of a side", "ours, 64 of each side")


def answers(way: str, run: Path, rows: int, new: int) -> dict[str, Any]:
    """CPU seconds and tokens of both sides' answers, their hash, and the operations of their products."""
    from luthier.data.spans import stop_token_ids
    from luthier.generate.decoder import Decoder
    from luthier.generate.sampling import Sampling

    models, prompts = load(run, rows)
    stops = stop_token_ids(models.tokenizer)
    answer = ours if way == WAYS[1] else transformers
    started, cpu = time.perf_counter(), time.process_time()
    made, read, asked = answer(models, prompts, Sampling(max_new_tokens=new), stops)
    seconds, cpu = time.perf_counter() - started, time.process_time() - cpu
    whole = [
        made[n][: next((i + 1 for i, t in enumerate(made[n]) if t in stops), new)]
        for n in sorted(made)
    ]
    said = sum(map(len, whole))
    starts = {tuple(prompt[: i + 1]) for prompt in prompts for i in range(len(prompt))}
    decoder = Decoder(models.tuned)
    found = {
        "seconds": seconds,
        "cpu": cpu,
        "said": said,
        "hash": hashlib.sha256(json.dumps(whole).encode()).hexdigest(),
        "spent": operations(decoder, read, asked),
        "needed": operations(decoder, 2 * len(starts) + said - len(whole), said),
    }
    return found | {"speed": best_speed(decoder)} if way == WAYS[1] else found


def ours(models: Any, prompts: Any, sampling: Any, stops: Any) -> tuple[dict[int, Any], int, int]:
    """The answers, and how many tokens the layers and the head read."""
    from luthier.generate.batching import Batch, Task
    from luthier.generate.decoder import find_decoder

    decoder = find_decoder(models.tuned)
    assert decoder is not None
    tasks = [
        Task(number + len(prompts) * side, prompt, sampling.max_new_tokens, adapter)
        for side, adapter in enumerate((None, "default"))
        for number, prompt in enumerate(prompts)
    ]
    batch, counts = Batch(decoder, tasks, sampling, stops, 128), [0, 0]
    read = decoder.read

    def counted(pieces: Any, wanted: Any) -> Any:
        counts[0] += sum(len(piece.tokens) for piece in pieces)
        counts[1] += len(wanted)
        return read(pieces, wanted)

    decoder.read = counted  # type: ignore[method-assign]
    return dict(batch.run()), *counts


def transformers(models: Any, prompts: Any, sampling: Any, _stops: Any) -> Any:
    """As ``ours``."""
    from luthier.generate.by_transformers import continue_prompts
    from luthier.models.adapters import inner

    counts = [0, 0]

    def count(place: int, shown: Any) -> None:
        counts[place] += shown.shape[0] * shown.shape[1]

    base = inner(models.tuned)
    counters = [
        part.register_forward_pre_hook(lambda _, shown, place=place: count(place, shown[0]))
        for place, part in enumerate((base.model.embed_tokens, base.lm_head))
    ]
    made: dict[int, Any] = {}
    for side in (0, 1):
        asked = {number + len(prompts) * side: p for number, p in enumerate(prompts)}
        with models.as_base() if side == 0 else nullcontext():
            made |= continue_prompts(models.tuned, models.tokenizer, asked, sampling, 16)
    for counter in counters:
        counter.remove()
    return made, *counts


def operations(decoder: Any, read: int, asked: int) -> int:
    """Of the products of ``read`` tokens through the layers, and of ``asked`` through the head."""
    *layers, head = (product.weight.numel() for product in decoder._products())
    return 2 * (read * sum(layers) + asked * head)


def best_speed(decoder: Any) -> float:
    """Operations a CPU second of a step's products, packed, at the number of rows that suits them best."""
    import torch

    decoder.pack()
    products, found = decoder._products(), []
    with torch.no_grad():
        for rows in (16, 32, 64, 128, 256, 512):
            inputs = {n: torch.randn(rows, n) for n in {p.weight.shape[1] for p in products}}
            for _ in range(4):
                started = time.process_time()
                for product in products[:-1]:
                    product(inputs[product.weight.shape[1]], ())
                if rows <= 128:  # so many answers are not made at once
                    products[-1](inputs[products[-1].weight.shape[1]], ())
                asked = rows if rows <= 128 else 0
                found.append(operations(decoder, rows, asked) / (time.process_time() - started))
    return max(found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path, nargs="?")
    parser.add_argument("--rows", type=int, default=40, help="questions to each side")
    parser.add_argument("--new", type=int, default=64, help="tokens of each answer, at most")
    parser.add_argument("--way", choices=WAYS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    from luthier.runtime import prepare

    prepare()
    if options.way:
        print(json.dumps(answers(options.way, options.run, options.rows, options.new)))
        return
    with tempfile.TemporaryDirectory() as folder:
        report(options.run or make_run(Path(folder)), options)


def report(run: Path, options: argparse.Namespace) -> None:
    from rich.console import Console
    from rich.table import Table

    command = [sys.executable, __file__, str(run)]
    command += ["--rows", str(options.rows), "--new", str(options.new), "--way"]
    found = [
        json.loads(subprocess.check_output([*command, way], text=True).splitlines()[-1])
        for way in WAYS
    ]
    theirs, own = found
    speed = own["speed"]
    table = Table(f"base and tuned, {options.rows} rows", "CPU seconds", "seconds", "tokens")
    for head in ("tok/CPU s", "products", f"at {speed / 1e9:.0f} GFLOP/s", "answers"):
        table.add_column(head)
    for way, each in zip(WAYS, found, strict=True):
        table.add_row(
            way,
            f"{each['cpu']:.1f}",
            f"{each['seconds']:.1f}",
            f"{each['said']}",
            f"{each['said'] / each['cpu']:.1f}",
            f"{each['spent'] / 1e9:.0f} GFLOP",
            f"{each['spent'] / speed:.1f} s",
            "the same" if each["hash"] == theirs["hash"] else "others",
        )
    least = own["needed"] / speed
    table.add_row("needed", f"{least:.1f}", "", f"{own['said']}", f"{own['said'] / least:.1f}")
    console = Console(width=130)
    console.print(table)
    console.print(
        f"Ours is {theirs['cpu'] / own['cpu']:.2f} times as fast as Transformers; by the products alone "
        f"{theirs['cpu'] / least:.2f} times would be the most. They are {least / own['cpu']:.0%} of "
        f"our time."
    )


if __name__ == "__main__":
    main()
