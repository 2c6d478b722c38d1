"""Trials one after another in this process, or several at a time in processes of their own."""

import os
import signal
import subprocess
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

import torch
from filelock import FileLock

from luthier.errors import Interrupted, UserError
from luthier.events import Event, Note, OnEvent
from luthier.files import remove_folder
from luthier.sweep.asked import Asked
from luthier.sweep.shared import Ground, Shared, find_ground
from luthier.sweep.study import (
    best_of,
    folder_of,
    open_study,
    present,
    proposer,
    reason_to_end,
    run_again,
)
from luthier.sweep.trial import Objective
from luthier.train.launch import call_apart
from luthier.train.memory import free_memory

if TYPE_CHECKING:
    from optuna import Study


def work(asked: Asked, ground: Ground, on_event: OnEvent) -> str:
    """Run trials until there is a reason to end, which is returned.

    Raises:
        UserError: the default cannot be trained.
        Interrupted: the user stopped a trial; it saved, and is first when the sweep goes on.
    """
    study, shared = open_study(asked), Shared(ground, asked.folder)
    # One process draws at a time, so that no trial too many is drawn.
    asking = FileLock(asked.folder.asking_path)
    objective = Objective(study, asked, shared, on_event, asking.release)
    while True:
        asking.acquire()
        try:
            why = reason_to_end(study, asked)
            if why is not None:
                return why
            objective.number = None
            study.sampler = proposer(asked, len(present(study)))
            study.optimize(objective, n_trials=1)
        except (Interrupted, KeyboardInterrupt):
            _put_back(study, objective.number)
            raise
        finally:
            if asking.is_locked:
                asking.release()
            free_memory()
        if not asked.keep_all:
            tidy(study, asked)


def _put_back(study: "Study", number: int | None) -> None:
    """A trial that the user stopped is run again, however often."""
    from optuna.trial import TrialState

    for trial in study.get_trials(deepcopy=False, states=(TrialState.FAIL,)):
        if trial.number == number:
            run_again(study, trial, counts=False)


def tidy(study: "Study", asked: Asked) -> None:
    """Delete the weights of trials that are over, but for the best and the default.

    What else their run folders hold stays.
    """
    trials = present(study)
    best = best_of(trials)
    for trial in trials:
        default = trial.user_attrs.get("default")
        mine = trial.user_attrs.get("place") == asked.folder.place
        if trial is best or default or not mine or not trial.state.is_finished():
            continue
        run = asked.folder.trial(folder_of(trial))
        for folder in (run.checkpoints_path, run.adapter_path, run.model_path):
            with suppress(FileNotFoundError):  # another job was sooner
                remove_folder(folder)


def work_together(asked: Asked, on_event: OnEvent) -> str:
    """``work`` in ``asked.jobs`` processes at a time.

    Each gets its share of the processor's cores and, where there are several GPUs, one of them.

    Raises:
        UserError, Interrupted: as ``work``; what the other processes were at is saved first.
    """
    lock = threading.Lock()
    processes: list[subprocess.Popen[bytes]] = []

    def told(event: Event) -> None:
        if isinstance(event, Note):  # displays show one run at a time
            with lock:
                on_event(event)

    def lost(code: int) -> str:
        return (
            f"a process of the sweep in {asked.folder.root} ended without a result (exit code "
            f"{code}); run the same command again: it goes on"
        )

    def start(job: int) -> Any:
        return call_apart(
            "luthier.sweep.work:work_apart",
            (asked,),
            told,
            lost,
            environment=share_of_machine(job, asked.jobs),
            started=processes.append,
        )

    with ThreadPoolExecutor(asked.jobs) as pool, _stopping(processes) as stopped:
        jobs = [pool.submit(start, job) for job in range(asked.jobs)]
        open_jobs = set(jobs)
        while open_jobs:
            try:
                done, open_jobs = wait(open_jobs, timeout=0.5)
            except KeyboardInterrupt:  # they got it too, and are saving
                stopped.set()
                continue
            failed = [job for job in done if job.exception() is not None]
            if failed and not stopped.is_set():  # a second signal would stop them before they save
                stopped.set()
                _terminate(processes)
        errors = [error for job in jobs if (error := job.exception()) is not None]
    for kind in (UserError, Interrupted, BaseException):
        for error in errors:
            if isinstance(error, kind):
                raise error
    return str(jobs[0].result())


def work_apart(asked: Asked, on_event: OnEvent) -> str:
    """``work`` in a process that has nothing yet."""
    try:
        return work(asked, find_ground(asked.recipe), on_event)
    except KeyboardInterrupt:  # not in a trial
        raise Interrupted(f"stopped; everything is saved in {asked.folder.root}") from None


def share_of_machine(job: int, jobs: int) -> dict[str, str]:
    """Environment of one of ``jobs`` processes at a time: cores, and a GPU of its own."""
    found: dict[str, str] = {}
    if "OMP_NUM_THREADS" not in os.environ:
        found["OMP_NUM_THREADS"] = str(max(1, (os.cpu_count() or 1) // jobs))
    gpus = torch.cuda.device_count()
    if gpus > 1:
        seen = os.environ.get("CUDA_VISIBLE_DEVICES", ",".join(map(str, range(gpus)))).split(",")
        found["CUDA_VISIBLE_DEVICES"] = seen[job % len(seen)]
    return found


@contextmanager
def _stopping(processes: "list[subprocess.Popen[bytes]]") -> Iterator[threading.Event]:
    """An event that is set once they were told to stop; SIGTERM, which unlike Ctrl-C is for one
    process, is passed on: they save and end."""
    stopped = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stopped
        return

    def handle(*_: Any) -> None:
        if not stopped.is_set():
            stopped.set()
            _terminate(processes)

    before = signal.signal(signal.SIGTERM, handle)
    try:
        yield stopped
    finally:
        signal.signal(signal.SIGTERM, before)


def _terminate(processes: "list[subprocess.Popen[bytes]]") -> None:
    for process in list(processes):
        process.terminate()
