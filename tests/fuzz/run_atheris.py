"""`make fuzz-coverage`: the readers of bytes again, by inputs that reach new code (atheris).

    python tests/fuzz/run_atheris.py [--runs 20000] [--seed N] [--record FILE]

Each target is a process of its own, begun from good inputs; what fails is kept in ``corpus/``. Prints a
table (target, inputs, lines of code reached at first and at the end); exits with 1 if anything failed.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))
CORPUS = HERE / "corpus"
NAMES = ("recipe", "data files", "gguf")


def one(name: str, arguments: list[str]) -> None:
    """Fuzz one target in this process, which libFuzzer ends."""
    import atheris

    with atheris.instrument_imports(include=["luthier"]):
        from fuzz.targets import TARGETS
    target = TARGETS[name]
    atheris.Setup([sys.argv[0], *arguments], target.run)
    atheris.Fuzz()


def seeds(name: str) -> list[bytes]:
    from fuzz.targets import GOOD_RECIPE, file_seeds, gguf_seeds

    return {"recipe": [GOOD_RECIPE], "data files": file_seeds(), "gguf": gguf_seeds()}[name]


def fuzz(name: str, runs: int, seed: int) -> dict[str, object]:
    kept = CORPUS / name.replace(" ", "-")
    kept.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        for number, data in enumerate(seeds(name)):
            (Path(folder) / str(number)).write_bytes(data)
        options = [
            f"-runs={runs}", f"-seed={seed}", "-max_len=4096", "-timeout=60", "-rss_limit_mb=4096",
            f"-artifact_prefix={kept}/", folder,
        ]  # fmt: skip
        command = [sys.executable, __file__, "--one", name, *options]
        env = {**os.environ, "OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, capture_output=True, text=True, env=env)
    reached = [int(found) for found in re.findall(r" cov: (\d+)", done.stderr)]
    inputs = re.search(r"Done (\d+) runs", done.stderr)
    return {
        "target": f"{name}, by coverage",
        "seed": seed,
        "inputs": int(inputs[1]) if inputs else 0,
        "failures": int(done.returncode != 0),
        "reached": [reached[0], reached[-1]] if reached else [0, 0],
        "examples": [done.stderr[-1500:]] if done.returncode else [],
    }


def main() -> None:
    if sys.argv[1:2] == ["--one"]:
        one(sys.argv[2], sys.argv[3:])
    parser = argparse.ArgumentParser()
    parser.add_argument("--runs", type=int, default=20_000, help="of each target")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--record", type=Path, help="add the figures to this JSON lines file")
    options = parser.parse_args()
    print(f"{'target':28}{'inputs':>10}{'failures':>10}  reached at first, at the end")
    failed = False
    for name in NAMES:
        found = fuzz(name, options.runs, options.seed)
        first, last = found["reached"]  # type: ignore[misc]
        print(f"{found['target']:28}{found['inputs']:10,}{found['failures']:10}  {first}, {last}")
        print(*found["examples"], sep="\n")  # type: ignore[misc]
        failed |= bool(found["failures"])
        if options.record:
            with options.record.open("a") as file:
                file.write(json.dumps({**found, "slowest": 0.0}) + "\n")
    sys.exit(failed)


if __name__ == "__main__":
    main()
