"""From what a person writes as a data source to the files it means."""

import glob
from pathlib import Path

from luthier.data.folders import files_of_folder, is_data
from luthier.data.kinds import COMPRESSED, READABLE, endings
from luthier.errors import UserError
from luthier.events import OnEvent, during, ignore
from luthier.files import user_path
from luthier.recipe import hub_dataset


def find_files(source: str, on_event: OnEvent = ignore) -> list[str]:
    """The data files that ``source`` means, sorted.

    Args:
        source: a file; a folder (``files_of_folder`` says which of its files); a glob pattern; or a
            dataset on the hub, ``owner/name``, fetched into the hub's cache. A folder and a dataset
            may be followed by ``:split``, ``:configuration`` or ``:configuration/split``.

    Raises:
        UserError: there is nothing there, or nothing readable, or the hub does not give it.
    """
    path = user_path(source)
    if path.is_dir():
        return _names(files_of_folder(path, source, None, on_event))
    if path.exists():
        return [source]
    before, _, wanted = source.rpartition(":")
    if before and wanted and user_path(before).is_dir():
        return _names(files_of_folder(user_path(before), before, wanted, on_event))
    if glob.has_magic(source):
        # Path.glob takes no absolute patterns.
        found = sorted(glob.glob(str(path), recursive=True))  # noqa: PTH207
        files = [name for name in found if is_data(Path(name))]
        if not files:
            raise UserError(
                f"no data file matches {source}: names of data files end in {endings()}"
            )
        return files
    hub = hub_dataset(source)
    if hub is not None:
        hub_id, split = hub
        with during(f"fetching {source} from the hub", on_event):
            folder = _hub_snapshot(hub_id)
        return _names(files_of_folder(folder, hub_id, split, on_event, from_hub=True))
    raise UserError(f"no data file at {source}")


def _names(files: list[Path]) -> list[str]:
    return [str(file) for file in files]


def _hub_snapshot(hub_id: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
    )

    patterns = [f"*{kind}{end}" for kind in READABLE for end in ("", *COMPRESSED)]
    patterns.append("README.md")
    try:
        return Path(
            snapshot_download(hub_id, repo_type="dataset", allow_patterns=patterns, etag_timeout=5)
        )
    except GatedRepoError:
        raise UserError(
            f"{hub_id} is gated: accept its terms on the hub, then log in with `hf auth login`"
        ) from None
    except RepositoryNotFoundError:
        raise UserError(
            f"the hub has no dataset '{hub_id}' (or it is private: `hf auth login`)"
        ) from None
    except (LocalEntryNotFoundError, OfflineModeIsEnabled):
        raise UserError(
            f"'{hub_id}' is not a file or folder here, is not in the hub's cache, and the hub does "
            "not answer"
        ) from None
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        raise UserError(f"cannot fetch {hub_id} from the hub: {error}") from error
