"""Run recipes, each killed (SIGKILL) at one exact point and then run again; used by test_resume.py.

    python killed_run.py PLAN.json

PLAN has the rows of a stream's window and "cuts", a list of {"recipe": file, "point": name, "nth":
count}; each comes back with the signal that ended the first try and the exit code of the second. The
processes are forked before torch has started a thread, so that importing is paid for once.
"""

import json
import os
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from forked import ready_to_fork

import luthier.files
from luthier.data import stream
from luthier.events import Step
from luthier.objectives.distill import Distill
from luthier.objectives.preference import KTO, Preference
from luthier.objectives.sft import SFT
from luthier.objectives.teacher import Teacher
from luthier.recipe import load_recipe
from luthier.run import claim_run
from luthier.sinks.files import MetricsFile
from luthier.train import checkpoints, finish
from luthier.train.fit import fit
from luthier.train.state import State
from luthier.train.validation import Validation


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def half_a_line(sink: Any, *_: Any) -> None:
    with sink.run.metrics_path.open("a") as file:
        file.write('{"step": 4, "los')
    die()


def is_checkpoint(*args: Any) -> bool:
    return any("step-" in str(arg) for arg in args)


# name -> (owner, attribute, does this call count)
POINTS: dict[str, tuple[Any, str, Callable[..., bool]]] = {
    "step": (SFT, "loss", lambda *_: torch.is_grad_enabled()),  # once per micro-batch
    "pair-step": (Preference, "loss", lambda *_: torch.is_grad_enabled()),
    "taught-step": (Distill, "loss", lambda *_: torch.is_grad_enabled()),
    "teacher": (Teacher, "ask", lambda *_: True),  # once per batch of rows
    "label-step": (KTO, "loss", lambda *_: torch.is_grad_enabled()),
    "log": (MetricsFile, "__call__", lambda _sink, event: isinstance(event, Step)),
    "evaluation": (Validation, "measure", lambda *_: True),
    "save-weights": (checkpoints, "save_adapter", lambda *_: True),
    "save-optimizer": (torch, "save", lambda *args: "optimizer.pt" in str(args[1])),
    "save-state": (State, "save", lambda *_: True),
    "save-rename": (luthier.files.os, "replace", is_checkpoint),
    "rotate": (luthier.files.shutil, "rmtree", is_checkpoint),
    "finish-copy": (finish.shutil, "copyfile", lambda *_: True),
    "finish-last": (finish, "write_json", lambda *_: True),
}


def plant(point: str, nth: int) -> None:
    owner, name, counts = POINTS[point]
    real = getattr(owner, name)
    seen = 0

    def call(*args: Any, **kwargs: Any) -> Any:
        nonlocal seen
        if counts(*args):
            seen += 1
            if seen == nth:
                half_a_line(*args) if point == "log" else die()
        return real(*args, **kwargs)

    setattr(owner, name, call)


def train(recipe_file: str, point: str | None, nth: int) -> None:
    if point is not None:
        plant(point, nth)
    recipe = load_recipe(Path(recipe_file))
    fit(recipe, claim_run(recipe, "x"))


def in_a_process(work: Callable[[], None]) -> int:
    """Exit code of ``work``, or minus the signal that ended it."""
    child = os.fork()
    if child == 0:
        try:
            work()
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def main(plan: Path) -> None:
    ready_to_fork()
    os.fsync = lambda _: None  # type: ignore[assignment]  # what is killed here are processes, no machine
    results = []
    told = json.loads(plan.read_text())
    stream.WINDOW = told["window"]
    for task in told["cuts"]:
        first = in_a_process(lambda t=task: train(t["recipe"], t["point"], t["nth"]))  # type: ignore[misc]
        second = in_a_process(lambda t=task: train(t["recipe"], None, 0))  # type: ignore[misc]
        results.append({**task, "first": first, "second": second})
    plan.with_suffix(".done").write_text(json.dumps(results))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
