"""The group `model`."""

from typing import Any, Literal

from pydantic import Field, field_validator

from luthier.recipe.groups.group import Group, number

# What Transformers reads of rope_parameters, by rope_type, and what of that has no default.
_ROPE_NEEDS = {
    "linear": {"rope_type", "factor"},
    "yarn": {"rope_type", "factor"},
    "llama3": {"rope_type", "factor", "low_freq_factor", "high_freq_factor"},
}
_ROPE_KEYS = {
    "linear": _ROPE_NEEDS["linear"],
    "yarn": {
        *_ROPE_NEEDS["yarn"],
        *("original_max_position_embeddings", "attention_factor", "beta_fast", "beta_slow"),
        *("mscale", "mscale_all_dim", "truncate"),
    },
    "llama3": {*_ROPE_NEEDS["llama3"], "original_max_position_embeddings"},
}


class ModelGroup(Group):
    """The weights to start from, and the number format they compute in."""

    source: str = Field(
        description="the model: a name of `luthier models list`, a local folder, a .gguf file or a "
        "hub id (owner/name)",
        examples=["smollm2-135m"],
    )
    revision: str | None = Field(
        None, description="branch, tag or commit of the model on the hub", examples=["main"]
    )
    adapter: str | None = Field(
        None,
        description="folder of a finished run whose adapter is trained on, instead of a new one; base "
        "model and adapter settings must be those of that run",
        examples=["runs/sft"],
    )
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto",
        description="number format of the arithmetic and of frozen weights; weights that train "
        "stay in float32 (except with train.optim adamw_bf16)",
    )
    rope_scaling: dict[str, Any] | None = Field(
        None,
        description="read longer rows than the model was pretrained on: Transformers' rope_parameters, "
        "with rope_type (yarn, linear or llama3) and factor; adapters then need it wherever they are "
        "used, and every command here sees to that",
        examples=[{"rope_type": "yarn", "factor": 4}],
    )
    allow_pickle: bool = Field(
        False, description="also read .bin weights where there are no safetensors (tensors only)"
    )
    trust_remote_code: bool = Field(
        False, description="run Python code that ships with the model; only for models you trust"
    )

    @field_validator("rope_scaling")
    @classmethod
    def _same_for_every_row(cls, scaling: dict[str, Any] | None) -> dict[str, Any] | None:
        if scaling is None:
            return None
        # Transformers' old name.
        told = {"rope_type" if key == "type" else key: number(v) for key, v in scaling.items()}
        kind, factor = told.get("rope_type"), told.get("factor")
        if kind in ("dynamic", "longrope"):
            raise ValueError(
                f"rope_type {kind} turns all rows of a batch by angles that depend on the longest of "
                "them, so that a row would be another beside others; use yarn, linear or llama3"
            )
        if kind not in ("yarn", "linear", "llama3"):
            raise ValueError(f"rope_type is yarn, linear or llama3, not {kind!r}")
        if isinstance(factor, bool) or not isinstance(factor, int | float) or factor < 1:
            raise ValueError(f"factor is a number of 1 or more, not {factor!r}")
        unknown = sorted(told.keys() - _ROPE_KEYS[kind])
        missing = sorted(_ROPE_NEEDS[kind] - told.keys())
        if unknown or missing:
            wrong = f"has no {', '.join(unknown)}" if unknown else f"needs {', '.join(missing)}"
            raise ValueError(
                f"rope_type {kind} {wrong}; its keys are {', '.join(sorted(_ROPE_KEYS[kind]))}"
            )
        return told
