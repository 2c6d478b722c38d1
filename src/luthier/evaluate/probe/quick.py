"""A few questions of the probe, cheap enough to ask at every evaluation of a run."""

import torch
from transformers import PreTrainedTokenizerBase

from luthier.evaluate.likelihood import row_losses
from luthier.evaluate.probe.asking import text_rows, tokenised
from luthier.evaluate.probe.choices import Question, choice_scores
from luthier.evaluate.probe.items import load_items, load_passages
from luthier.events import OnEvent, ignore
from luthier.generate.answer import Model
from luthier.kernels.separation import rows_stay_apart

_EVERY = 5  # of the multiple-choice questions, so that every area is there in its share
_PASSAGES = 3
_TASK = "probe"


class QuickProbe:
    """Some fifty multiple-choice questions and three passages; nothing is generated.

    Changes nothing about a run: no random number is drawn, and the model goes back to the mode it
    was in.
    """

    def __init__(self, on_event: OnEvent = ignore) -> None:
        self.on_event = on_event
        choices = [item for item in load_items() if item.answer is not None]
        self.items = choices[::_EVERY]
        self._questions: list[Question] = []

    @torch.no_grad()
    def __call__(self, model: Model, tokenizer: PreTrainedTokenizerBase) -> dict[str, float]:
        """``probe_accuracy`` (a share) and ``probe_loss`` (nats per token of general prose)."""
        plain = not tokenizer.chat_template
        if not self._questions:
            self._questions = [tokenised(tokenizer, item, plain=plain) for item in self.items]
        training = model.training
        model.eval()
        try:
            with torch.random.fork_rng():
                scores = choice_scores(model, self._questions, _TASK, self.on_event)
                passages = load_passages()[:_PASSAGES]
                losses = row_losses(
                    model,
                    text_rows(tokenizer, passages),
                    packed=rows_stay_apart(model),
                    task=_TASK,
                    on_event=self.on_event,
                )
        finally:
            model.train(training)
        right = [values.index(max(values)) == 0 for values in scores]
        return {
            "probe_accuracy": sum(right) / len(right),
            "probe_loss": sum(loss.sum for loss in losses) / sum(loss.tokens for loss in losses),
        }
