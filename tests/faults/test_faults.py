"""The fault suite in short: each fault a time or two, SIGKILL at 20 random points.

`make faults` runs it long and prints the table.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from faults.engine import FAULTS

ENGINE = Path(__file__).parent / "engine.py"
TRIES = {"sigkill": 20, "bad-checkpoint": 2, "one-nan": 2}


@pytest.fixture(scope="module")
def tries(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    plan = tmp_path_factory.mktemp("faults") / "plan.json"
    plan.write_text(
        json.dumps({"faults": {name: TRIES.get(name, 1) for name in FAULTS}, "seed": 1})
    )
    env = {**os.environ, "PYTHONPATH": str(ENGINE.parents[1])}
    done = subprocess.run(
        [sys.executable, str(ENGINE), str(plan)],
        env=env, capture_output=True, text=True, timeout=900,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads(line) for line in plan.with_suffix(".done").read_text().splitlines()]


@pytest.mark.parametrize("name", FAULTS)
def test_what_was_saved_is_kept_and_the_run_ends_as_if_nothing_had_been(
    name: str, tries: list[dict[str, Any]]
) -> None:
    mine = [each for each in tries if each["name"] == name]
    assert len(mine) == TRIES.get(name, 1)
    for each in mine:
        assert each["survived"], (each["fault"], each["why"], each["said"])
