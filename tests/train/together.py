"""Run recipes in several processes each; used by test_processes.py.

    python together.py PLAN.json

PLAN is a list of {"recipe": file, "ranks": count, "fault": null or [kind, rank, nth call]}. Each comes
back with what every rank ended by: its error, or nothing, or the signal that killed it. The processes
are forked before torch has started a thread, so that importing is paid for once.
"""

import json
import os
import signal
import socket
import sys
import time
import traceback
from pathlib import Path
from typing import Any

import torch
from forked import ready_to_fork

from luthier.data import stream
from luthier.errors import UserError
from luthier.objectives.sft import SFT
from luthier.recipe import load_recipe
from luthier.run import claim_run
from luthier.train.fit import fit
from luthier.train.state import State

_LONGEST = 100  # seconds of a run


def plant(kind: str, nth: int) -> None:
    """Have the nth micro-batch (of ``disk`` the nth checkpoint) meet its fault."""
    owner: Any = State if kind == "disk" else SFT
    name = "save" if kind == "disk" else "loss"
    real = getattr(owner, name)
    seen = 0

    def call(*args: Any) -> Any:
        nonlocal seen
        if kind != "disk" and not torch.is_grad_enabled():
            return real(*args)
        seen += 1
        if seen != nth:
            return real(*args)
        if kind == "disk":
            raise UserError("cannot write here")
        if kind == "memory":
            raise torch.OutOfMemoryError("planted")
        if kind == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if kind == "stop":
            os.kill(os.getpid(), signal.SIGTERM)
        loss, parts = real(*args)
        return loss * (torch.nan if kind == "nan" else 1), parts

    setattr(owner, name, call)


class Unlearning:
    """A probe that runs the model, and finds that it forgets half of what it knew each time."""

    accuracy = 2.0

    def __call__(self, model: Any, _tokenizer: Any) -> dict[str, float]:
        self.accuracy /= 2
        with torch.no_grad():
            loss = model(input_ids=torch.ones(1, 4, dtype=torch.long)).logits.square().mean()
        return {"probe_accuracy": self.accuracy, "probe_loss": loss.item()}


def train(task: dict[str, Any], rank: int, port: int, said: Path) -> None:
    if task["ranks"] > 1:
        os.environ.update(
            RANK=str(rank),
            LOCAL_RANK=str(rank),
            WORLD_SIZE=str(task["ranks"]),
            MASTER_ADDR="127.0.0.1",
            MASTER_PORT=str(port),
            GLOO_SOCKET_IFNAME="lo",
        )
    kind, whose, nth = task.get("fault") or (None, -1, 0)
    if rank == whose:
        plant(kind, nth)
    recipe = load_recipe(Path(task["recipe"]))
    probe = Unlearning() if recipe.train.stop_on_forgetting is not None else None
    try:
        fit(recipe, claim_run(recipe, "x"), probe=probe)
    except BaseException as error:
        said.write_text(f"{type(error).__name__}: {error}")
        if not isinstance(error, UserError | KeyboardInterrupt) and not str(error):
            traceback.print_exc()
        raise


def run(task: dict[str, Any], folder: Path) -> list[str]:
    """What each rank ended by."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    said = [folder / f"said-{rank}" for rank in range(task["ranks"])]
    children = []
    for rank, path in enumerate(said):
        path.unlink(missing_ok=True)
        child = os.fork()
        if child == 0:
            try:
                train(task, rank, port, path)
                os._exit(0)
            except BaseException:
                if not path.exists():
                    traceback.print_exc()
                os._exit(1)
        children.append(child)
    return [how(*each) for each in zip(_waited(children), said, strict=True)]


def _waited(children: list[int]) -> list[int]:
    """The exit code of each, minus the signal that ended it."""
    until = time.monotonic() + _LONGEST
    codes: dict[int, int] = {}
    while len(codes) < len(children):
        done, status = os.waitpid(-1, os.WNOHANG)
        if done:
            codes[done] = os.waitstatus_to_exitcode(status)
        elif time.monotonic() > until:
            for child in children:
                if child not in codes:
                    os.kill(child, signal.SIGABRT)
            until += _LONGEST
        else:
            time.sleep(0.02)
    return [codes[child] for child in children]


def how(code: int, said: Path) -> str:
    if code < 0:
        return signal.Signals(-code).name
    return said.read_text() if said.exists() else ""


def prepare() -> None:
    """What each child would do again."""
    ready_to_fork()
    stream.WINDOW = 5
    os.fsync = lambda _: None  # type: ignore[assignment]  # what is killed here are processes, no machine


def main(plan: Path) -> None:
    prepare()
    results = [run(task, plan.parent) for task in json.loads(plan.read_text())]
    plan.with_suffix(".done").write_text(json.dumps(results))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
