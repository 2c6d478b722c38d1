"""Whether a run's sources are still what it read: it keeps its own rows, and goes on with those."""

from luthier.data.sources import find_files
from luthier.errors import UserError
from luthier.events import Note, OnEvent
from luthier.files import sha256, user_path
from luthier.recipe import DataGroup, hub_dataset
from luthier.run import Run


def note_changed_sources(data: DataGroup, run: Run, on_event: OnEvent) -> None:
    """Warn where files of ``data`` differ from what ``run`` read, or are new."""
    changed = _changed_sources(data, run)
    if not changed:
        return
    shown = ", ".join(changed[:3]) + (f" and {len(changed) - 3} more" if len(changed) > 3 else "")
    has = "has" if len(changed) == 1 else "have"
    what = "is finished" if run.finished else "continues"
    on_event(
        Note(
            f"{shown} {has} changed since {run.root} read its data. The run {what} with the rows it "
            "read then; to train on the data as it is now, choose another run.name",
            warning=True,
        )
    )


def _changed_sources(data: DataGroup, run: Run) -> list[str]:
    report = run.data_report()
    if report is None or report.streamed is not None:  # nobody has read all of a stream
        return []
    read = {user_path(source.file).resolve(): source.sha256 for source in report.sources}
    train = [data.train] if isinstance(data.train, str) else data.train
    more = [data.validation, data.replay.source if data.replay is not None else None]
    changed = []
    # A snapshot of the hub does not change.
    for source in filter(None, [*train, *more]):
        if hub_dataset(source) is not None:
            continue
        try:
            files = find_files(source)
            changed += [
                f for f in files if read.get(user_path(f).resolve()) != sha256(user_path(f))
            ]
        except (UserError, OSError):
            continue  # it is gone, which changes nothing for the run
    return changed
