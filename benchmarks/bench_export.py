"""Merge and export runs of the real model: what each step changes, and what llama.cpp answers.

    python benchmarks/bench_export.py [--types] RUN [RUN…]

Prints, for each run: base + adapter against the merged model in float32 and in bfloat16 (for QLoRA
also merged onto the published weights). With --types also each GGUF type with size, rounding and
perplexity and, where `make llama-cpp` was run, on how many held-out prompts llama.cpp's greedy answer
is the run's own.
"""

import math
import sys
import tempfile
from pathlib import Path
from typing import Any, get_args

import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from shipping import ask_llama_cpp, llama_cpp_python

from luthier.data.prepare import held_out
from luthier.data.split import sample
from luthier.export.export import export
from luthier.export.merge import MergeOptions, merge
from luthier.export.options import GgufType
from luthier.generate.answer import Sampling, answer_all, encode_prompt
from luthier.models.tuned import load_tuned
from luthier.run import Run, open_run

PROMPTS, NEW = 16, 48


def main() -> None:
    for path in (Path(argument) for argument in sys.argv[1:] if argument != "--types"):
        run = open_run(path)
        recipe = run.recipe()
        provenance = recipe.provenance or {}
        print(f"== {path.name}: {recipe.method.name}, {provenance['dtype']}")
        with tempfile.TemporaryDirectory() as scratch:
            merges(run, Path(scratch), recipe.method.name)
            if "--types" in sys.argv:
                types(run, Path(scratch))


def merges(run: Run, scratch: Path, method: str) -> None:
    variants: list[tuple[str, MergeOptions]] = [
        ("merged, float32", MergeOptions(dtype=torch.float32)),
        ("merged, bfloat16", MergeOptions(dtype=torch.bfloat16)),
    ]
    if method == "qlora":
        original = MergeOptions(dtype=torch.float32, onto="original")
        variants.append(("merged onto the published weights, float32", original))
    for number, (name, options) in enumerate(variants):
        (check,) = merge([run], scratch / f"merged-{number}", options).checks.values()
        print(
            f"{name}: loss {check.loss_before:.6f} -> {check.loss_after:.6f}, logits differ by "
            f"{check.logits_mean:.2e} on average, {check.logits_max:.2e} at most, KL {check.kl:.2e}, "
            f"same token {check.same_top:.2%} of {check.positions}",
            flush=True,
        )


def types(run: Run, scratch: Path) -> None:
    result = export(run, "gguf", scratch / "gguf", get_args(GgufType))
    first = result["files"][0]["check"]["difference"]
    print(f"the run itself: perplexity {math.exp(first['loss_before']):.4f}")
    answers = own_answers(run) if llama_cpp_python() else None
    for file in result["files"]:
        check = file["check"]
        difference = check["difference"]
        line = (
            f"{file['type']}: {file['bytes'] / 2**20:.1f} MiB, rounding {file['rms_error']:.3%}, "
            f"perplexity {math.exp(difference['loss_after']):.4f}, KL {difference['kl']:.2e}, same "
            f"token {difference['same_top']:.1%}, answers {check['same_answers']}/{check['answers']}"
            f", tokens {check['same_tokens']}/{check['texts']}"
        )
        if answers is not None:
            line += llama_line(scratch / "gguf" / file["file"], *answers)
        print(line, flush=True)


def own_answers(run: Run) -> tuple[list[list[int]], list[str]]:
    models = load_tuned(run)
    rows = sample([row for row in held_out(run) if row.messages], PROMPTS, 1)
    prompts = [row.prompt for row in rows]
    encoded = [encode_prompt(models.tokenizer, prompt) for prompt in prompts]
    texts = answer_all(models.tuned, models.tokenizer, prompts, Sampling(NEW), 1)
    return encoded, texts


def llama_line(file: Path, prompts: list[list[int]], texts: list[str]) -> str:
    answer: dict[str, Any] = ask_llama_cpp(file, prompts=prompts, new=NEW)
    same = sum(a.strip() == b.strip() for a, b in zip(answer["text"], texts, strict=True))
    return f"; llama.cpp: {same}/{len(texts)} answers to the letter"


if __name__ == "__main__":
    main()
