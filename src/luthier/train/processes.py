"""The processes that train together: what they agree on, hand on, and do in turn.

``Processes`` is one process, for which all of it is trivial; ``Ranks`` are several, started by
torchrun, ``accelerate launch`` or ``luthier train --nproc``. Rank 0 owns the run folder: it writes,
and it alone speaks. Small values go over gloo, whatever device the tensors are on.
"""

import gc
import os
import pickle
import platform
import signal
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any, TypeVar

import psutil
import torch
from torch import Tensor
from torch import distributed as dist
from torch.distributed.distributed_c10d import PrefixStore

from luthier.errors import Interrupted, UserError
from luthier.runtime import World, world
from luthier.train.memory import OutOfMemory

T = TypeVar("T")

# Rank 0 may work for hours while others wait. One that dies closes its connections, and torchrun
# ends the rest, so nobody waits for the dead.
_TIMEOUT = timedelta(days=7)
_LOOKED_FOR = 10.0  # seconds in which a process that died is found out


class Processes:
    """One process.

    Attributes:
        rank: of this process, from 0.
        size: how many they are.
    """

    rank = 0
    size = 1

    @property
    def leads(self) -> bool:
        """Whether this is the process that owns the run folder."""
        return self.rank == 0

    def sums(self, *numbers: float) -> list[float]:
        """Each number, added up over all processes."""
        return list(numbers)

    def add_up(self, tensor: Tensor) -> Tensor:
        """The sum of ``tensor`` over all processes, on its device; it is overwritten."""
        return tensor

    def any(self, said: bool) -> bool:
        """Whether one of them says so."""
        return said

    def gathered(self, value: T) -> list[T]:
        """The values of all processes, by rank."""
        return [value]

    def from_first(self, make: Callable[[], T]) -> T:
        """What rank 0 makes; the others wait for it."""
        return make()

    def in_turn(self, make: Callable[[], T]) -> T:
        """What each makes, rank 0 before the others, who find what it downloaded."""
        return make()

    @contextmanager
    def as_one(self) -> Iterator[None]:
        """What one process raises in this block, all raise."""
        yield

    def rejoin(self) -> None:
        """Connect again, after an error that all have raised and the run survives."""


class Ranks(Processes):
    """Several processes, each connected to all others.

    A rank that fails writes why into the store that brought them together, and leaves. The others
    then lose their connection to it, wherever they are, and read there what to raise.
    """

    def __init__(self, place: World) -> None:
        self.rank, self.size = place.rank, place.size
        self._groups = 0  # so many were left after errors
        self._raised: BaseException | None = None
        if torch.cuda.is_available():
            torch.cuda.set_device(place.local_rank)
        dist.init_process_group(_backend(), timeout=_TIMEOUT)
        self._store = dist.distributed_c10d._get_default_store()
        self._places = self.gathered((platform.node(), os.getpid()))

    def sums(self, *numbers: float) -> list[float]:
        added: list[float] = self.add_up(torch.tensor(numbers, dtype=torch.float64)).tolist()
        return added

    def add_up(self, tensor: Tensor) -> Tensor:
        dist.all_reduce(tensor)
        return tensor

    def any(self, said: bool) -> bool:
        return self.sums(float(said))[0] > 0

    def gathered(self, value: T) -> list[T]:
        found: list[Any] = [None] * self.size
        dist.all_gather_object(found, value)
        return found

    def from_first(self, make: Callable[[], T]) -> T:
        held: list[Any] = [make() if self.leads else None]
        dist.broadcast_object_list(held, src=0, device=torch.device("cpu"))
        made: T = held[0]
        return made

    def in_turn(self, make: Callable[[], T]) -> T:
        if self.leads:
            made = make()
            self.gathered(None)
            return made
        self.gathered(None)
        return make()

    @contextmanager
    def as_one(self) -> Iterator[None]:
        try:
            yield
        except BaseException as error:
            if error is self._raised:  # in a block inside of this one
                raise
            self._raised = self._agreed(error)
            _let_go(error)
            with suppress(RuntimeError):
                dist.destroy_process_group()
            self._wait_for_readers()
            if self._raised is error:
                raise
            raise self._raised from None

    def rejoin(self) -> None:
        self._groups += 1
        self._raised = None
        store = PrefixStore(f"luthier-group-{self._groups}", self._store)
        dist.init_process_group(
            _backend(), store=store, rank=self.rank, world_size=self.size, timeout=_TIMEOUT
        )

    def leave(self) -> None:
        """The work is done, in all processes."""
        self.gathered(None)
        dist.destroy_process_group()

    def _agreed(self, error: BaseException) -> BaseException:
        """What all ranks raise where this one has met ``error``, which may only be another's departure."""
        key = f"luthier-error-{self._groups}"
        parted = _is_of_connection(error)
        if parted and threading.current_thread() is threading.main_thread():
            # torchrun ends all processes once one has died. This one first says so.
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
        try:
            if not parted:
                told = self._store.compare_set(key, "", _packed(error, self.rank).hex())
                return self._unpacked(bytes.fromhex(told.decode()), error)
            until = time.monotonic() + _LOOKED_FOR
            while time.monotonic() < until:
                if self._store.check([key]):
                    return self._unpacked(bytes.fromhex(self._store.get(key).decode()), error)
                if dead := self._dead():
                    return _lost(f"{' and '.join(dead)} ended without a word")
                time.sleep(0.05)
        except (RuntimeError, ValueError):  # the store is gone, with the process that held it
            if not parted:
                return error
            if dead := self._dead():
                return _lost(f"{' and '.join(dead)} ended without a word")
        return _lost(f"the connection between the {self.size} processes broke ({error})")

    def _wait_for_readers(self) -> None:
        """The store may be rank 0's: that stays until all who live have read it."""
        key = f"luthier-read-{self._groups}"
        with suppress(RuntimeError):
            read = self._store.add(key, 1)
            until = time.monotonic() + _LOOKED_FOR
            while self.leads and time.monotonic() < until:
                if read + len(self._dead()) >= self.size:
                    return
                time.sleep(0.05)
                read = self._store.add(key, 0)

    def _dead(self) -> list[str]:
        """The ranks on this machine whose process is no more."""
        here = platform.node()
        return [
            f"rank {rank} (process {pid})"
            for rank, (machine, pid) in enumerate(self._places)
            if machine == here and not _lives(pid)
        ]

    def _unpacked(self, told: bytes, own: BaseException) -> BaseException:
        # From the store that the processes of this run share.
        rank, error, text = pickle.loads(told)  # noqa: S301
        if rank == self.rank:
            return own
        return error if error is not None else RuntimeError(f"rank {rank} failed:\n{text}")


def _backend() -> str:
    return "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"


def _packed(error: BaseException, rank: int) -> bytes:
    known = isinstance(error, UserError | Interrupted | OutOfMemory | KeyboardInterrupt)
    text = "".join(traceback.format_exception(error))
    return pickle.dumps((rank, error if known else None, text))


def _is_of_connection(error: BaseException) -> bool:
    """Whether it says that another process is gone; gloo's errors have no class of their own."""
    if isinstance(error, dist.DistError):
        return True
    return isinstance(error, RuntimeError) and "gloo" in str(error).lower()


def _let_go(error: BaseException) -> None:
    """Drop the locals of the frames that ``error`` left.

    A model of DDP among them would keep the connections open, and the others waiting for this process.
    """
    seen: set[int] = set()
    left: list[BaseException | None] = [error]
    while left:
        one = left.pop()
        if one is not None and id(one) not in seen:
            seen.add(id(one))
            traceback.clear_frames(one.__traceback__)
            left += [one.__cause__, one.__context__]
    gc.collect()


def _lives(pid: int) -> bool:
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def _lost(what: str) -> UserError:
    return UserError(
        f"{what}, so the other processes of this run ended too: it was killed, or the machine's memory "
        "ran out. Saved checkpoints are intact: run the same command again, and it resumes from the last"
    )


@contextmanager
def joined() -> Iterator[Processes]:
    """The processes that were started to train together, connected until the block ends.

    Raises:
        UserError, Interrupted: as one of them does in the block.
    """
    place = world()
    if place.size == 1:
        yield Processes()
        return
    try:
        ranks = Ranks(place)
    except (RuntimeError, ValueError) as error:
        raise UserError(
            f"process {place.rank} of {place.size} cannot connect to the others: {error}; start them with "
            "torchrun or `luthier train --nproc`"
        ) from error
    with ranks.as_one():
        yield ranks
        ranks.leave()
