"""How far the tuned model's next-token distributions have moved from the base's."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from transformers import PreTrainedTokenizerBase

from luthier.data.batches import Batch, collate
from luthier.data.conversation import Conversation, Origin
from luthier.data.tokens import TokenRow
from luthier.evaluate.likelihood import batches
from luthier.events import OnEvent, ignore, tracked
from luthier.generate.answer import Prompt, encode_prompt
from luthier.kernels.separation import rows_stay_apart
from luthier.models.tuned import TunedModel
from luthier.objectives.supervised import supervised_logits

_NOWHERE = Conversation(Origin("probe", 0), text="")


@torch.no_grad()
def divergences(
    models: TunedModel,
    prompts: Sequence[Prompt],
    answers: Sequence[str],
    on_event: OnEvent = ignore,
) -> tuple[list[float], list[int]]:
    """Mean KL(base || tuned) per token of each answer, in nats, and the answers' numbers of tokens.

    KL = sum_v p(v) log(p(v) / q(v)), p of the base and q of the tuned model, at each token of the
    base's own ``answers`` to ``prompts``: how surprised the base would be by what it has become, on
    the paths it takes. Empty answers are skipped.
    """
    rows = [
        row
        for prompt, answer in zip(prompts, answers, strict=True)
        if (row := _row(models.tokenizer, prompt, answer)) is not None
    ]
    means = [0.0] * len(rows)
    packed = rows_stay_apart(models.tuned)
    together = batches(rows, packed=packed)
    for batch in tracked(together, "distance from the base", on_event, len(rows), size=len):
        collated = collate([[rows[index] for index in batch]])
        with models.as_base() as base:
            before = _log_chances(base, collated)
        after = _log_chances(models.tuned, collated)
        each = F.kl_div(after, before, log_target=True, reduction="none").sum(dim=-1)
        counts = [sum(rows[index].supervised) for index in batch]
        for index, part in zip(batch, each.split(counts), strict=True):
            means[index] = part.double().mean().item()
    return means, [sum(row.supervised) for row in rows]


def _log_chances(model: torch.nn.Module, batch: Batch) -> torch.Tensor:
    device = next(model.parameters()).device
    logits, _ = supervised_logits(model, batch.to(device))
    return F.log_softmax(logits.float(), dim=-1)


def _row(tokenizer: PreTrainedTokenizerBase, prompt: Prompt, answer: str) -> TokenRow | None:
    before = encode_prompt(tokenizer, prompt)
    after = list(tokenizer(answer, add_special_tokens=False).input_ids)
    if not after:
        return None
    return TokenRow(before + after, [False] * len(before) + [True] * len(after), _NOWHERE)
