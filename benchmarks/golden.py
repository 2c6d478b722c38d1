"""Golden bytes: does a change of the training code change a single bit of what it makes?

    python benchmarks/golden.py --record before.json      (on the old code)
    python benchmarks/golden.py --compare before.json     (on the new code, same machine)

Each case is a run of `luthier train` on a tiny random model (the last ones on the real 135M model),
straight or killed and resumed. Recorded are SHA-256 of the final weights, of the newest checkpoint's
optimiser state, and every logged number but those of clocks and memory gauges. Nothing but the
command line and the files of a run folder is used, so that the script outlives what it compares.
"""

import argparse
import hashlib
import json
import os
import platform
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "2")  # before torch; sums depend on it
os.environ["TOKENIZERS_PARALLELISM"] = "false"  # threads do not survive a fork
HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "tests"))

CLOCKS = {"seconds", "memory_bytes", "tokens_per_second"}
REAL = HERE.parents[1] / "shared" / "data" / "nl2bash.jsonl"


@dataclass
class Case:
    """One run; ``kill_at``: a SIGKILL once metrics.jsonl tells of this step, then the same again.

    ``stops``: it must end before its last step.
    """

    name: str
    sets: dict[str, Any] = field(default_factory=dict)
    kill_at: int | None = None
    real: bool = False
    stops: bool = False


def cases() -> Iterator[Case]:
    for method in ("full", "lora", "qlora"):
        for packing in (False, True):
            for micro in (1, 4):
                sets = {
                    "method.name": method,
                    "data.packing": packing,
                    "train.gradient_accumulation_steps": micro,
                }
                name = f"{method}-{'packed' if packing else 'plain'}-{micro}"
                yield Case(name, sets)
                yield Case(f"{name}-killed", sets, kill_at=5)
    full = {"method.name": "full", "train.learning_rate": 1e-3}
    bf16 = {**full, "train.optim": "adamw_bf16", "model.dtype": "auto"}
    single = {**full, "train.gradient_accumulation_steps": 1, "train.max_grad_norm": 0}
    stops = {**full, "train.learning_rate": 0.5, "train.eval_steps": 1}
    epochs = {"train.max_steps": -1, "train.num_train_epochs": 2.5, "train.save_steps": 4,
              "train.per_device_train_batch_size": 4}  # fmt: skip
    probe = {"evaluate.probe": True, "train.eval_steps": 2}
    patience = {**stops, "train.early_stopping_patience": 2}
    forgets = {**stops, "train.learning_rate": 1e-2, "train.save_steps": 1, "evaluate.probe": True,
               "train.stop_on_forgetting": 0.01}  # fmt: skip
    yield Case("early-stopping", patience, stops=True)
    yield Case("early-stopping-killed", patience, kill_at=3, stops=True)
    yield Case("stop-on-forgetting", forgets, stops=True)
    yield Case("stop-on-forgetting-killed", forgets, kill_at=2, stops=True)
    yield Case("probe", probe)
    yield Case("adamw-bf16", bf16)
    yield Case("adamw-bf16-killed", bf16, kill_at=5)
    yield Case("in-backward", {**single, "train.optimizer_in_backward": True})
    yield Case("in-backward-killed", {**single, "train.optimizer_in_backward": True}, kill_at=5)
    yield Case("recomputed", {"train.gradient_checkpointing": True})
    yield Case("autocast", {"model.dtype": "bfloat16"})
    yield Case("autocast-killed", {"model.dtype": "bfloat16"}, kill_at=5)
    yield Case(
        "decay-linear", {**full, "train.weight_decay": 0.1, "train.lr_scheduler_type": "linear"}
    )
    for optim in ("adamw_8bit", "adafactor", "sgd", "adamw_torch"):
        yield Case(optim, {**full, "train.optim": optim})
    yield Case("adamw_8bit-killed", {**full, "train.optim": "adamw_8bit"}, kill_at=5)
    yield Case("windows", {"train.logging_steps": 3, "train.eval_steps": 2})
    yield Case("epochs", epochs)
    yield Case(
        "epochs-killed", epochs, kill_at=6
    )  # resumed where the first epoch of four steps ends
    yield Case("plain-text", {"data.train": "texts.jsonl", "data.max_length": 64})
    yield Case("real-lora", real=True)
    yield Case("real-lora-killed", kill_at=4, real=True)


def overrides(case: Case, folder: Path, model: Path) -> list[str]:
    common: dict[str, Any] = {
        "model.source": model, "model.dtype": "float32", "data.train": "rows.jsonl",
        "data.max_length": 128, "train.per_device_train_batch_size": 2,
        "train.gradient_accumulation_steps": 2, "train.max_steps": 8, "train.eval_steps": 3,
        "train.save_steps": 2, "train.learning_rate": 1e-2, "train.report_to": "[]",
        "evaluate.probe": False,
    }  # fmt: skip
    if case.real:
        common |= {
            "model.source": "smollm2-135m", "data.train": REAL, "data.max_rows": 60,
            "data.max_length": 256, "train.max_steps": 6, "train.learning_rate": 3e-4,
        }  # fmt: skip
    sets = common | case.sets
    if sets["data.train"] in ("rows.jsonl", "texts.jsonl"):
        sets["data.train"] = folder / sets["data.train"]
    sets |= {"run.dir": folder / "runs", "run.name": case.name}
    return [f"{key}={json.dumps(v) if isinstance(v, bool) else v}" for key, v in sets.items()]


def train_apart(recipe: Path, kill_at: int | None, metrics: Path) -> int:
    """Run `luthier train RECIPE` in a fork; its exit code, minus the signal that ended it."""
    child = os.fork()
    if child == 0:
        quiet = os.open(os.devnull, os.O_WRONLY)
        os.dup2(quiet, 1)
        os.dup2(quiet, 2)
        sys.argv = ["luthier", "train", str(recipe)]
        from luthier.cli.main import main

        try:
            main()
            os._exit(0)
        except SystemExit as ended:
            os._exit(int(ended.code or 0))
        except BaseException:
            os._exit(99)
    while kill_at is not None:
        if metrics.is_file() and f'"step": {kill_at},' in metrics.read_text():
            os.kill(child, signal.SIGKILL)
            break
        if os.waitpid(child, os.WNOHANG)[0]:
            raise SystemExit(f"{recipe.stem} ended before step {kill_at}")
        time.sleep(0.002)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def digest(value: Any) -> str:
    """SHA-256 of tensors and plain values, whatever file they were in."""
    import torch

    found = hashlib.sha256()

    def feed(part: Any) -> None:
        if isinstance(part, torch.Tensor):
            found.update(f"{part.dtype}{tuple(part.shape)}".encode())
            found.update(part.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
        elif isinstance(part, dict):
            for key in sorted(part, key=str):
                found.update(str(key).encode())
                feed(part[key])
        elif isinstance(part, list | tuple):
            for one in part:
                feed(one)
        else:
            found.update(repr(part).encode())

    feed(value)
    return found.hexdigest()[:16]


def result_of(run: Path) -> dict[str, Any]:
    import torch
    from safetensors.torch import load_file

    weights = {}
    for file in [*run.glob("adapter/*.safetensors"), *run.glob("model/*.safetensors")]:
        weights |= load_file(file)
    steps = {int(p.name[5:]): p for p in (run / "checkpoints").glob("step-*")}
    newest = steps[max(steps)]
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    logged = [{k: line[k] for k in sorted(line) if k not in CLOCKS} for line in lines]
    return {
        "weights": digest(weights),
        "optimizer": digest(torch.load(newest / "optimizer.pt", weights_only=True)),
        "numbers": digest(logged),
        "lines": logged,
    }


def run_case(case: Case, folder: Path, model: Path) -> dict[str, Any]:
    from luthier.recipe import parse_recipe

    run = folder / "runs" / case.name
    recipe = folder / f"{case.name}.yaml"
    recipe.write_text(parse_recipe("", overrides(case, folder, model)).to_yaml())
    code = train_apart(recipe, case.kill_at, run / "metrics.jsonl")
    if case.kill_at is not None:
        assert code == -signal.SIGKILL, f"{case.name}: {code}"
        code = train_apart(recipe, None, run / "metrics.jsonl")
    if code != 0:
        raise SystemExit(f"{case.name} ended with {code}: see it with luthier train {recipe}")
    measured = json.loads((run / "measured.json").read_text())
    if measured["stopped_early"] != case.stops:
        raise SystemExit(f"{case.name} ended at step {measured['steps']}")
    found = result_of(run)
    shutil.rmtree(run)
    return found


def differing(before: dict[str, Any], after: dict[str, Any]) -> str:
    """What differs, with the first line of metrics that does; empty where all is the same."""
    names = [key for key in ("weights", "optimizer", "numbers") if before[key] != after[key]]
    if "numbers" not in names:
        return ", ".join(names)
    pairs = zip(before["lines"], after["lines"], strict=False)
    first = next(((a, b) for a, b in pairs if a != b), (len(before["lines"]), len(after["lines"])))
    return f"{', '.join(names)}; {first[0]} -> {first[1]}"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--record", type=Path)
    parser.add_argument("--compare", type=Path)
    parser.add_argument(
        "--only", default="", help="cases whose names hold one of these, with commas between"
    )
    options = parser.parse_args()
    recorded = options.compare or (options.record if options.record and options.only else None)
    before = json.loads(recorded.read_text())["cases"] if recorded and recorded.is_file() else {}
    found: dict[str, Any] = {}
    different = 0
    with tempfile.TemporaryDirectory(prefix="golden-") as name:
        folder = Path(name)
        if (child := os.fork()) == 0:  # tokenizers start threads, which a fork does not survive
            from families import save_tiny

            save_tiny(folder / "tiny")
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
        write_rows(folder)
        # Imported once, for all forks; nothing is computed here, so torch has no thread yet.
        import luthier.cli.main
        import luthier.train.fit  # noqa: F401

        for case in cases():
            if not any(part in case.name for part in options.only.split(",")):
                continue
            started = time.perf_counter()
            found[case.name] = run_case(case, folder, folder / "tiny")
            says = ""
            if options.compare:
                says = differing(before[case.name], found[case.name]) or "the same"
                different += says != "the same"
            ours = found[case.name]
            print(
                f"{case.name:28}{ours['weights']}  {ours['optimizer']}  {ours['numbers']}"
                f"  {time.perf_counter() - started:5.1f} s  {says}",
                flush=True,
            )
    straight = [n.removesuffix("-killed") for n in found if n.endswith("-killed")]
    for name in (n for n in straight if n in found):
        if differing(found[name], found[f"{name}-killed"]):
            different += 1
            print(f"{name}: killed and resumed is not straight")
    if options.record:
        machine = {"processor": platform.processor(), "threads": os.environ["OMP_NUM_THREADS"]}
        kept = {"machine": machine, "cases": {**before, **found}}
        options.record.write_text(json.dumps(kept, indent=1))
    print(f"{len(found)} cases, {different} different")
    sys.exit(bool(different))


def write_rows(folder: Path) -> None:
    rows = [
        {
            "instruction": f"Repeat the number {n}, please" + " and then count" * (n % 4),
            "output": " ".join(str(n + i) for i in range(1 + n % 7)),
        }
        for n in range(60)
    ]
    texts = [{"text": f"line {n} " * (3 + n % 40)} for n in range(40)]
    for name, made in (("rows", rows), ("texts", texts)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in made))


if __name__ == "__main__":
    main()
