"""Several adapters over one base made into one, by PEFT's formulas."""

from collections.abc import Sequence
from pathlib import Path

from peft import PeftModel
from transformers import set_seed

from luthier.errors import UserError
from luthier.export.options import Combination
from luthier.models.adapters import trained_beside

_EXACT = ("cat", "svd", "linear")  # these prune nothing


def combine(
    model: PeftModel,
    weights: Sequence[float],
    combination: Combination,
    density: float,
    seed: int,
    folder: Path,
) -> None:
    """Write to ``folder`` the adapter that is ``model``'s adapters, weighted and combined.

    ``cat`` is their exact weighted sum. ``svd`` is that sum cut to the largest rank among them.
    ``linear`` adds the A's and the B's, which is the sum only up to cross terms. The others prune to
    the share ``density`` first: TIES (Yadav et al. 2023), DARE (Yu et al. 2023; random, by
    ``seed``), magnitude.

    Raises:
        UserError: they cannot be combined (DoRA, what trained beside A and B, layers or ranks that
            differ).
    """
    names = list(model.peft_config)
    if len(weights) != len(names):
        raise UserError(
            f"--weights has {len(weights)} numbers for {len(names)} runs; give one per run"
        )
    for config in model.peft_config.values():
        if config.use_dora:
            raise UserError(
                "DoRA adapters cannot be combined by a weighted sum; merge them one at a time"
            )
        if config.target_parameters:
            raise UserError(
                "adapters on a model's experts cannot be combined by a weighted sum; merge them one "
                "at a time"
            )
        beside = trained_beside(config)
        if beside is not None:
            raise UserError(
                f"adapters that trained {beside} besides cannot be combined by a weighted sum; merge "
                "them one at a time"
            )
        # PEFT would scale the combination by sqrt(rank) once more; the adapters' own scales are
        # in their layers already.
        config.use_rslora = False
    set_seed(seed)
    try:
        model.add_weighted_adapter(
            names,
            list(weights),
            "combined",
            combination_type=combination,
            density=None if combination in _EXACT else density,
            svd_full_matrices=False,
        )
    except (ValueError, RuntimeError) as error:
        hint = "; cat and svd accept any ranks" if combination not in ("cat", "svd") else ""
        raise UserError(f"cannot combine these adapters by {combination}: {error}{hint}") from error
    model.save_pretrained(str(folder), selected_adapters=["combined"])
    # PEFT keeps an adapter that is not named 'default' in a folder of its name.
    for file in (folder / "combined").iterdir():
        file.rename(folder / file.name)
