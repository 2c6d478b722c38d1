"""An adapter that was trained before, to be trained on (``model.adapter``)."""

from typing import Any

from peft import LoraConfig, PeftModel, load_peft_weights, set_peft_model_state_dict
from transformers import PreTrainedTokenizerBase

from luthier.errors import UserError
from luthier.events import Note, OnEvent
from luthier.files import user_path
from luthier.models.load import template_hash
from luthier.recipe import Recipe
from luthier.run import open_run

# What makes the shape and the meaning of an adapter, by PEFT's names, and our keys for them.
_SHAPE = {
    "r": "method.lora_r",
    "lora_alpha": "method.lora_alpha",
    "target_modules": "method.target_modules",
    "target_parameters": "method.target_parameters",
    "layers_to_transform": "method.layers_to_transform",
    "rank_pattern": "method.rank_pattern",
    "alpha_pattern": "method.alpha_pattern",
    "modules_to_save": "method.modules_to_save",
    "bias": "method.bias",
    "use_rslora": "method.use_rslora",
    "use_dora": "method.use_dora",
    "trainable_token_indices": "data.add_tokens",
}


def continue_adapter(
    model: PeftModel, recipe: Recipe, tokenizer: PreTrainedTokenizerBase, on_event: OnEvent
) -> None:
    """Give the new adapter of ``model`` the weights of the run that ``model.adapter`` names.

    The same adapter is trained on: what comes out is one adapter for the same base, which merges and
    is served as any other.

    Raises:
        UserError: that run has not finished, or its base or adapter is another one.
    """
    assert recipe.model.adapter is not None
    run = open_run(user_path(recipe.model.adapter))
    run.require_finished()
    before = run.read_recipe()
    if before.method.name == "full":
        raise UserError(
            f"model.adapter: {run.root} is a full fine-tuning run and has no adapter; give its model "
            f"as model.source={run.model_path}"
        )
    if before.objective.scores:
        raise UserError(f"model.adapter: {run.root} is a reward model, which writes no answers")
    mine = recipe.with_absolute_paths().model
    for key in ("source", "revision"):
        theirs = getattr(before.model, key)
        if getattr(mine, key) != theirs:
            raise UserError(
                f"model.adapter: {run.root} was trained on model.{key} {theirs}, and this recipe has "
                f"{getattr(recipe.model, key)}; an adapter fits its own base alone"
            )
    saved = LoraConfig.from_pretrained(str(run.adapter_path))
    config = model.peft_config[model.active_adapter]
    for name, key in _SHAPE.items():
        has, wanted = _plain(getattr(saved, name)), _plain(getattr(config, name))
        if has != wanted:
            raise UserError(
                f"model.adapter: the adapter of {run.root} has {key} {has}, and this recipe {wanted}; "
                f"to train it on give it the same settings (luthier recipe show {run.root})"
            )
    if template_hash(tokenizer) != run.provenance().template_sha256:
        on_event(
            Note(
                f"{run.root} was trained with another chat template than this run's, so its adapter "
                "sees prompts that it has not learned; set data.template to the same one",
                warning=True,
            )
        )
    set_peft_model_state_dict(model, load_peft_weights(str(run.adapter_path), device="cpu"))
    on_event(Note(f"the adapter of {run.root} is trained on"))


def _plain(value: Any) -> Any:
    """So that equal settings are equal: no order in lists, and nothing is None."""
    if isinstance(value, set | list | tuple):
        return sorted(value, key=str) or None
    return value or None
