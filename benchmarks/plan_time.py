"""Predicted against measured speed and memory of real runs, after a calibration in the same go.

    python benchmarks/plan_time.py

Each method trains SmolLM2-135M for twelve steps on rows of nl2bash; the plan that `luthier train`
wrote before is held against what it measured (tokens/s, and the resident memory of the process).
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
DATA = ROOT.parent / "shared/data/nl2bash.jsonl"


def luthier(*arguments: str) -> None:
    subprocess.run([sys.executable, "-m", "luthier.cli.main", *arguments], check=True)


def main() -> None:
    luthier("plan", "--calibrate")
    print(f"{'':8}{'tokens/s':>10}{'predicted':>11}{'off':>8}{'peak GiB':>10}{'off':>8}")
    with tempfile.TemporaryDirectory() as folder:
        for method in ("lora", "full", "qlora"):
            settings = {
                "data.train": DATA,
                "data.max_rows": 400,
                "train.max_steps": 12,
                "train.eval_rows": 16,
                "run.dir": folder,
                "run.name": method,
            }
            sets = [part for key, value in settings.items() for part in ("--set", f"{key}={value}")]
            subprocess.run(
                [
                    sys.executable,
                    "-m",
                    "luthier.cli.main",
                    "train",
                    f"recipes/{method}.yaml",
                    *sets,
                ],
                check=True,
                cwd=ROOT,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
            measured = json.loads((Path(folder) / method / "measured.json").read_text())
            plan = json.loads((Path(folder) / method / "plan.json").read_text())
            off = measured["plan_errors"]
            print(
                f"{method:8}{measured['tokens_per_second']:10.0f}"
                f"{plan['tokens_per_second'][0]:11.0f}{off['tokens_per_second']:8.1%}"
                f"{measured['peak_memory_bytes'] / 2**30:10.2f}{off['peak_memory']:8.1%}",
                flush=True,
            )


if __name__ == "__main__":
    main()
