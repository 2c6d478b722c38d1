"""From what a person writes as ``model.source`` to a local folder in Transformers format."""

import difflib
import hashlib
import re
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock

from luthier.errors import UserError
from luthier.events import OnEvent, during, ignore
from luthier.files import staged_folder, user_path
from luthier.models.known import KNOWN_MODELS
from luthier.models.pull import HUB_PATTERNS, cache_folder, pull

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


@dataclass(frozen=True)
class ResolvedModel:
    """``folder`` holds the model; ``origin`` says in words where it came from."""

    folder: Path
    origin: str


def is_on_hub(source: str) -> bool:
    """Whether ``resolve`` asks the hub for it: no known name, nothing here, but an ``owner/name``."""
    path = user_path(source)
    if source in KNOWN_MODELS or path.is_dir() or path.is_file():
        return False
    return _HUB_ID.fullmatch(source) is not None and not source.startswith(".")


def resolve(
    source: str, revision: str | None = None, weights: bool = True, on_event: OnEvent = ignore
) -> ResolvedModel:
    """Find the model, fetching or converting it if need be.

    Args:
        source: known name, local Transformers folder, ``.gguf`` file, or hub id ``owner/name``.
        revision: hub branch, tag or commit; only for a hub id.
        weights: False leaves the weights on the hub: config and tokenizer are enough to plan.

    Raises:
        UserError: there is no such model; the message names the nearest known one.
    """
    path = user_path(source)
    if source in KNOWN_MODELS:
        if KNOWN_MODELS[source].purpose == "embedding":
            raise UserError(
                f"'{source}' is an embedding model for retrieval; it does not generate text"
            )
        pulled = pull(source, verify=False, on_event=on_event)
        return ResolvedModel(pulled.folder, pulled.origin)
    if path.is_dir():
        return ResolvedModel(_check_folder(path, on_event), f"folder {path}")
    if path.is_file():
        return ResolvedModel(_converted(path, on_event), f"file {path}")
    if is_on_hub(source):
        with during(f"fetching {source} from the hub", on_event):
            return ResolvedModel(_hub_snapshot(source, revision, weights), f"hub {source}")
    near = difflib.get_close_matches(source, KNOWN_MODELS, n=1, cutoff=0.5)
    hint = f"; did you mean '{near[0]}'?" if near else ""
    raise UserError(
        f"unknown model '{source}': not a known name ({', '.join(KNOWN_MODELS)}), "
        f"not a folder or file here, not a hub id like owner/name{hint}"
    )


def _check_folder(folder: Path, on_event: OnEvent) -> Path:
    if (folder / "config.json").is_file():
        return folder
    if (folder / "adapter_config.json").is_file():
        raise UserError(f"{folder} holds an adapter, not a model; give its base model instead")
    if (folder / "model" / "config.json").is_file():
        return folder / "model"  # a full fine-tuning run: continue from its weights
    ggufs = sorted(folder.glob("*.gguf"))
    if len(ggufs) == 1:
        return _converted(ggufs[0], on_event)
    raise UserError(f"{folder} is not a model folder: it has no config.json")


def _converted(file: Path, on_event: OnEvent) -> Path:
    """The cached conversion of a GGUF file; a changed file is converted again."""
    stat = file.stat()
    key = f"{file.resolve()}:{stat.st_size}:{stat.st_mtime_ns}"
    target = (
        cache_folder() / "gguf" / f"{file.stem}-{hashlib.sha256(key.encode()).hexdigest()[:12]}"
    )
    from luthier.models.gguf import convert_gguf  # brings torch: for those who need it

    target.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{target}.lock"):
        if not target.is_dir():
            with (
                during(f"converting {file.name} (once)", on_event),
                staged_folder(target) as folder,
            ):
                convert_gguf(file, folder)
    return target


def _hub_snapshot(hub_id: str, revision: str | None, weights: bool) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    try:
        return Path(
            snapshot_download(
                hub_id,
                revision=revision,
                allow_patterns=[*HUB_PATTERNS, "*.py"],
                ignore_patterns=None if weights else ["*.safetensors"],
                etag_timeout=5,
            )
        )
    except GatedRepoError:
        raise UserError(
            f"{hub_id} is gated: accept its terms on the hub, then log in with `hf auth login`"
        ) from None
    except RevisionNotFoundError:
        raise UserError(f"{hub_id} has no revision '{revision}'") from None
    except RepositoryNotFoundError:
        raise UserError(
            f"the hub has no model '{hub_id}' (or it is private: `hf auth login`)"
        ) from None
    except (LocalEntryNotFoundError, OfflineModeIsEnabled):
        raise UserError(
            f"'{hub_id}' is not a folder here, is not in the hub's cache, and the hub does not answer"
        ) from None
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        raise UserError(f"cannot fetch {hub_id} from the hub: {error}") from error
