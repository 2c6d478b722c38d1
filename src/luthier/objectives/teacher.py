"""What a teacher finds likely at every supervised token, asked once and kept in a file.

The file is safetensors: of R rows with S supervised tokens in all, ``rows`` (R, 16) the hash of each
row, ``starts`` (R + 1) the place of its first token, ``ids`` (S, k) int32 and ``log_probs`` (S, k + 1)
float32, as of ``Taught``. It is written and read a batch at a time, for it may be larger than memory.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from luthier.data.batches import Batch, Taught, by_length, collate
from luthier.data.tokens import TokenRow
from luthier.errors import UserError
from luthier.events import OnEvent, ignore, tracked
from luthier.files import staged_file
from luthier.kernels.head import HeadLoss
from luthier.kernels.taught_head import Found, Top, joined, taught_by, taught_by_head
from luthier.objectives.reference import row_key
from luthier.objectives.supervised import model_inputs, supervised_logits

_IDS, _LOG_PROBS = "ids", "log_probs"


@dataclass(frozen=True)
class Lessons:
    """The file at ``path``, which is opened when the first row is asked for."""

    path: Path

    def of(self, rows: Sequence[TokenRow]) -> Taught:
        """What was taught at the supervised tokens of ``rows``, one after the other.

        Raises:
            UserError: the file is gone or damaged, or a row is not in it.
        """
        try:
            file, places = self._file
            parts = [slice(*places[row_key(row)]) for row in rows]
            return Taught(
                *(torch.cat([file.get_slice(n)[p] for p in parts]) for n in (_IDS, _LOG_PROBS))
            )
        except KeyError:
            raise UserError(
                f"{self.path} holds what the teacher finds likely in other rows than those of this run, "
                "so the run cannot be resumed exactly; choose another run.name to start over"
            ) from None

    def check(self) -> None:
        """Open the file.

        Raises:
            UserError: it is gone or damaged.
        """
        _ = self._file

    @cached_property
    def _file(self) -> tuple[Any, dict[bytes, tuple[int, int]]]:
        try:
            file: Any = safe_open(self.path, "pt").__enter__()
            starts = file.get_tensor("starts").tolist()
            rows = file.get_tensor("rows").numpy()
            spans = pairwise(starts)
            return file, {row.tobytes(): span for row, span in zip(rows, spans, strict=True)}
        except (OSError, SafetensorError, ValueError) as error:
            raise UserError(
                f"cannot read {self.path}, which holds what the teacher finds likely: {error}; without "
                "it the run cannot be resumed exactly: choose another run.name to start over"
            ) from None


@dataclass(frozen=True)
class Teacher:
    """A model that can be asked.

    Attributes:
        top: what is kept of it.
        packed, head: as of ``SFT``.
    """

    model: nn.Module
    top: Top
    packed: bool = True
    head: HeadLoss | None = None

    @torch.no_grad()
    def ask(self, batch: Batch) -> Found:
        """What it finds likely at the supervised tokens of ``batch``."""
        pieces = [batch] if self.packed else batch.rows()
        return joined([self._of(piece) for piece in pieces])

    def _of(self, batch: Batch) -> Found:
        if self.head is None:
            return taught_by(*supervised_logits(self.model, batch), self.top)
        targets, top = batch.targets, self.top
        with self.head.calling(
            lambda h, w, b, cap: taught_by_head(h, w, b, cap, targets, top)
        ) as found:
            self.model(**model_inputs(self.model, batch), logits_to_keep=batch.predicts)
        return found[0]


@dataclass(frozen=True)
class Asked:
    """What was found on the way.

    Attributes:
        loss: of the teacher, nats per supervised token.
        kept: the mean probability, at the temperature, of its top-k tokens.
        bytes: of the file.
    """

    loss: float
    kept: float
    bytes: int


def keep_lessons(
    path: Path,
    teacher: Teacher,
    rows: Sequence[TokenRow],
    batch_size: int,
    on_event: OnEvent = ignore,
) -> Asked:
    """Ask ``teacher`` for ``rows``, each content once, and write the file at ``path``.

    Raises:
        UserError: it cannot be written.
    """
    device = next(teacher.model.parameters()).device
    teacher.model.eval()
    supervised = [row for row in rows if row.mask.any()]
    distinct = list({row_key(row): row for row in supervised}.values())
    groups = by_length(distinct, batch_size)
    ordered = [row for group in groups for row in group]
    starts = [0, *accumulate(int(row.mask.sum()) for row in ordered)]
    keys = b"".join(map(row_key, ordered))
    count, k = starts[-1], teacher.top.k
    shapes = {
        "rows": ("U8", (len(ordered), 16), 1),
        "starts": ("I64", (len(ordered) + 1,), 8),
        _IDS: ("I32", (count, k), 4),
        _LOG_PROBS: ("F32", (count, k + 1), 4),
    }
    loss = kept = 0.0
    with staged_file(path) as file:
        at = _write_header(file, shapes)
        file.write(keys)
        file.write(np.asarray(starts, "<i8").tobytes())
        asked = tracked(
            groups, "the teacher's probabilities", on_event, total=len(ordered), size=len
        )
        for group in asked:
            found = teacher.ask(collate([group]).to(device))
            for name, tensor in ((_IDS, found.ids), (_LOG_PROBS, found.log_probs)):
                file.seek(at[name])
                at[name] += file.write(tensor.cpu().numpy().tobytes())
            loss += found.loss.item()
            kept += found.log_probs[:, :-1].exp().sum().item()
        size = file.seek(0, 2)
    return Asked(loss / count, kept / count, size)


def _write_header(file: Any, shapes: dict[str, tuple[str, tuple[int, ...], int]]) -> dict[str, int]:
    """Begin a safetensors file; where each of its tensors begins."""
    ends = list(accumulate(int(np.prod(shape)) * size for _, shape, size in shapes.values()))
    begins = [0, *ends[:-1]]
    told = {
        name: {"dtype": kind, "shape": shape, "data_offsets": [begin, end]}
        for (name, (kind, shape, _)), begin, end in zip(shapes.items(), begins, ends, strict=True)
    }
    text = json.dumps(told).encode()
    text += b" " * (-len(text) % 8)
    file.write(len(text).to_bytes(8, "little") + text)
    return {name: 8 + len(text) + begin for name, begin in zip(shapes, begins, strict=True)}
