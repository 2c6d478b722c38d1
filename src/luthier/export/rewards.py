"""A reward model written as a sequence classifier of Transformers that needs nothing else."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft.tuners.lora import LoraLayer

from luthier.data.prepare import tokenise_pairs
from luthier.data.tokens import TokenRow
from luthier.errors import CheckFailed
from luthier.events import OnEvent, during
from luthier.export.same import rows_of
from luthier.files import staged_folder
from luthier.models.adapters import load_adapter
from luthier.models.load import load_model
from luthier.models.tuned import load_base, load_tuned, run_dtype
from luthier.objectives.reward import rewards_of
from luthier.run import Run

_FAR = {torch.float32: 1e-3, torch.bfloat16: 0.1, torch.float16: 0.05}  # of rewards, relative


@dataclass(frozen=True)
class Written:
    """What ``write_reward_model`` wrote.

    Attributes:
        layers: how many an adapter was folded into.
        off: the largest difference of a reward over the spread of rewards; None unchecked.
    """

    dtype: str
    layers: int
    off: float | None


def write_reward_model(
    run: Run, out: Path, dtype: torch.dtype | None, checked: int, on_event: OnEvent
) -> Written:
    """Fold the adapter of ``run`` into its base, and write that with its score to ``out``.

    In memory as a whole, in float32. Weights that training saw in 4 bits are written as it saw them.

    Args:
        dtype: of the weights; None for float32.
        checked: pairs whose rewards are compared before and after.

    Raises:
        UserError: the run cannot be read.
        CheckFailed: what was written gives other rewards.
    """
    recipe = run.recipe()
    models = load_tuned(run, on_event=on_event, scores=True)
    model: Any = models.tuned
    quantised = recipe.method.name == "qlora"
    if not quantised:
        model.float()
    pairs: list[TokenRow] = []
    if checked:
        pairs = tokenise_pairs(rows_of(run, on_event), recipe.data, models.tokenizer, on_event)
    layers = sum(isinstance(module, LoraLayer) for module in model.modules())
    before = rewards_of(model, pairs[: 2 * checked])
    if quantised:
        model = load_adapter(load_base(run, on_event).dequantize().float(), run.adapter_path)
    wanted = dtype or torch.float32
    with during("merging the reward model", on_event), staged_folder(out) as folder:
        whole = model.merge_and_unload() if hasattr(model, "merge_and_unload") else model
        whole.config.get_text_config().pad_token_id = models.tokenizer.pad_token_id
        whole.to(wanted).save_pretrained(str(folder))
        models.tokenizer.save_pretrained(str(folder))
        far = None
        if before:
            after = rewards_of(load_model(folder, wanted, scores=True).eval(), pairs[: 2 * checked])
            spread = float(np.std(before)) + 1e-6
            far = float(np.abs(np.subtract(after, before)).max()) / spread
            most = max(_FAR[wanted], _FAR[run_dtype(run)] if quantised else 0)
            if not far <= most:
                raise CheckFailed(
                    f"the merged reward model gives other rewards, off by {far:.1%} of their spread, so "
                    "nothing was written; use the adapter beside its base, and report this"
                )
    return Written(str(wanted).removeprefix("torch."), layers, far)
