"""The model that a preference is measured against: the one in training as it was before the first step.

With an adapter that began as nothing it is the model with the adapter off, and is asked in every step.
Otherwise its log-probabilities of all rows are computed once, before the first step, and kept in the
run folder. Both need no second model.
"""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from peft import PeftModel
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from luthier.data.batches import Batch, collate
from luthier.data.tokens import TokenRow
from luthier.errors import UserError
from luthier.events import OnEvent, ignore, tracked
from luthier.files import staged_file
from luthier.recipe import MethodGroup, ObjectiveGroup

Ask = Callable[[nn.Module, Batch], Tensor]  # log-probabilities by row (B,), see ``Preference``


def asked_in_every_step(settings: ObjectiveGroup, method: MethodGroup, continues: bool) -> bool:
    """Whether the reference is the model with its adapter off, instead of kept log-probabilities.

    That is so for a new adapter that begins as nothing and leaves the base's weights alone.

    Args:
        continues: the adapter is one that was trained before.

    Raises:
        UserError: ``settings`` ask for it where it is not so.
    """
    silent = (
        method.name != "full"
        and not continues
        and method.init_lora_weights in (True, "gaussian", "eva")
        and method.bias == "none"
    )
    asked = settings.precompute_ref_log_probs
    if asked is False and not silent:
        raise UserError(
            "objective.precompute_ref_log_probs false needs a new adapter that begins as nothing, "
            "whose model without it is the reference; leave the key out, and the reference's "
            "log-probabilities are computed before the first step"
        )
    return silent and not asked


class Reference(Protocol):
    """Where the log-probabilities of the reference come from."""

    def of(self, rows: Sequence[TokenRow]) -> Tensor | None:
        """Those of ``rows`` that are known before the model is asked, (B,)."""
        ...

    def log_probs(self, model: nn.Module, batch: Batch, ask: Ask) -> Tensor:
        """Those of the rows of ``batch``, (B,) float32, without gradient."""
        ...


class AdapterOff:
    """The model in training without its adapter and without dropout."""

    def of(self, rows: Sequence[TokenRow]) -> None:
        return None

    def log_probs(self, model: nn.Module, batch: Batch, ask: Ask) -> Tensor:
        with keeping_nothing(), _as_it_began(model):
            return ask(model, batch).detach()


@contextmanager
def keeping_nothing() -> Iterator[None]:
    """A forward pass of which no backward pass comes, rounded as one of which one does.

    Without gradients the fast paths give way to Transformers' own, which in bfloat16 rounds otherwise:
    a model would differ from itself by half a nat a row. So the mode is left, and what the graph
    would keep is dropped.
    """
    with saved_tensors_hooks(_nothing, _nothing):
        yield


def _nothing(_: object) -> Any:
    return None


@contextmanager
def _as_it_began(model: nn.Module) -> Iterator[None]:
    adapted: Any = getattr(model, "module", model)  # inside of DistributedDataParallel
    assert isinstance(adapted, PeftModel)
    training = model.training
    model.eval()
    try:
        with adapted.disable_adapter():
            yield
    finally:
        model.train(training)


@dataclass(frozen=True)
class Stored:
    """Log-probabilities that were computed before the first step, by the content of each row."""

    values: dict[bytes, float]

    def of(self, rows: Sequence[TokenRow]) -> Tensor:
        """Raises ``UserError`` where a row is not among them."""
        try:
            return torch.tensor([self.values[row_key(row)] for row in rows], dtype=torch.float32)
        except KeyError:
            raise UserError(
                "the stored log-probabilities of the reference model are not those of this run's rows, "
                "so the run cannot be resumed exactly; choose another run.name to start over"
            ) from None

    def log_probs(self, model: nn.Module, batch: Batch, ask: Ask) -> Tensor:
        assert batch.judged is not None and batch.judged.reference is not None
        return batch.judged.reference

    def save(self, path: Path) -> None:
        """Keep them in ``path``.

        Raises:
            UserError: it cannot be written.
        """
        keys = np.frombuffer(b"".join(self.values), np.uint8).reshape(len(self.values), -1)
        tensors = {
            "rows": torch.from_numpy(keys.copy()),
            "log_probs": torch.tensor(list(self.values.values()), dtype=torch.float32),
        }
        with staged_file(path) as file:
            file.write(save(tensors))

    @classmethod
    def load(cls, path: Path) -> "Stored":
        """What ``save`` kept.

        Raises:
            UserError: it is gone or damaged.
        """
        try:
            tensors = load_file(path)
            keys = [row.tobytes() for row in tensors["rows"].numpy()]
            return cls(dict(zip(keys, tensors["log_probs"].tolist(), strict=True)))
        except (OSError, SafetensorError, KeyError, ValueError) as error:
            raise UserError(
                f"cannot read {path}, which holds the reference model's log-probabilities: {error}; "
                "without it the run cannot be resumed exactly: choose another run.name to start over"
            ) from None


def store(
    model: nn.Module,
    ask: Ask,
    groups: Sequence[Sequence[TokenRow]],
    on_event: OnEvent = ignore,
) -> Stored:
    """Ask ``model``, as it is now and without dropout, for all rows of ``groups``, each a batch.

    In the caller's mode of gradients, which must be that in which they are compared.
    """
    device = next(model.parameters()).device
    training = model.training
    model.eval()
    values: dict[bytes, float] = {}
    asked = tracked(
        groups,
        "log-probabilities of the reference model",
        on_event,
        total=sum(map(len, groups)),
        size=len,
    )
    try:
        with keeping_nothing():
            for group in asked:
                found = ask(model, collate([list(group)]).to(device)).detach().tolist()
                values.update(zip(map(row_key, group), found, strict=True))
    finally:
        model.train(training)
    return Stored(values)


def row_key(row: TokenRow) -> bytes:
    """A hash of the tokens of ``row`` and of which of them are supervised, 16 bytes."""
    ids = np.asarray(row.input_ids, np.int64).tobytes()
    mask = np.packbits(np.asarray(row.supervised, bool)).tobytes()
    return hashlib.blake2b(ids + b"|" + mask, digest_size=16).digest()
