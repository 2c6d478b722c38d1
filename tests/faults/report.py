"""Write docs/reliability.md from what `make faults`, `make fuzz` and `make soak` recorded.

    python tests/faults/report.py FOLDER

FOLDER holds faults.jsonl, fuzz.jsonl and soak.jsonl, each as `--record` leaves it; several runs of
one add up. The text around the tables is in reliability.md.in.
"""

import json
import platform
import subprocess
import sys
from collections import defaultdict
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from faults.run_faults import table

HERE = Path(__file__).parent
ROOT = HERE.parents[1]


def main(folder: Path) -> None:
    text = (HERE / "reliability.md.in").read_text("utf-8")
    parts = {
        "FAULTS": faults(_lines(folder / "faults.jsonl")),
        "FUZZ": fuzz(_lines(folder / "fuzz.jsonl")),
        "SOAK": soak(_lines(folder / "soak.jsonl")),
        "WHEN": datetime.now(UTC).date().isoformat(),
        "MACHINE": machine(),
    }
    for key in ("FAULTS", "FUZZ", "SOAK"):
        parts[key] = parts[key] or "(not recorded yet)"
    for key, value in parts.items():
        text = text.replace(f"@{key}@", value)
    (ROOT / "docs" / "reliability.md").write_text(text, "utf-8")


def _lines(path: Path) -> list[dict[str, Any]]:
    if not path.is_file():
        return []
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def faults(tries: list[dict[str, Any]]) -> str:
    if not tries:
        return ""
    rows = ["| fault | tries | survived | steps taken again (mean, most) |", "|---|---:|---:|---|"]
    rows += [
        f"| {f} | {count} | {survived} | {lost} |" for f, count, survived, lost in table(tries)
    ]
    return "\n".join(rows)


def fuzz(records: list[dict[str, Any]]) -> str:
    if not records:
        return ""
    targets: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for record in records:
        targets[record["target"]].append(record)
    rows = ["| target | inputs | failures | slowest |", "|---|---:|---:|---:|"]
    for name, mine in targets.items():
        inputs, failures = (sum(each[k] for each in mine) for k in ("inputs", "failures"))
        slowest = max(each["slowest"] for each in mine)
        shown = f"{slowest:.2f} s" if slowest else "under 60 s"  # libFuzzer says no more
        rows.append(f"| {name} | {inputs:,} | {failures:,} | {shown} |")
    total = sum(each["inputs"] for each in records)
    return "\n".join([*rows, f"| all | {total:,} | {sum(e['failures'] for e in records):,} | |"])


def soak(records: list[dict[str, Any]]) -> str:
    if not records:
        return ""
    rows = [
        "| steps | seconds | resident, early | at the end | growth | open files | lines missing |",
        "|---:|---:|---:|---:|---:|---|---:|",
    ]
    rows += [
        f"| {r['steps']:,} | {r['seconds']:.0f} | {r['memory_early'] / 2**20:.1f} MiB | "
        f"{r['memory_late'] / 2**20:.1f} MiB | {r['memory_growth']:+.2%} | {r['files_early']} → "
        f"{r['files_late']} | {len(r['lines_missing'])} |"
        for r in records
    ]
    return "\n".join(rows)


def machine() -> str:
    packages = ", ".join(
        f"{p} {version(p)}" for p in ("torch", "transformers", "peft", "hypothesis")
    )
    cores = subprocess.run(["nproc"], capture_output=True, text=True).stdout.strip()
    return f"{platform.system()} {platform.machine()}, {cores} cores, Python {platform.python_version()}, {packages}"


if __name__ == "__main__":
    main(Path(sys.argv[1]))
