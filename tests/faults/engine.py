"""Faults against the real trainer: each is planted in a process of its own, and the run repeated.

A try is a run with the fault, then the same run without it. It survived when the fault ended with
one clear error (or not at all), the second run ended with the very bytes and numbers of a run that
was let be, nothing is left lying about, and no step before the last checkpoint was taken again.

The processes are forked before torch has started a thread, so that importing is paid for once.
"""

import importlib
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from families import save_tiny
from forked import ready_to_fork
from helpers import Notes, read_metrics, write_rows

from luthier.errors import Interrupted, UserError
from luthier.objectives.sft import SFT
from luthier.plan.forecast import forecast
from luthier.recipe import Recipe, parse_recipe
from luthier.run import Run, claim_run
from luthier.train import loop
from luthier.train.fit import fit

STEPS, SAVE = 12, 3
TIMELESS = ("step", "loss", "eval_loss", "grad_norm", "learning_rate", "tokens")

NOBODY = 65534

Plant = Callable[[Run], None]


@dataclass
class Try:
    """How one try went. ``lost`` are steps taken twice; ``said`` is the message people see."""

    fault: str
    survived: bool
    lost: int
    said: str
    why: str = ""


class Bench:
    """A folder with a tiny model, data, and the run that was let be."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.model = folder / "model"
        if (child := os.fork()) == 0:  # tokenizers start threads, which a fork does not survive
            save_tiny(self.model)
            for file in self.model.iterdir():  # also for another user, who is denied other things
                file.chmod(0o644)
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
        rows = [
            {
                "instruction": f"Repeat the number {n}, please" + " and then count" * (n % 4),
                "output": " ".join(str(n + i) for i in range(1 + n % 7)),
            }
            for n in range(60)
        ]
        self.data = write_rows(folder / "rows.jsonl", rows)
        self.tries = 0
        self.whole = Run(folder / "runs" / "whole")
        used = folder / "modules.txt"
        code, said = self.apart(
            self.whole, lambda _run: None, after=lambda: used.write_text("\n".join(sys.modules))
        )
        assert code == 0, said
        # What a run imports on its way is paid for once too, and there for a user without rights.
        for name in used.read_text().splitlines():
            with suppress(ImportError):
                importlib.import_module(name)
        ready_to_fork()
        started = time.perf_counter()
        code, said = self.apart(self.new_run(), lambda _run: None)
        assert code == 0, said
        self.seconds = time.perf_counter() - started

    def recipe(self, run: Run, *overrides: str) -> Recipe:
        return parse_recipe(
            "",
            [
                f"model.source={self.model}", "model.dtype=float32", f"data.train={self.data}",
                "data.max_length=128", "train.per_device_train_batch_size=2",
                "train.gradient_accumulation_steps=2", f"train.max_steps={STEPS}",
                "train.eval_steps=6", f"train.save_steps={SAVE}", "train.save_total_limit=3",
                "train.learning_rate=1e-2", f"run.dir={run.root.parent}",
                f"run.name={run.root.name}", *overrides,
            ],
        )  # fmt: skip

    def new_run(self, parent: Path | None = None) -> Run:
        self.tries += 1
        return Run((parent or self.folder / "runs") / f"try-{os.getpid()}-{self.tries}")

    def apart(
        self,
        run: Run,
        plant: Plant,
        *overrides: str,
        kill_after: float | None = None,
        after: Callable[[], object] = lambda: None,
    ) -> tuple[int, str]:
        """Train in a forked process with ``plant`` in it; its exit code (minus a signal) and words."""
        words = self.folder / "words.txt"
        words.unlink(missing_ok=True)
        child = os.fork()
        if child == 0:
            code = 1
            notes = Notes()
            text = ""
            try:
                plant(run)
                recipe = self.recipe(run, *overrides)
                fit(recipe, claim_run(recipe, "x"), notes, forecast=forecast)
                after()
                code = 0
            except UserError as error:
                code, text = 2, str(error)
            except Interrupted as error:
                code, text = 130, str(error)
            except BaseException:
                code, text = 1, traceback.format_exc()
            resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)
            words.touch()
            words.write_text("\n".join([*notes.notes, text]))
            os._exit(code)
        if kill_after is not None:
            time.sleep(kill_after)
            os.kill(child, signal.SIGKILL)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        return code, words.read_text() if words.is_file() else ""

    def become_nobody(self) -> None:
        """In a forked process: root may write anywhere, and is of no use to test that."""
        if os.geteuid() == 0:
            os.environ["HOME"] = str(self.folder)
            os.setgroups([])
            os.setgid(NOBODY)
            os.setuid(NOBODY)

    @contextmanager
    def open_to_nobody(self) -> Iterator[None]:
        """Let another user read what is here, and leave its words."""
        folders = [self.folder]
        while folders[-1].parent not in (Path(tempfile.gettempdir()), Path("/")):
            folders.append(folders[-1].parent)
        before = [folder.stat().st_mode for folder in folders]
        for folder in folders:
            folder.chmod(0o755)
        self.folder.chmod(0o777)
        try:
            yield
        finally:
            for folder, mode in zip(folders, before, strict=True):
                folder.chmod(mode)

    def judge(
        self, fault: str, run: Run, said: str, *, before: int, overrides: tuple[str, ...] = (),
        exact: bool = True,
    ) -> Try:  # fmt: skip
        """Run again without the fault and compare; ``before`` is the last step that was taken."""
        saved = max(run.checkpoints(), default=0)
        code, words = self.apart(run, lambda _run: None, *overrides)
        lost = max(0, before - saved)
        short = words[-600:] if code not in (0, 2) else words.strip().splitlines()[-1:]
        if code != 0:
            return Try(fault, False, lost, said, f"the second run ended with {code}: {short}")
        why = self.unlike_whole(run) if exact else ""
        if not why and lost > SAVE:
            why = f"{lost} steps were taken twice"
        return Try(fault, not why, lost, said, why)

    def unlike_whole(self, run: Run) -> str:
        """What differs from the run that was let be."""
        if weights(run) != weights(self.whole):
            return "other weights"
        if numbers(run) != numbers(self.whole):
            return "other metrics"
        left = [p.name for p in run.root.rglob(".*") if p.name.endswith(".tmp")]
        if left:
            return f"left behind: {left}"
        return "" if list(run.checkpoints()) == list(self.whole.checkpoints()) else "checkpoints"


def weights(run: Run) -> bytes:
    return (run.adapter_path / "adapter_model.safetensors").read_bytes()


def numbers(run: Run) -> list[dict[str, Any]]:
    return [{k: line[k] for k in TIMELESS if k in line} for line in read_metrics(run)]


def steps_taken(run: Run) -> int:
    """The last step that metrics.jsonl tells of; its last line may be cut off."""
    taken = 0
    if run.metrics_path.is_file():
        for text in run.metrics_path.read_text().splitlines():
            try:
                taken = max(taken, json.loads(text)["step"])
            except ValueError:
                break
    return taken


def clear(said: str) -> bool:
    """Whether what was said is a message and no traceback."""
    return bool(said.strip()) and "Traceback" not in said


# --- the faults; each yields one try a call ---


def sigkill(bench: Bench, draw: random.Random) -> Try:
    """Killed at a random moment, from the start of the process to after its end."""
    run = bench.new_run()
    moment = draw.uniform(0, 1.1 * bench.seconds)
    code, said = bench.apart(run, lambda _run: None, kill_after=moment)
    result = bench.judge("SIGKILL", run, said, before=steps_taken(run))
    if code not in (-signal.SIGKILL, 0):
        return Try("SIGKILL", False, 0, said, f"ended with {code} before it was killed")
    return result


def sigterm(bench: Bench, draw: random.Random) -> Try:
    """Told to end at a random step, as a cluster does: saves and goes."""
    step = draw.randrange(1, STEPS)

    def plant(_run: Run) -> None:
        at_step(step, lambda: os.kill(os.getpid(), signal.SIGTERM))

    run = bench.new_run()
    code, said = bench.apart(run, plant)
    taken = steps_taken(run)
    if code != 130 or taken != max(run.checkpoints()):
        return Try("SIGTERM", False, 0, said, f"exit {code}, step {taken} not saved")
    return bench.judge("SIGTERM", run, said, before=taken, exact=False)


def disk_full(bench: Bench, draw: random.Random) -> Try:
    """A file system that is full before the run ends (or, without root, files that may not grow)."""
    if not may_mount():
        return file_too_large(bench, draw)
    megabytes = draw.uniform(0.3, 2.2)
    with small_disk(bench.folder / "small", f"size={int(megabytes * 1024)}k") as disk:
        run = bench.new_run(disk)
        code, said = bench.apart(run, lambda _run: None)
        taken = steps_taken(run)
        subprocess.run(["mount", "-o", "remount,size=64m", str(disk)], check=True)
        result = bench.judge("disk full", run, said, before=taken)
    if code not in (0, 2) or (code == 2 and not clear(said)):
        return Try("disk full", False, 0, said, f"ended with {code}: {said[-300:]}")
    return result


def file_too_large(bench: Bench, draw: random.Random) -> Try:
    limit = draw.randrange(1, 400_000)

    def plant(_run: Run) -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))

    run = bench.new_run()
    code, said = bench.apart(run, plant)
    result = bench.judge("file may not grow", run, said, before=steps_taken(run))
    if code not in (0, 2) or (code == 2 and not clear(said)):
        return Try("file may not grow", False, 0, said, f"ended with {code}: {said[-300:]}")
    return result


def read_only(bench: Bench, draw: random.Random) -> Try:
    """From a step on, nothing in the run may be made or changed any more."""
    step = draw.randrange(1, STEPS)
    folder = bench.folder / f"frozen-{bench.tries}"
    folder.mkdir()
    if os.geteuid() == 0:
        os.chown(folder, NOBODY, NOBODY)
    run = bench.new_run(folder)

    def plant(_run: Run) -> None:
        bench.become_nobody()
        at_step(step, lambda: set_modes(run, 0o555, 0o444))

    with bench.open_to_nobody():
        code, said = bench.apart(run, plant)
    set_modes(run, 0o755, 0o644)
    result = bench.judge("read-only folder", run, said, before=steps_taken(run))
    shutil.rmtree(folder)
    if code != 2 or not clear(said):
        return Try("read-only folder", False, 0, said, f"ended with {code}: {said[-300:]}")
    return result


def denied(bench: Bench, draw: random.Random) -> Try:
    """A user who may not write where the run belongs."""
    folder = bench.folder / "denied"
    folder.mkdir(exist_ok=True)
    folder.chmod(0o555)
    run = bench.new_run(folder)
    with bench.open_to_nobody():
        code, said = bench.apart(run, lambda _run: bench.become_nobody())
    folder.chmod(0o755)
    if code != 2 or not clear(said) or list(folder.iterdir()):
        return Try("permission denied", False, 0, said, f"ended with {code}: {said[-300:]}")
    result = bench.judge("permission denied", run, said, before=0)
    shutil.rmtree(folder)
    return result


def bad_checkpoint(bench: Bench, draw: random.Random) -> Try:
    """A bit flipped in, or the end cut off, the newest checkpoint of a run that was killed."""
    run = bench.new_run()
    died, _ = bench.apart(
        run, lambda _run: at_step(8, lambda: os.kill(os.getpid(), signal.SIGKILL))
    )
    assert died == -signal.SIGKILL
    newest = run.checkpoint_path(max(run.checkpoints()))
    # README.md is PEFT's model card; every file counts.
    file = draw.choice(sorted(newest.iterdir()))
    content = bytearray(file.read_bytes())
    cut = draw.random() < 0.5
    if cut:
        content = content[: draw.randrange(len(content) - 1)]
    else:
        content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
    file.write_bytes(content)
    name = "checkpoint cut short" if cut else "checkpoint bit flipped"
    before = steps_taken(run)
    code, said = bench.apart(run, lambda _run: None)
    said_so = "cannot be used" in said and newest.name.removeprefix("step-") in said
    if code != 0 or not said_so:
        return Try(name, False, 0, said, f"{file.name}: exit {code}, {said[-300:]}")
    why = bench.unlike_whole(run)
    # The step before the damaged one is where it went on: that is the loss that cannot be helped.
    return Try(name, not why, before - (8 - 2 - SAVE), said, why and f"{file.name}: {why}")


def two_processes(bench: Bench, draw: random.Random) -> Try:
    """A second process on the same run is told so, and harms nothing."""
    run = bench.new_run()
    gate = bench.folder / "gate"
    gate.unlink(missing_ok=True)
    step = draw.randrange(1, STEPS)

    def wait() -> None:
        gate.touch()
        time.sleep(3)

    holder = os.fork()
    if holder == 0:
        at_step(step, wait)
        recipe = bench.recipe(run)
        fit(recipe, claim_run(recipe, "x"))
        os._exit(0)
    deadline = time.monotonic() + 120
    while not gate.exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    code, said = bench.apart(run, lambda _run: None)
    first = os.waitstatus_to_exitcode(os.waitpid(holder, 0)[1])
    why = bench.unlike_whole(run) if first == 0 else f"the first ended with {first}"
    if code != 2 or "another process is using" not in said:
        why = f"the second ended with {code}: {said[-300:]}"
    return Try("two processes", not why, 0, said, why)


def clock_jumps(bench: Bench, draw: random.Random) -> Try:
    """The clock leaps by up to ten years, both ways, at every look."""

    def plant(_run: Run) -> None:
        real = time.time
        leap = random.Random(draw.random())
        time.time = lambda: real() + leap.uniform(-3e8, 3e8)

    run = bench.new_run()
    code, said = bench.apart(run, plant)
    why = bench.unlike_whole(run) if code == 0 else f"ended with {code}: {said[-300:]}"
    return Try("clock jumps", not why, 0, said, why)


def one_nan(bench: Bench, draw: random.Random) -> Try:
    """One loss or gradient that is non-finite: that step is skipped, said, and the run goes on."""
    step, value = draw.randrange(1, STEPS - 1), draw.choice([float("nan"), float("inf")])
    gradient = draw.random() < 0.5
    name = f"{'gradient' if gradient else 'loss'} {value}"
    run = bench.new_run()
    code, said = bench.apart(run, lambda _run: no_number({step}, value, gradient))
    lines = read_metrics(run)
    skipped = [line["step"] for line in lines if "skipped" in line]
    why = ""
    if code != 0 or skipped != [step] or "were skipped" not in said:
        why = f"ended with {code}, steps skipped {skipped}: {said[-300:]}"
    elif any(not torch.isfinite(torch.tensor(line.get("loss", 0.0))) for line in lines):
        why = "a non-finite loss was logged"
    return Try(name, not why, 0, said, why)


def always_nan(bench: Bench, draw: random.Random) -> Try:
    """From some step on no loss is a number: the run stops, and shows the rows."""
    step = draw.randrange(1, STEPS - 3)
    run = bench.new_run()
    plant = no_number
    code, said = bench.apart(run, lambda _run: plant(set(range(step, 99)), float("nan"), False))
    rows = json.loads(run.bad_batch_path.read_text())["rows"] if run.bad_batch_path.exists() else []
    if code != 2 or len(rows) != 4 or not all("origin" in row for row in rows):
        return Try("loss nan for good", False, 0, said, f"ended with {code}: {said[-300:]}")
    return bench.judge("loss nan for good", run, said, before=step - 1)


def out_of_memory(bench: Bench, draw: random.Random) -> Try:
    """Memory for fewer rows than the recipe says; ``train.auto_batch`` finds how many."""
    step = draw.randrange(1, STEPS)
    run = bench.new_run()
    code, said = bench.apart(run, lambda _run: little_memory(step, rows=1), "train.auto_batch=true")
    why = ""
    lines = [line for line in read_metrics(run) if "loss" in line]
    whole = [line for line in read_metrics(bench.whole) if "loss" in line]
    if code != 0 or "out of memory with 2 rows per micro-batch (the plan predicted" not in said:
        why = f"ended with {code}: {said[-300:]}"
    elif [line["step"] for line in lines] != list(range(1, STEPS + 1)):
        why = "steps are missing"
    elif [line["tokens"] for line in lines] != [line["tokens"] for line in whole]:
        why = "a step no longer has the rows it had"  # the effective batch is kept
    lost = (step - 1) % SAVE
    return Try("out of memory", not why, lost, said, why)


def out_of_memory_unasked(bench: Bench, draw: random.Random) -> Try:
    """The same without ``auto_batch``: one clear message, and all that was saved is there."""
    step = draw.randrange(1, STEPS)
    run = bench.new_run()
    code, said = bench.apart(run, lambda _run: little_memory(step, rows=1))
    if code != 2 or "train.auto_batch=true" not in said or "the plan predicted" not in said:
        return Try("out of memory, no auto_batch", False, 0, said, f"exit {code}: {said[-300:]}")
    return bench.judge("out of memory, no auto_batch", run, said, before=steps_taken(run))


FAULTS: dict[str, Callable[[Bench, random.Random], Try]] = {
    "sigkill": sigkill,
    "sigterm": sigterm,
    "disk-full": disk_full,
    "file-size": file_too_large,
    "read-only": read_only,
    "denied": denied,
    "bad-checkpoint": bad_checkpoint,
    "two-processes": two_processes,
    "clock": clock_jumps,
    "one-nan": one_nan,
    "nan-for-good": always_nan,
    "out-of-memory": out_of_memory,
    "out-of-memory-unasked": out_of_memory_unasked,
}

# --- what is planted ---


def at_step(step: int, action: Callable[[], None]) -> None:
    """Do ``action`` at the beginning of a step (from 1), once."""
    real = loop.train_step
    done = False

    def call(learner: Any, *args: Any) -> Any:
        nonlocal done
        if not done and next_step(learner) >= step:
            done = True
            action()
        return real(learner, *args)

    loop.train_step = call


def next_step(learner: loop.Learner) -> int:
    """The number of the step that a learner takes now, from 1."""
    return learner.scheduler.last_epoch + 1


def in_training(plant: Callable[[int, Any, Any], Any]) -> None:
    """Let ``plant(step, batch, loss)`` change the loss of each micro-batch that trains."""
    real_step, real_loss = loop.train_step, SFT.loss
    now = 0

    def step(learner: Any, *args: Any) -> Any:
        nonlocal now
        now = next_step(learner)
        return real_step(learner, *args)

    def loss(self: SFT, model: Any, batch: Any) -> Any:
        found, parts = real_loss(self, model, batch)
        return (plant(now, batch, found) if torch.is_grad_enabled() else found), parts

    loop.train_step = step
    SFT.loss = loss  # type: ignore[method-assign]


def no_number(steps: set[int], value: float, gradient: bool) -> None:
    def plant(step: int, _batch: Any, loss: Any) -> Any:
        if step not in steps:
            return loss
        if gradient:
            loss.register_hook(lambda grad: grad * value)
            return loss
        return loss * value

    in_training(plant)


def little_memory(step: int, rows: int) -> None:
    """From ``step`` on a micro-batch of more than ``rows`` rows does not fit."""

    def plant(now: int, batch: Any, loss: Any) -> Any:
        if now >= step and len(batch.row_lengths) > rows:
            torch.empty(2**60, dtype=torch.uint8)  # what the allocator itself says
        return loss

    in_training(plant)


def set_modes(run: Run, folders: int, files: int) -> None:
    """Of all that is in the run; folders last, so that what is in them can still be reached."""
    for path in sorted(run.root.rglob("*"), reverse=True):
        path.chmod(folders if path.is_dir() else files)
    run.root.chmod(folders)


def may_mount() -> bool:
    if os.geteuid() != 0 or not sys.platform.startswith("linux"):
        return False
    with tempfile.TemporaryDirectory() as folder:
        mounted = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", folder], capture_output=True
        )
        if mounted.returncode == 0:
            subprocess.run(["umount", folder], check=False)
        return mounted.returncode == 0


@contextmanager
def small_disk(folder: Path, options: str) -> Iterator[Path]:
    folder.mkdir(exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=False)


def main(plan: Path) -> None:
    """Do ``{"faults": {name: tries}, "seed": n}``, write the tries beside it, one a line."""
    work = json.loads(plan.read_text())
    out = plan.with_suffix(".done")
    deadline = time.monotonic() + work.get("seconds", 1e9)
    with tempfile.TemporaryDirectory(prefix="luthier-faults-") as folder, out.open("w") as file:
        bench = Bench(Path(folder))
        for name, tries in work["faults"].items():
            draw = random.Random(f"{name} {work['seed']}")
            for _ in range(tries):
                if time.monotonic() > deadline:
                    return
                result = FAULTS[name](bench, draw)
                file.write(json.dumps({"name": name, **asdict(result)}) + "\n")
                file.flush()
                for made in (bench.folder / "runs").glob("try-*"):
                    shutil.rmtree(made)


if __name__ == "__main__":
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "2")))
    main(Path(sys.argv[1]))
