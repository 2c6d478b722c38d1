"""Rows that rank 0 prepares and the other processes read from disk."""

import shutil
from collections.abc import Callable

from luthier.data.kept import read_split, write_split
from luthier.data.prepare import Prepared
from luthier.errors import UserError
from luthier.records import DataReport
from luthier.run import Run
from luthier.train.processes import Processes


def prepared_once(
    make: Callable[[], Prepared], run: Run, processes: Processes, *, streaming: bool
) -> Prepared:
    """What rank 0 makes. The others get its report, and the rows from files beside the run folder.

    Of a stream each process makes all: it will read all of it.

    Raises:
        UserError: as ``make``; or another machine does not see those files.
    """
    if processes.size == 1 or streaming:
        return make()
    folder = run.root.parent / f".{run.root.name}.rows.tmp"
    made: Prepared | None = None

    def hand_on() -> DataReport:
        nonlocal made
        made = make()
        shutil.rmtree(folder, ignore_errors=True)
        try:
            folder.mkdir(parents=True)
            write_split(folder, made.train, made.validation)
        except OSError as error:
            raise UserError(
                f"cannot write {folder}, from which the other processes read the rows: {error}"
            ) from error
        return made.report

    try:
        report = processes.from_first(hand_on)
        if made is None:
            found = read_split(folder)
            if found is None:
                raise UserError(
                    f"process {processes.rank} cannot read {folder}, which process 0 has written: "
                    "several machines need a file system that all of them see for run.dir"
                )
            made = Prepared(*found, report)
        processes.gathered(None)  # all have opened them
    finally:
        if processes.leads:
            shutil.rmtree(folder, ignore_errors=True)
    return made
