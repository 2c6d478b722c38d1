"""What the recipe asks for, on the device that is there: dtype, optimiser, the model to train."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from peft import PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from luthier.data.pins import pinned_day
from luthier.data.template import chat_tokens, set_template
from luthier.errors import UserError
from luthier.events import Note, OnEvent, ignore
from luthier.kernels.fp8_base import store_in_fp8
from luthier.models.adapters import attach_adapter, begun, fit_embedding
from luthier.models.dtype import pick_device, pick_dtype, trained_dtype
from luthier.models.known import public_name
from luthier.models.load import (
    load_config,
    load_model,
    load_tokenizer,
    max_positions,
    quantization,
    refuse_quantised,
)
from luthier.models.names import choose_trained
from luthier.models.new_tokens import add_tokens
from luthier.models.source import ResolvedModel, resolve
from luthier.recipe import Recipe
from luthier.records import Provenance
from luthier.runtime import threads_in_words

# Paging moves optimiser state between GPU and host memory; without a GPU there is nothing to page.
_UNPAGED = {"paged_adamw_8bit": "adamw_8bit", "paged_adamw_32bit": "adamw_torch_fused"}


# Takes what ``load_model`` takes, and returns a model that the caller may change.
LoadModel = Callable[..., PreTrainedModel]


@dataclass(frozen=True)
class Setup:
    """Where and in what a run computes.

    Attributes:
        device: where the model is.
        dtype: of frozen weights and of the arithmetic.
        optim: the optimiser's name, see ``make_optimizer``.
        substitutes: sentences that say where this differs from the recipe, and why.
    """

    device: torch.device
    dtype: torch.dtype
    optim: str
    substitutes: list[str]

    @property
    def device_name(self) -> str:
        """The GPU's name, or ``cpu`` with its number of threads."""
        if self.device.type == "cuda":
            return torch.cuda.get_device_name(self.device)
        return f"{self.device.type}, {threads_in_words()}"

    @property
    def dtype_name(self) -> str:
        return str(self.dtype).removeprefix("torch.")


def choose_setup(recipe: Recipe) -> Setup:
    """Fit the recipe to the machine.

    Raises:
        UserError: the recipe asks for what the machine cannot do and nothing stands in for.
    """
    device = pick_device()
    asked = recipe.model.dtype
    dtype = pick_dtype(device) if asked == "auto" else getattr(torch, asked)
    if dtype == torch.float16 and device.type != "cuda":
        raise UserError(
            "model.dtype float16 needs a CUDA GPU for training; use auto, bfloat16 or float32"
        )
    assert recipe.train.optim is not None  # the recipe filled in the method's
    optim: str = recipe.train.optim
    if optim == "adamw_bf16":
        dtype = torch.bfloat16
    substitutes = []
    if optim in _UNPAGED and device.type != "cuda":
        substitutes.append(
            f"optim {_UNPAGED[optim]} replaces {optim}, because paging needs a CUDA GPU; "
            "the update rule is the same"
        )
        optim = _UNPAGED[optim]
    if recipe.train.activation_offload and device.type != "cuda":
        substitutes.append(
            "activation_offload is off, because without a GPU activations are in host memory already"
        )
    if recipe.kernels.fp8_base and device.type == "cpu":
        substitutes.append(
            "kernels.fp8_base rounds as on a GPU, but gains nothing here, because a processor has no "
            "products of 8-bit numbers: what it makes of your losses can be seen, and it is slower"
        )
    return Setup(device, dtype, optim, substitutes)


@dataclass(frozen=True)
class Writing:
    """How a run writes.

    Attributes:
        tokenizer: with the run's chat template on it, and new tokens.
        template: the name of that template.
        tokens: ids of ``data.add_tokens``.
    """

    tokenizer: PreTrainedTokenizerBase
    template: str
    tokens: list[int]


def load_prepared_tokenizer(
    recipe: Recipe,
    folder: Path,
    made: Provenance | None = None,
    on_event: OnEvent = ignore,
) -> Writing:
    """The tokenizer in ``folder`` as the recipe wants it.

    Args:
        made: of a run that goes on: it keeps the day that its template writes.

    Raises:
        UserError: it cannot be read, or a new token, the template or a switch of it is wrong.
    """
    tokenizer = load_tokenizer(folder, recipe.model.trust_remote_code)
    template = set_template(tokenizer, recipe.data, made.template_date if made else None)
    tokens = chat_tokens(tokenizer)
    if template == "alpaca" and recipe.data.template == "auto" and tokens:
        on_event(
            Note(
                f"the model has no chat template, so Alpaca's is used; but its tokenizer has tokens of "
                f"one ({', '.join(tokens[:4])}): if it is a chat model, give its template as "
                "data.template",
                warning=True,
            )
        )
    pinned = pinned_day(tokenizer.chat_template)
    if pinned is not None and made is None:
        on_event(
            Note(
                f"the chat template writes the day: {pinned} in this run, and whenever it is asked "
                "(data.template_date)"
            )
        )
    return Writing(tokenizer, template, add_tokens(tokenizer, recipe.data.add_tokens))


def recompute_activations(model: PreTrainedModel | PeftModel) -> None:
    """Keep the input of each layer only, and compute the rest again in the backward pass."""
    model.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": False})


def resolve_model(recipe: Recipe, on_event: OnEvent = ignore) -> ResolvedModel:
    """Find the recipe's model and check that rows of ``max_length`` fit it.

    Raises:
        UserError: no such model, or it has fewer positions than ``data.max_length``, or its weights
            are quantised in a way that nothing is trained on.
    """
    resolved = resolve(recipe.model.source, recipe.model.revision, on_event=on_event)
    model = recipe.model
    config = load_config(resolved.folder, model.trust_remote_code, model.rope_scaling)
    refuse_quantised(model.source, config, recipe.method, recipe.kernels.fp8_base)
    most = max_positions(config)
    if most is not None and recipe.data.max_length > most:
        raise UserError(
            f"data.max_length {recipe.data.max_length} is more than the {most} positions of "
            f"{recipe.model.source}; set data.max_length={most} or less, or model.rope_scaling "
            "(docs/recipe.md)"
        )
    return resolved


def build_model(
    recipe: Recipe,
    resolved: ResolvedModel,
    setup: Setup,
    checkpoint: Path | None,
    on_event: OnEvent = ignore,
    tokens: Sequence[int] = (),
    load: LoadModel = load_model,
) -> PreTrainedModel | PeftModel:
    """The model ready to train by the recipe's method, full models as ``checkpoint`` holds them.

    ``tokens`` are ids of new tokens, whose rows train. ``load`` gives the weights.

    Weights that train are float32, so that updates far smaller than the weights are not rounded
    away (but for ``adamw_bf16``, which rounds them by chance); frozen ones are in ``setup.dtype``,
    or in 4 bits for QLoRA, or in 8 where ``kernels.fp8_base`` asks for it.

    Raises:
        UserError: the weights cannot be loaded, or the method does not fit them.
    """
    trained_whole = recipe.method.name == "full"
    in_8_bits = recipe.kernels.fp8_base
    model = load(
        checkpoint if trained_whole and checkpoint is not None else resolved.folder,
        trained_dtype(setup.optim) if trained_whole else setup.dtype,
        quantization=quantization(recipe.method, setup.dtype),
        # A GPU may have room for the 8 bits alone.
        device=torch.device("cpu") if in_8_bits else setup.device,
        allow_pickle=recipe.model.allow_pickle,
        trust_remote_code=recipe.model.trust_remote_code,
        scores=recipe.objective.scores,
        rope=recipe.model.rope_scaling,
        on_event=on_event,
    )
    model.config.use_cache = False
    fit_embedding(model, 1 + max(tokens, default=-1))
    if trained_whole:
        choose_trained(model, recipe.method)
        return model
    adapted = attach_adapter(
        model,
        recipe.method if checkpoint is None else begun(recipe.method, checkpoint),
        base=public_name(recipe.model.source),
        revision=recipe.model.revision,
        tokens=tokens,
        scores=recipe.objective.scores,
    )
    if in_8_bits:
        on_event(Note(store_in_fp8(adapted, setup.device).sentence(setup.dtype)))
        adapted.to(setup.device)
    return adapted
