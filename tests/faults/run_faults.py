"""`make faults`: the long form of the fault suite, as a table (fault, tries, survived, lost steps).

    python tests/faults/run_faults.py [--kills 200] [--tries 20] [--seed N] [--seconds S] [--record FILE]

Lost are steps that had been taken and must be taken again; they can only be those since the last
checkpoint, of which there is one every 3 steps. Exits with 1 if a run did not survive.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
ALSO = (
    "sigterm", "disk-full", "file-size", "read-only", "denied", "bad-checkpoint", "two-processes",
    "clock", "one-nan", "nan-for-good", "out-of-memory", "out-of-memory-unasked",
)  # fmt: skip


def table(tries: list[dict[str, Any]]) -> list[tuple[str, int, int, str]]:
    """One line a fault: tries, how many survived, steps lost (mean and most)."""
    groups: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for each in tries:
        groups[each["fault"]].append(each)
    return [
        (
            fault,
            len(group),
            sum(each["survived"] for each in group),
            f"{sum(e['lost'] for e in group) / len(group):.1f}, at most {max(e['lost'] for e in group)}",
        )
        for fault, group in groups.items()
    ]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--tries", type=int, default=20, help="of each of the other faults")
    parser.add_argument("--only", action="append")
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--seconds", type=float, default=1e9, help="stop after so long")
    parser.add_argument("--record", type=Path, help="add the tries to this JSON lines file")
    options = parser.parse_args()
    faults = {"sigkill": options.kills, **dict.fromkeys(ALSO, options.tries)}
    if options.only:
        faults = {name: faults[name] for name in options.only}
    with tempfile.TemporaryDirectory() as folder:
        plan = Path(folder) / "plan.json"
        work = {"faults": faults, "seed": options.seed, "seconds": options.seconds}
        plan.write_text(json.dumps(work))
        env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(HERE.parent), *sys.path[1:]])}
        env.setdefault("OMP_NUM_THREADS", "2")
        code = subprocess.run(
            [sys.executable, str(HERE / "engine.py"), str(plan)], env=env
        ).returncode
        tries = [json.loads(line) for line in plan.with_suffix(".done").read_text().splitlines()]
    print(f"{'fault':30}{'tries':>7}{'survived':>10}  lost steps")
    for fault, count, survived, lost in table(tries):
        print(f"{fault:30}{count:7}{survived:10}  {lost}")
    for each in tries:
        if not each["survived"]:
            print(each["fault"], each["why"], sep=": ")
    if options.record:
        with options.record.open("a") as file:
            file.writelines(json.dumps({**each, "seed": options.seed}) + "\n" for each in tries)
    sys.exit(code or not all(each["survived"] for each in tries))


if __name__ == "__main__":
    main()
