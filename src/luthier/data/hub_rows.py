"""Rows of a data set on the hub as they arrive, by the `datasets` library: nothing is kept on disk."""

from collections.abc import Iterator
from typing import Any

from luthier.data.arrow_rows import rows_of_batches
from luthier.data.conversation import Origin
from luthier.data.readers import BadRow, Item
from luthier.errors import UserError
from luthier.events import OnEvent, tracked
from luthier.extras import need

_TOGETHER = 256  # rows that are converted at once


def hub_rows(name: str, hub_id: str, wanted: str | None, on_event: OnEvent) -> Iterator[Item]:
    """The rows of ``hub_id``, which is ``name`` to the user, numbered from 1.

    Args:
        hub_id: ``owner/name``, or a folder with the layout of the hub.
        wanted: a split, a configuration, or ``configuration/split``; None is the train split.

    Raises:
        UserError: the extra `stream` is not installed, there is no such data set, configuration or
            split, or the hub does not give it.
    """
    yield from tracked(_rows(name, hub_id, wanted), f"reading {name}", on_event)


def _rows(name: str, hub_id: str, wanted: str | None) -> Iterator[Item]:
    need("datasets", extra="stream", what=f"streaming {name} from the hub")
    from datasets.exceptions import DatasetsError
    from huggingface_hub.errors import HfHubHTTPError

    empty = True
    try:
        tables = _open(name, hub_id, wanted).with_format("arrow").iter(batch_size=_TOGETHER)
        for number, row in rows_of_batches(tables):
            empty = False
            origin = Origin(name, number)
            yield BadRow(origin, row) if isinstance(row, str) else (origin, row)
    except (DatasetsError, HfHubHTTPError, OSError, ValueError) as error:
        raise UserError(f"cannot stream {name} from the hub: {error}") from error
    if empty:
        raise UserError(f"{name} is empty: it has no rows")


def _open(name: str, hub_id: str, wanted: str | None) -> Any:
    from datasets import (
        disable_progress_bars,
        get_dataset_config_names,
        get_dataset_split_names,
        load_dataset,
    )

    disable_progress_bars()  # ours tell how far it is

    configs = get_dataset_config_names(hub_id)
    first, _, rest = (wanted or "").partition("/")
    config, split = (first, rest) if first in configs else (None, wanted or "")
    if config is None and len(configs) > 1 and "default" not in configs:
        raise UserError(
            f"{name} has several configurations ({', '.join(configs)}); choose one, as in "
            f"{hub_id}:{configs[0]}"
        )
    splits = get_dataset_split_names(hub_id, config)
    if (split or "train") not in splits:
        raise UserError(
            f"{name} has no split '{split or 'train'}': it has {', '.join(splits)}; choose one, as in "
            f"{hub_id}:{splits[0]}"
        )
    return load_dataset(hub_id, config, split=split or "train", streaming=True)
