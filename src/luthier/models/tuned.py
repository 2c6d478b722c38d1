"""The model of a finished run, with the base it came from, for evaluation and use."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from peft import PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from luthier.errors import UserError
from luthier.events import OnEvent, ignore
from luthier.models.adapters import changes_bases_biases, load_adapter, scale_adapter
from luthier.models.dtype import pick_device
from luthier.models.load import load_model, load_tokenizer, quantization, template_hash
from luthier.models.source import resolve
from luthier.run import Run


class TunedModel:
    """A tuned model, in evaluation mode, and a way to its base.

    Attributes:
        tuned: the model with what it learned.
        tokenizer: with the chat template that the run trained with.
    """

    def __init__(
        self,
        run: Run,
        tuned: PreTrainedModel | PeftModel,
        tokenizer: PreTrainedTokenizerBase,
        on_event: OnEvent = ignore,
    ) -> None:
        self.tuned = tuned.eval()
        self.tokenizer = tokenizer
        self._run = run
        self._on_event = on_event
        self._base: PreTrainedModel | None = None
        # Trained biases are written over the base's, so that without its adapter it is not the base.
        self._biases = isinstance(tuned, PeftModel) and changes_bases_biases(run.adapter_path)

    @property
    def learned_turns(self) -> bool:
        """Whether it learned conversations, by a chat template; False for plain text."""
        return self._run.provenance().learned_turns

    @property
    def holds_base(self) -> bool:
        """Whether ``tuned`` with its adapter off is the base, so that both can share a batch."""
        return isinstance(self.tuned, PeftModel) and not self._biases

    @contextmanager
    def as_base(self) -> Iterator[PreTrainedModel | PeftModel]:
        """The model before tuning: the adapter off, or the base loaded when first wanted."""
        if self.holds_base:
            assert isinstance(self.tuned, PeftModel)
            with self.tuned.disable_adapter():
                yield self.tuned
            return
        if self._base is None:
            self._base = load_base(self._run, self._on_event).eval()
        yield self._base


def load_tuned(
    run: Run, adapter_scale: float = 1.0, on_event: OnEvent = ignore, *, scores: bool = False
) -> TunedModel:
    """Load the best weights of ``run`` on this machine's device, in the dtype it trained in.

    Args:
        adapter_scale: multiplies what the adapter adds: 0 is the base, 1 what was trained, and
            between them the weights move from one to the other (WiSE-FT, Wortsman et al. 2022).
        scores: the caller can use a reward model, too.

    Raises:
        UserError: the run has not finished, a model cannot be read, or there is no adapter to scale.
    """
    recipe = run.recipe()
    weights = run.weights_path(recipe)
    run.require_finished()
    if recipe.objective.scores and not scores:
        raise UserError(
            f"{run.root} is a reward model: it scores answers and writes none; `luthier evaluate` "
            "measures it, and `luthier merge` writes it as a sequence classifier of Transformers"
        )
    tokenizer = load_tokenizer(weights, recipe.model.trust_remote_code)
    if template_hash(tokenizer) != run.provenance().template_sha256:
        raise UserError(
            f"the chat template in {weights} is not the one {run.root} was trained with, so prompts "
            "would not be what the model has learned; put the tokenizer's files back as the run wrote "
            "them (chat_template.jinja, tokenizer_config.json)"
        )
    if recipe.method.name != "full":
        tuned = load_adapter(load_base(run, on_event), weights)
        scale_adapter(tuned, adapter_scale)
        return TunedModel(run, tuned, tokenizer, on_event)
    if adapter_scale != 1:
        raise UserError(f"{run.root} is a full fine-tuning run and has no adapter to scale")
    whole = load_model(
        weights,
        run_dtype(run),
        device=pick_device(),
        trust_remote_code=recipe.model.trust_remote_code,
        scores=recipe.objective.scores,
        on_event=on_event,
    )
    return TunedModel(run, whole, tokenizer, on_event)


def load_base(run: Run, on_event: OnEvent = ignore) -> PreTrainedModel:
    """The model that ``run`` began from, stored as it was while training."""
    recipe, dtype = run.recipe(), run_dtype(run)
    return load_model(
        resolve(recipe.model.source, recipe.model.revision, on_event=on_event).folder,
        dtype,
        quantization=quantization(recipe.method, dtype),
        device=pick_device(),
        allow_pickle=recipe.model.allow_pickle,
        trust_remote_code=recipe.model.trust_remote_code,
        scores=recipe.objective.scores,
        rope=recipe.model.rope_scaling,
        on_event=on_event,
    )


def run_dtype(run: Run) -> torch.dtype:
    """The dtype that ``run`` computed in."""
    dtype: torch.dtype = getattr(torch, run.provenance().dtype)
    return dtype
