"""The group `method`, and what differs between the methods."""

import re
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from luthier.recipe.groups.group import Group

# What differs between the methods. Sources: full 2e-5 (Alpaca, Taori et al. 2023); LoRA 3e-4 (Hu et
# al. 2021, and "LoRA Without Regret", Thinking Machines 2025: about ten times the rate of full
# fine-tuning, on all linear layers); QLoRA 2e-4 and the paged 8-bit optimiser (Dettmers et al. 2023).
METHOD_DEFAULTS: dict[str, dict[str, Any]] = {
    "full": {"learning_rate": 2e-5, "weight_decay": 0.01, "optim": "adamw_torch_fused"},
    "lora": {"learning_rate": 3e-4, "weight_decay": 0.0, "optim": "adamw_torch_fused"},
    "qlora": {"learning_rate": 2e-4, "weight_decay": 0.0, "optim": "paged_adamw_8bit"},
}


MethodName = Literal["full", "lora", "qlora"]


_STARTS = re.compile(r"gaussian|pissa|pissa_niter_\d+|olora|eva|loftq")


class MethodGroup(Group):
    """How the weights change: all of them, or a low-rank adapter beside them."""

    name: MethodName = Field(
        "lora",
        description="fine-tuning method: full trains all weights, lora an adapter, qlora an adapter "
        "beside weights stored in 4 bits",
    )
    lora_r: int = Field(16, ge=1, description="rank of the adapter", examples=[64])
    lora_alpha: int = Field(
        32,
        ge=1,
        description="the adapter's update is scaled by lora_alpha / lora_r",
        examples=[128],
    )
    lora_dropout: float = Field(
        0.05, ge=0, lt=1, description="dropout on the adapter's input", examples=[0.1]
    )
    target_modules: str | list[str] = Field(
        "all-linear",
        description="layers that get an adapter: all-linear, or names such as [q_proj, v_proj]",
        examples=[["q_proj", "v_proj"]],
    )
    target_parameters: list[str] = Field(
        [],
        description="parameters that get an adapter although they are no layers, such as the experts "
        "of some models: [mlp.experts.gate_up_proj]; needs method.lora_dropout 0",
        examples=[["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]],
    )
    layers_to_transform: list[Annotated[int, Field(ge=0)]] | None = Field(
        None,
        min_length=1,
        description="numbers of the layers that get an adapter, from 0; without it all do",
        examples=[[0, 1]],
    )
    rank_pattern: dict[str, Annotated[int, Field(ge=1)]] = Field(
        {},
        description="ranks that differ from method.lora_r, by the name of a layer or a regular "
        "expression",
        examples=[{"q_proj": 32}],
    )
    alpha_pattern: dict[str, Annotated[int, Field(ge=1)]] = Field(
        {},
        description="values that differ from method.lora_alpha, by the name of a layer or a regular "
        "expression",
        examples=[{"q_proj": 64}],
    )
    modules_to_save: list[str] = Field(
        [],
        description="modules beside the adapter that train completely and are saved with it, such as "
        "[embed_tokens, lm_head]",
        examples=[["embed_tokens", "lm_head"]],
    )
    bias: Literal["none", "all", "lora_only"] = Field(
        "none",
        description="biases that train beside the adapter: none, all, or those of adapted layers",
    )
    init_lora_weights: bool | str = Field(
        True,
        description="how the adapter begins: true (A random, B zero), gaussian, pissa, pissa_niter_N "
        "(faster), olora, eva (from the training data), or loftq (qlora: from the error of the 4 "
        "bits)",
        examples=["pissa"],
    )
    loraplus_lr_ratio: float | None = Field(
        None,
        ge=1,
        description="LoRA+: the adapter's B learns this many times as fast as its A",
        examples=[16],
    )
    use_rslora: bool = Field(
        False, description="scale the update by lora_alpha / sqrt(lora_r) instead (rsLoRA)"
    )
    use_dora: bool = Field(
        False, description="train magnitude and direction of the weights separately (DoRA)"
    )
    bnb_4bit_quant_type: Literal["nf4", "fp4"] = Field(
        "nf4", description="qlora: 4-bit number format of the frozen weights"
    )
    bnb_4bit_use_double_quant: bool = Field(
        True, description="qlora: quantise the quantisation constants too"
    )
    train_modules: list[str] = Field(
        [],
        description="full: modules or parameters that train, by name or pattern (layers.[0-3], "
        "*.mlp); the others stay as they are",
        examples=[["layers.*.mlp", "lm_head"]],
    )
    freeze_modules: list[str] = Field(
        [],
        description="full: modules or parameters that stay as they are, by name or pattern",
        examples=[["embed_tokens", "layers.[0-3]"]],
    )

    @field_validator("init_lora_weights")
    @classmethod
    def _known_start(cls, start: bool | str) -> bool | str:
        if start is True or (isinstance(start, str) and _STARTS.fullmatch(start)):
            return start
        raise ValueError(
            "it takes true, gaussian, pissa, pissa_niter_N (a number of iterations), olora, eva or "
            f"loftq, not {start!r}"
        )

    @model_validator(mode="after")
    def _fits_the_method(self) -> "MethodGroup":
        start = str(self.init_lora_weights)
        if self.name == "qlora" and self.changes_base:
            raise ValueError(
                f"method.init_lora_weights {start} takes a part out of the base's weights, which qlora "
                "keeps in 4 bits; use method.name lora, or method.init_lora_weights loftq"
            )
        if self.name == "lora" and start == "loftq":
            raise ValueError(
                "method.init_lora_weights loftq makes up for the error of 4-bit weights; use it with "
                "method.name qlora"
            )
        if self.init_lora_weights is not True and self.target_parameters:
            raise ValueError(
                f"method.init_lora_weights {start} is for layers, not for method.target_parameters; "
                "leave it at true"
            )
        if self.name != "full" and (self.train_modules or self.freeze_modules):
            key = "train_modules" if self.train_modules else "freeze_modules"
            raise ValueError(
                f"method.{key} is for method.name full; what an adapter changes is chosen by "
                "method.target_modules, method.layers_to_transform and method.modules_to_save"
            )
        return self

    @property
    def changes_base(self) -> bool:
        """Whether the adapter begins with a part of the base's weights, taken out of them."""
        return str(self.init_lora_weights).startswith(("pissa", "olora"))
