"""Preference losses against the formulas of their papers, computed the plain way, and against TRL's own."""

import math
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from families import CHAT_FAMILIES, MODEL_FAMILIES, make_model, make_tokenizer
from helpers import gradients
from peft import LoraConfig, get_peft_model
from preferences import plain_log_probs, plain_sum, random_pairs
from torch import Tensor, nn

from luthier.data.batches import Batch, by_length, collate
from luthier.data.pairs import with_mismatched
from luthier.data.tokens import TokenRow
from luthier.kernels import head as kernel
from luthier.kernels.head import find_head, head_losses
from luthier.objectives.choose import choose
from luthier.objectives.objective import Objective, divided, mean_over
from luthier.objectives.preference import Preference, first_loss
from luthier.objectives.reference import AdapterOff, Ask, Stored, store
from luthier.objectives.supervised import log_probs, row_sums
from luthier.recipe import ObjectiveGroup

FAMILIES = ("llama", "qwen3", "gemma2", "gpt2")
PAIRED = ("dpo", "ipo", "orpo", "simpo")


@dataclass(frozen=True)
class Other:
    """Another model as the reference."""

    model: nn.Module

    def of(self, rows: Sequence[TokenRow]) -> None:
        return None

    def log_probs(self, model: nn.Module, batch: Batch, ask: Ask) -> Tensor:
        with torch.no_grad():  # with its own head
            return row_sums(log_probs(self.model, batch), batch)


def two_models(family: str) -> tuple[nn.Module, nn.Module]:
    """One to train, and a reference some way off it."""
    model = make_model(family, 96)
    other = deepcopy(model)
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    return model, other.requires_grad_(False)


def labelled(rows: Sequence[TokenRow]) -> list[TokenRow]:
    """Good and bad answers, of unequal number."""
    given = [
        TokenRow(*row.arrays, replace(row.conversation, extra={"label": number % 3 != 1}))
        for number, row in enumerate(rows)
    ]
    return with_mismatched(given, 64)


def rows_for(name: str) -> list[TokenRow]:
    rows = random_pairs(3, seed=5)
    return labelled(rows) if name == "kto" else rows


def ours(
    name: str, model: nn.Module, other: nn.Module, **keys: Any
) -> tuple[Tensor, dict[str, float], Batch]:
    """The mean loss of our objective, its parts as they are logged, and the batch."""
    settings = ObjectiveGroup(name=name, **keys)
    objective = choose(settings, True, find_head(model), Other(other))
    batch = objective.collate([rows_for(name)])
    loss, parts = objective.loss(model, batch)
    count = objective.count(batch)
    return loss / count, divided({n: p.item() / count for n, p in parts.items()}), batch


def same_gradients(
    mine: dict[str, Tensor], theirs: dict[str, Tensor], tolerance: float = 2e-5
) -> None:
    assert mine.keys() == theirs.keys()
    most = max(grad.abs().max().item() for grad in theirs.values())
    for name in mine:
        scale = theirs[name].abs().max().item() + 1e-3 * most
        assert (mine[name] - theirs[name]).abs().max().item() <= tolerance * scale, name


@pytest.mark.parametrize("trained", [True, False])  # a head that trains is computed anew
@pytest.mark.parametrize("family", MODEL_FAMILIES)
def test_log_probs_by_row_and_their_gradients_are_those_of_all_logits(
    family: str, trained: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(kernel._PIECE, "cpu", 4 * 96 * 5)  # several pieces, the last of them short
    model = make_model(family, 96)
    head = find_head(model)
    assert head is not None
    head.head.weight.requires_grad_(trained)
    rows = random_pairs(3)
    batch = collate([rows])
    weights = torch.linspace(-2, 3, len(rows))  # each row has a gradient of its own
    fast = row_sums(log_probs(model, batch, head=head), batch)
    slow = torch.stack([plain_sum(model, row) for row in rows])
    assert fast.tolist() == pytest.approx(slow.tolist(), rel=1e-5, abs=1e-5)
    same_gradients(gradients(model, fast @ weights), gradients(model, slow @ weights))
    plain = row_sums(log_probs(model, batch), batch)
    apart = row_sums(log_probs(model, batch, packed=False, head=head), batch)
    assert plain.tolist() == pytest.approx(slow.tolist(), rel=1e-5, abs=1e-5)
    assert apart.tolist() == pytest.approx(slow.tolist(), rel=1e-5, abs=1e-5)


@pytest.mark.parametrize("softcap", [None, 3.0])
def test_each_loss_of_the_head_has_its_own_gradient(
    softcap: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(kernel._PIECE, "cpu", 4 * 96 * 5)
    torch.manual_seed(0)
    leaves = [torch.randn(s).requires_grad_() for s in ((23, 16), (96, 16), (96,))]
    hidden, weight, bias = leaves
    targets, upstream = torch.randint(96, (23,)), torch.randn(23)
    logits = F.linear(hidden, weight, bias)
    logits = logits if softcap is None else torch.tanh(logits / softcap) * softcap
    plain = F.cross_entropy(logits, targets, reduction="none")
    wanted = torch.autograd.grad(plain @ upstream, leaves)
    found = head_losses(hidden, weight, bias, targets, softcap)
    assert found.tolist() == pytest.approx(plain.tolist(), rel=1e-5)
    for mine, theirs in zip(torch.autograd.grad(found @ upstream, leaves), wanted, strict=True):
        assert (mine - theirs).abs().max() <= 1e-5 * theirs.abs().max()


def by_the_paper(name: str, model: nn.Module, other: nn.Module) -> Tensor:
    """Mean loss at the default settings, row by row."""
    rows = rows_for(name)
    if name == "kto":
        with torch.no_grad():
            drift = [plain_sum(model, row) - plain_sum(other, row) for row in rows[1::2]]
        z = torch.stack(drift).mean().clamp(min=0)
        values = []
        for row in rows[::2]:
            ratio = plain_sum(model, row) - plain_sum(other, row)
            gain = ratio - z if row.conversation.extra["label"] else z - ratio
            values.append(1 - torch.sigmoid(0.1 * gain))
        return torch.stack(values).mean()
    losses, whole, tokens = [], [], 0
    for chosen, rejected in zip(rows[::2], rows[1::2], strict=True):
        n_chosen, n_rejected = sum(chosen.supervised), sum(rejected.supervised)
        w, l = plain_sum(model, chosen), plain_sum(model, rejected)  # noqa: E741
        if name == "dpo":
            margin = w - plain_sum(other, chosen) - l + plain_sum(other, rejected)
            losses.append(-torch.log(torch.sigmoid(0.1 * margin)))
        elif name == "ipo":
            h = (w - plain_sum(other, chosen)) / n_chosen - (
                l - plain_sum(other, rejected)
            ) / n_rejected
            losses.append((h - 1 / 0.2) ** 2)
        elif name == "simpo":
            losses.append(
                -torch.log(torch.sigmoid(0.1 * w / n_chosen - 0.1 * l / n_rejected - 0.5))
            )
        else:
            p, q = torch.exp(w / n_chosen), torch.exp(l / n_rejected)
            odds = (p / (1 - p)) / (q / (1 - q))
            losses.append(-0.1 * torch.log(torch.sigmoid(torch.log(odds))))
            whole.append(plain_log_probs(model, chosen).sum())
            tokens += len(chosen) - 1
    mean = torch.stack(losses).mean()
    return mean - torch.stack(whole).sum() / tokens if whole else mean


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", [*PAIRED, "kto"])
def test_loss_and_gradients_are_those_of_the_paper(name: str, family: str) -> None:
    model, other = two_models(family)
    loss, _, _ = ours(name, model, other)
    reference = by_the_paper(name, model, other)
    assert loss.item() == pytest.approx(reference.item(), rel=1e-5)
    same_gradients(gradients(model, loss), gradients(model, reference))


class TRL:
    """TRL's trainer of an objective, its batch of our rows, and what it logs."""

    def __init__(self, name: str, model: nn.Module, other: nn.Module, folder: Path) -> None:
        import datasets

        self.name, self.rows = name, rows_for(name)
        tokenizer = make_tokenizer(CHAT_FAMILIES["chatml"])
        tokenizer.pad_token = tokenizer.eos_token
        common: dict[str, Any] = {
            "output_dir": str(folder), "report_to": "none", "use_cpu": True, "bf16": False,
            "gradient_checkpointing": False, "disable_dropout": False, "remove_unused_columns": False,
            "max_length": 64, "per_device_train_batch_size": 6,
        }  # fmt: skip
        texts: dict[str, Any] = {"prompt": "a", "chosen": "b", "rejected": "c"}
        if name == "kto":
            texts = {"prompt": "a", "completion": "b", "label": True}
        given: dict[str, Any] = {
            "model": model,
            "processing_class": tokenizer,
            "train_dataset": datasets.Dataset.from_list([texts] * 2),
        }
        if name in ("dpo", "ipo"):
            from trl import DPOConfig, DPOTrainer

            kind = {"dpo": "sigmoid", "ipo": "ipo"}[name]
            self.trainer: Any = DPOTrainer(
                ref_model=other, args=DPOConfig(loss_type=[kind], **common), **given
            )
        elif name == "kto":
            from trl import KTOConfig, KTOTrainer

            self.trainer = KTOTrainer(ref_model=other, args=KTOConfig(**common), **given)
        elif name == "orpo":
            from trl.experimental.orpo import ORPOConfig, ORPOTrainer

            self.trainer = ORPOTrainer(args=ORPOConfig(**common), **given)
        else:
            from trl.experimental.cpo import CPOConfig, CPOTrainer

            common |= {"loss_type": "simpo", "cpo_alpha": 0.0}
            self.trainer = CPOTrainer(args=CPOConfig(**common), **given)

    def pairs(self) -> list[dict[str, Any]]:
        found = []
        for chosen, rejected in zip(self.rows[::2], self.rows[1::2], strict=True):
            start, other = chosen.supervised.index(True), rejected.supervised.index(True)
            found.append(
                {
                    "prompt_ids": chosen.input_ids[:start],
                    "chosen_ids": chosen.input_ids[start:],
                    "rejected_ids": rejected.input_ids[other:],
                }
            )
        return found

    def labels(self) -> list[dict[str, Any]]:
        found = []
        for row, mismatched in zip(self.rows[::2], self.rows[1::2], strict=True):
            start, other = row.supervised.index(True), mismatched.supervised.index(True)
            found.append(
                {
                    "prompt_ids": row.input_ids[:start],
                    "completion_ids": row.input_ids[start:],
                    "KL_completion_ids": mismatched.input_ids[other:],
                    "label": row.conversation.extra["label"],
                }
            )
        return found

    def loss(self) -> tuple[Tensor, dict[str, float]]:
        trainer = self.trainer
        trainer.model.train()
        if self.name in ("orpo", "simpo"):
            batch: dict[str, Tensor] = {}
            for side, rows in (("chosen", self.rows[::2]), ("rejected", self.rows[1::2])):
                width = max(map(len, self.rows))
                batch[f"{side}_input_ids"] = padded([r.input_ids for r in rows], width, 0)
                batch[f"{side}_attention_mask"] = padded([[1] * len(r) for r in rows], width, 0)
                labels = [
                    [t if s else -100 for t, s in zip(r.input_ids, r.supervised, strict=True)]
                    for r in rows
                ]
                batch[f"{side}_labels"] = padded(labels, width, -100)
            loss, metrics = trainer.get_batch_loss_metrics(trainer.model, batch)
            return loss, metrics
        rows = self.labels() if self.name == "kto" else self.pairs()
        loss = trainer._compute_loss(trainer.model, trainer.data_collator(rows), False)
        return loss, {key: values[-1] for key, values in trainer._metrics["train"].items()}


def padded(rows: list[list[int]], width: int, value: int) -> Tensor:
    return torch.tensor([row + [value] * (width - len(row)) for row in rows])


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", [*PAIRED, "kto"])
def test_loss_gradients_and_metrics_are_those_of_trl(
    name: str, family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("trl")
    monkeypatch.setenv("TRL_EXPERIMENTAL_SILENCE", "1")
    model, other = two_models(family)
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    trl = TRL(name, deepcopy(model), deepcopy(other), tmp_path)
    theirs, logged = trl.loss()
    wanted = gradients(trl.trainer.model, theirs)
    loss, parts, _ = ours(name, model.train(), other)
    assert loss.item() == pytest.approx(theirs.item(), rel=1e-5)
    same_gradients(gradients(model, loss), wanted)
    compared = parts.keys() & logged.keys()
    assert {"rewards/chosen", "rewards/rejected", "logps/chosen", "logps/rejected"} <= compared
    if name == "kto":
        parts["rewards/margins"] = parts["rewards/chosen"] - parts["rewards/rejected"]
        compared |= {"rewards/margins", "kl"}
    elif name in ("dpo", "ipo"):
        compared -= {"kl"}
    for key in compared:
        # Differences of log-probabilities of several tens: 1e-5 of what they are made of.
        assert parts[key] == pytest.approx(logged[key], rel=1e-5, abs=1e-5), key


def test_the_adapter_off_and_what_was_stored_are_the_model_before_training() -> None:
    model = make_model("llama", 96)
    rows = random_pairs(3)
    expected = [plain_sum(model, row).item() for row in rows]
    adapted = get_peft_model(model, LoraConfig(r=4, target_modules="all-linear", lora_dropout=0.5))
    ask = Preference(ObjectiveGroup(name="dpo"), None).ask
    stored = store(adapted.train(), ask, by_length(rows, 4))
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                parameter.normal_()
    off = AdapterOff().log_probs(adapted, collate([rows]), ask)
    assert adapted.training and not off.requires_grad
    assert off.tolist() == pytest.approx(expected, rel=1e-5)
    assert stored.of(rows[::-1]).tolist() == pytest.approx(expected[::-1], rel=1e-5)
    assert any(p.requires_grad for p in adapted.parameters())


def test_stored_log_probs_come_back_exactly_and_miss_nothing_in_silence(tmp_path: Path) -> None:
    from luthier.errors import UserError

    rows = random_pairs(2)
    ask = Preference(ObjectiveGroup(name="dpo"), None).ask
    kept = store(make_model("llama", 96), ask, [rows])
    kept.save(tmp_path / "r.safetensors")
    again = Stored.load(tmp_path / "r.safetensors")
    assert again.of(rows).equal(kept.of(rows))
    with pytest.raises(UserError, match="not those of this run's rows"):
        again.of(random_pairs(1, seed=9))
    (tmp_path / "r.safetensors").write_bytes(b"nothing")
    with pytest.raises(UserError, match="cannot read"):
        Stored.load(tmp_path / "r.safetensors")


@pytest.mark.parametrize("name", ["dpo", "ipo", "kto"])
def test_a_model_that_is_its_own_reference_has_the_known_loss(name: str) -> None:
    model = make_model("qwen3", 96)
    settings = ObjectiveGroup(name=name)
    objective: Objective = choose(settings, True, find_head(model), Other(model))
    rows = rows_for(name)
    means = mean_over(objective, model, rows, 2, together=2)
    assert means["loss"] == pytest.approx(first_loss(settings, rows), abs=1e-5)
    if name == "dpo":
        assert means["loss"] == pytest.approx(math.log(2), abs=1e-6)
        assert means["rewards/margins"] == pytest.approx(0, abs=1e-5)


def test_means_per_kind_are_over_that_kind_alone() -> None:
    means = {"chosen": 0.25, "rewards/chosen per chosen": 0.5, "x per none": 0.0, "none": 0.0}
    assert divided(means) == {"chosen": 0.25, "rewards/chosen": 2.0, "none": 0.0}
