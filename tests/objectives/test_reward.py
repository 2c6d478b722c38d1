"""Rewards of packed rows against Transformers' own classifier, and the loss against TRL's."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from families import CHAT_FAMILIES, make_model, make_tokenizer
from helpers import gradients
from preferences import random_pairs
from torch import Tensor
from transformers import AutoModelForSequenceClassification, set_seed

from luthier.data.batches import collate
from luthier.kernels.fast import install
from luthier.kernels.separation import rows_stay_apart
from luthier.objectives.reward import Reward, rewards
from luthier.recipe import KernelsGroup, ObjectiveGroup

FAMILIES = ("llama", "qwen3", "gemma2", "gpt2")


def classifier(family: str) -> Any:
    set_seed(7)
    config = make_model(family, 96).config
    config.num_labels, config.pad_token_id = 1, 0
    return AutoModelForSequenceClassification.from_config(config, dtype=torch.float32).eval()


@pytest.mark.parametrize("family", FAMILIES)
def test_packed_rewards_and_gradients_are_those_of_padded_rows(family: str) -> None:
    model = classifier(family)
    rows = random_pairs(3)
    width = max(map(len, rows))
    ids = torch.tensor([r.input_ids + [0] * (width - len(r)) for r in rows])
    mask = torch.tensor([[1] * len(r) + [0] * (width - len(r)) for r in rows])

    def theirs() -> Tensor:
        return model(input_ids=ids, attention_mask=mask).logits[:, 0]

    expected = theirs()
    weights = torch.linspace(-1, 2, len(rows))
    wanted = gradients(model, expected @ weights)
    install(model, KernelsGroup(loss=False))
    assert rows_stay_apart(model)
    batch = collate([rows])
    found = rewards(model, batch)
    assert found.tolist() == pytest.approx(expected.tolist(), rel=1e-5, abs=1e-6)
    assert rewards(model, batch, packed=False).tolist() == pytest.approx(found.tolist(), abs=1e-6)
    mine = gradients(model, found @ weights)
    for name, gradient in wanted.items():
        assert (mine[name] - gradient).abs().max() <= 2e-5 * gradient.abs().max() + 1e-7, name


def test_a_row_that_ends_in_the_padding_token_is_scored_where_transformers_scores_it() -> None:
    model = classifier("llama")
    (row, *_) = random_pairs(1)
    row.input_ids[-1] = 0
    expected = model(input_ids=torch.tensor([row.input_ids])).logits[0]
    assert rewards(model, collate([[row]])).tolist() == pytest.approx(expected.tolist(), abs=1e-6)


@pytest.mark.parametrize("centering", [None, 0.01])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_loss_is_that_of_trl(family: str, centering: float | None, tmp_path: Path) -> None:
    pytest.importorskip("trl")
    import datasets
    from trl import RewardConfig, RewardTrainer

    model = classifier(family)
    tokenizer = make_tokenizer(CHAT_FAMILIES["chatml"])
    tokenizer.pad_token = "<unk>"
    rows = random_pairs(3)
    args = RewardConfig(
        str(tmp_path), report_to="none", use_cpu=True, bf16=False, gradient_checkpointing=False,
        disable_dropout=True, max_length=64, center_rewards_coefficient=centering,
    )  # fmt: skip
    given = [{"prompt": "a", "chosen": "b", "rejected": "c"}] * 2
    trainer = RewardTrainer(
        model, args, train_dataset=datasets.Dataset.from_list(given), processing_class=tokenizer
    )
    examples = [
        {"chosen_ids": chosen.input_ids, "rejected_ids": rejected.input_ids}
        for chosen, rejected in zip(rows[::2], rows[1::2], strict=True)
    ]
    inputs = trainer.data_collator(examples)
    inputs["input_ids"] = torch.where(inputs["attention_mask"] == 1, inputs["input_ids"], 0)
    theirs = trainer.compute_loss(model.eval(), inputs)
    objective = Reward(ObjectiveGroup(name="reward", center_rewards_coefficient=centering))
    loss, parts = objective.loss(model, objective.collate([rows]))
    assert loss.item() / 3 == pytest.approx(theirs.item(), rel=1e-5)
    logged = trainer._metrics["eval"]
    assert parts["rewards/margins"].item() / 3 == pytest.approx(logged["margin"][-1], rel=1e-4)
    assert parts["rewards/accuracies"].item() / 3 == pytest.approx(logged["accuracy"][-1])
    mine = gradients(model, loss / 3)
    wanted = gradients(model, theirs)
    for name, gradient in wanted.items():
        assert (mine[name] - gradient).abs().max() <= 2e-5 * gradient.abs().max() + 1e-7, name


def test_the_loss_is_that_of_bradley_and_terry() -> None:
    model = classifier("llama")
    rows = random_pairs(2)
    objective = Reward(ObjectiveGroup(name="reward"))
    loss, _ = objective.loss(model, objective.collate([rows]))
    scores = [model(input_ids=torch.tensor([row.input_ids])).logits[0, 0] for row in rows]
    gaps = torch.stack(scores[::2]) - torch.stack(scores[1::2])
    assert loss.item() == pytest.approx(-F.logsigmoid(gaps).sum().item(), rel=1e-5)
