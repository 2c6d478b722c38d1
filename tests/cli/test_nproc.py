"""`luthier train --nproc`: signals go to all processes, and the one that asked says who died."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from helpers import read_metrics, wait_for_step

from luthier.recipe import Recipe
from luthier.run import Run


@pytest.fixture
def start(
    make_recipe: Callable[..., Recipe], tmp_path: Path
) -> Callable[[], "subprocess.Popen[str]"]:
    path = tmp_path / "recipe.yaml"
    path.write_text(
        make_recipe("train.max_steps=2000", "train.save_steps=2", "train.eval_steps=500").to_yaml()
    )

    def go() -> "subprocess.Popen[str]":
        return subprocess.Popen(
            [sys.executable, "-m", "luthier.cli.main", "train", str(path), "--nproc", "2"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"},
        )

    return go


def workers(process: "subprocess.Popen[str]") -> dict[int, psutil.Process]:
    """The processes that train, by rank."""
    children = psutil.Process(process.pid).children(recursive=True)
    ranks = [each for each in children if "luthier.train.launch_many" in each.cmdline()]
    return {int(each.environ()["RANK"]): each for each in ranks}


def test_a_killed_rank_is_named_and_a_signal_saves(
    start: Callable[[], "subprocess.Popen[str]"], tmp_path: Path
) -> None:
    run = Run(tmp_path / "runs" / "run")
    killed = start()
    wait_for_step(run, 3)
    workers(killed)[1].kill()
    _, said = killed.communicate(timeout=120)
    assert killed.returncode == 2, said
    assert "error: rank 1 (process " in said
    assert "run the same command again" in said
    assert "Traceback" not in said

    saved = max(run.checkpoints())
    stopped = start()
    wait_for_step(run, saved + 3)
    first = workers(stopped)[0]
    stopped.send_signal(signal.SIGTERM)
    _, said = stopped.communicate(timeout=120)
    assert stopped.returncode == 130, said
    assert f"training from step {saved} of 2000" in run.log_path.read_text("utf-8")
    assert max(run.checkpoints()) == read_metrics(run)[-1]["step"]
    assert not first.is_running()
