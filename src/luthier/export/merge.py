"""A run's adapter folded into its base: a Transformers folder that needs nothing else.

Tensor by tensor, in float32, by PEFT's own formulas; at most one shard is in memory.
"""

import math
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import GenerationConfig

from luthier.data.spans import stop_token_ids
from luthier.data.tokens import TokenRow
from luthier.errors import CheckFailed, UserError
from luthier.events import OnEvent, during, ignore
from luthier.export.card import write_card
from luthier.export.combine import combine
from luthier.export.options import Combination, Onto
from luthier.export.rewards import write_reward_model
from luthier.export.same import Difference, check_rows, difference, exact_arithmetic, outputs
from luthier.export.skeleton import adapted
from luthier.export.tuned import TunedWeights, base_of
from luthier.export.weights import write_shards
from luthier.files import staged_folder
from luthier.models.adapters import load_adapter
from luthier.models.dtype import pick_device
from luthier.models.load import load_model
from luthier.models.tuned import load_base, run_dtype
from luthier.recipe import Recipe
from luthier.run import Run


@dataclass(frozen=True)
class MergeOptions:
    """How to merge.

    Attributes:
        dtype: of the merged weights; None for the dtype the run computed in.
        onto: the base as the adapter's training saw it, or as it was published.
        weights: of several adapters; empty for equal shares.
        combination: how several become one (``combine.py``).
        density: share of an adapter that the pruning combinations keep.
        max_shard_bytes: largest file of weights.
        check_rows: rows to compare outputs on; 0 for no comparison.
    """

    dtype: torch.dtype | None = None
    onto: Onto = "trained"
    weights: tuple[float, ...] = ()
    combination: Combination = "cat"
    density: float = 0.5
    max_shard_bytes: int = 2 * 10**9
    check_rows: int = 64


@dataclass(frozen=True)
class Merged:
    """What a merge wrote.

    Attributes:
        layers: how many layers an adapter was folded into.
        untied: the output layer got weights of its own, since an adapter changed one end alone.
        checks: by run, the merged model against base and adapter.
        rewards_off: of a reward model, how far its rewards are from the run's, over their spread.
    """

    folder: Path
    dtype: str
    onto: str
    layers: int
    bytes: int
    files: int
    untied: bool
    checks: dict[str, Difference] = field(default_factory=dict)
    rewards_off: float | None = None

    def as_dict(self) -> dict[str, Any]:
        checks = {name: check.as_dict() for name, check in self.checks.items()}
        return {**vars(self), "folder": str(self.folder), "checks": checks}


def merge(
    runs: Sequence[Run],
    out: Path,
    options: MergeOptions = MergeOptions(),  # frozen
    on_event: OnEvent = ignore,
) -> Merged:
    """Write the model of ``runs`` to ``out`` as a standalone Transformers folder.

    One run: W' = W + scale · B A for each adapted layer (DoRA: times its magnitude). Several: their
    adapters are combined first. A full run has nothing to merge: its weights are written in
    ``dtype``.

    Raises:
        UserError: a run has not finished, the runs do not share a base, ``out`` is in use, or a
            weight is non-finite.
        CheckFailed: what was merged answers otherwise than base and adapter.
    """
    refuse_occupied(out)
    recipe = _common_recipe(runs, bool(options.weights))
    if any(run.recipe().objective.scores for run in runs):
        return _reward_model(runs, out, options, on_event)
    weights = options.weights or tuple(1 / len(runs) for _ in runs)
    rows: dict[str, list[TokenRow]] = {}
    if options.check_rows:  # before the long part, since there may be none
        rows = {str(run.root): check_rows(run, options.check_rows, on_event) for run in runs}
    with tempfile.TemporaryDirectory() as scratch:
        adapter = runs[0].adapter_path
        if len(runs) > 1 or weights != (1.0,):
            adapter = Path(scratch)
            config = base_of(runs[0], recipe)[1]
            model = adapted(
                config,
                {f"run{i}": run.adapter_path for i, run in enumerate(runs)},
                recipe.model.trust_remote_code,
            )
            with during("combining the adapters", on_event):
                combine(
                    model, weights, options.combination, options.density, recipe.train.seed, adapter
                )
        with staged_folder(out) as folder:
            merged = _write(runs[0], adapter, folder, out, options, on_event)
            if rows:
                checks = _compare(runs[0], recipe, adapter, folder, merged.dtype, rows, on_event)
                _refuse_another_model(checks, merged)
                merged.checks.update(checks)
            if len(runs) == 1:
                write_card(runs[0], folder, "safetensors", _facts(merged))
    return merged


def _reward_model(
    runs: Sequence[Run], out: Path, options: MergeOptions, on_event: OnEvent
) -> Merged:
    if len(runs) > 1 or options.weights or options.onto != "trained":
        raise UserError(
            "a reward model is merged alone, onto the base that it was trained on: leave out --weights "
            "and --onto"
        )
    written = write_reward_model(runs[0], out, options.dtype, options.check_rows, on_event)
    files = list(out.glob("*.safetensors"))
    return Merged(
        folder=out,
        dtype=written.dtype,
        onto="trained",
        layers=written.layers,
        bytes=sum(file.stat().st_size for file in files),
        files=len(files),
        untied=False,
        rewards_off=written.off,
    )


# Nats per token that rounding may cost: where all is float32, and where weights or products are in
# 16 bits.
_MOST_KL, _MOST_KL_ROUNDED = 1e-5, 0.05


def _refuse_another_model(checks: dict[str, Difference], merged: Merged) -> None:
    """Raise where a merged model is not base and adapter; onto the published base it need not be."""
    for name, check in checks.items():
        exact = merged.dtype == check.arithmetic == "float32"
        most = _MOST_KL if exact else _MOST_KL_ROUNDED
        if merged.onto == "original" and merged.layers and math.isfinite(check.loss_after):
            continue
        if not check.kl <= most:
            raise CheckFailed(
                f"the merged model does not answer as base and adapter do, so nothing was written: "
                f"on rows of {name} the loss goes from {check.loss_before:.4f} to "
                f"{check.loss_after:.4f} nats per token (KL {check.kl:.2g}), and the most likely "
                f"token is the same at {check.same_top:.1%} of {check.positions} positions. "
                "Use the adapter beside its base instead, and report this with the adapter's "
                "adapter_config.json"
            )


def _facts(merged: Merged) -> dict[str, Any]:
    """What the model card says of the files."""
    use = (
        "```python\nfrom transformers import pipeline\n\n"
        f'answer = pipeline("text-generation", "{merged.folder.name}")\n'
        'print(answer([{"role": "user", "content": "…"}]))\n```'
    )
    base = "as its adapter was trained on it" if merged.onto == "trained" else "as published"
    what = f"adapter merged into the base {base}" if merged.layers else "all weights"
    checks = [
        f"- loss {check.loss_before:.4f} → {check.loss_after:.4f} nats per token on {check.rows} rows, "
        f"the same most likely token at {check.same_top:.1%} of {check.positions} positions"
        for check in merged.checks.values()
    ]
    files = [f"`*.safetensors`: {merged.dtype}, {merged.bytes / 2**20:,.1f} MiB, {what}"]
    return {"use": use, "files": files, "checks": checks}


def refuse_occupied(out: Path) -> None:
    """Raise unless ``out`` is free to be written.

    Raises:
        UserError: something is there already.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out} exists already; choose another folder, or delete it first")


def _common_recipe(runs: Sequence[Run], weighted: bool) -> Recipe:
    recipes = [run.recipe() for run in runs]
    for run in runs:
        run.require_finished()
    first = recipes[0]
    several = len(runs) > 1 or weighted
    if several and any(recipe.method.name == "full" for recipe in recipes):
        raise UserError(
            "only adapters can be weighted and combined; a full fine-tuning run has no adapter"
        )
    for run in runs[1:]:
        mine, theirs = _what_it_learned_on(runs[0]), _what_it_learned_on(run)
        differ = [key for key in mine if mine[key] != theirs[key]]
        if differ:
            raise UserError(
                f"{run.root} was trained on another base than {runs[0].root}: "
                + ", ".join(f"{key} {mine[key]} and {theirs[key]}" for key in differ)
            )
    return first


def _what_it_learned_on(run: Run) -> dict[str, Any]:
    recipe = run.recipe()
    quantised = recipe.method.name == "qlora"
    return {
        "model.source": recipe.model.source,
        "model.revision": recipe.model.revision,
        "dtype": str(run_dtype(run)),
        "4-bit": (recipe.method.bnb_4bit_quant_type, recipe.method.bnb_4bit_use_double_quant)
        if quantised
        else None,
    }


def _write(
    run: Run,
    adapter: Path,
    folder: Path,
    out: Path,
    options: MergeOptions,
    on_event: OnEvent,
) -> Merged:
    """Write to ``folder`` what will be ``out``."""
    dtype = options.dtype or run_dtype(run)
    with during("opening the weights", on_event):
        model = TunedWeights(run, adapter, options.onto)
    size = _write_weights(folder, model, dtype, options.max_shard_bytes, on_event)
    write_companions(folder, model, dtype)
    return Merged(
        folder=out,
        dtype=str(dtype).removeprefix("torch."),
        onto=model.onto,
        layers=model.layers,
        bytes=size,
        files=len(list(folder.glob("*.safetensors"))),
        untied=model.untied,
    )


def _write_weights(
    folder: Path, model: TunedWeights, dtype: torch.dtype, max_shard_bytes: int, on_event: OnEvent
) -> int:
    """Write all weights as the base's files hold them; returns their bytes."""
    plan: dict[str, tuple[tuple[int, ...], torch.dtype]] = {}
    unit_of: dict[str, tuple[str, ...]] = {}
    for unit in model.units:
        blank = {
            name: torch.empty(
                model.shape(name),
                dtype=dtype if model.is_float(name) else model.stored_dtype(name),
                device="meta",
            )
            for name in unit
        }
        for stored, tensor in model.cut(blank).items():
            plan[stored], unit_of[stored] = (tuple(tensor.shape), tensor.dtype), unit
    held: dict[str, Tensor] = {}  # of one unit: the experts of a layer are cut out of one tensor

    def make(stored: str) -> Tensor:
        if stored not in held:
            held.clear()
            held.update(
                model.cut({name: _cast(name, model(name), dtype) for name in unit_of[stored]})
            )
        return held.pop(stored)

    return write_shards(folder, plan, make, max_shard_bytes, on_event)


def _cast(name: str, value: Tensor, dtype: torch.dtype) -> Tensor:
    if not value.is_floating_point():
        return value
    cast = value.to(dtype)
    if not cast.isfinite().all():
        raise UserError(f"{name} does not fit {dtype}: its largest is {value.abs().max():g}")
    return cast


def write_companions(folder: Path, model: TunedWeights, dtype: torch.dtype) -> None:
    """All of a model folder but its weights: config, generation settings, tokenizer, own code.

    The generation settings stop where the base's own do, and at what the chat template ends a turn
    with, so that the folder answers as it was trained wherever it is loaded.
    """
    config, source, tokenizer = model.config, model.source, model.tokenizer
    config.dtype = dtype
    config.save_pretrained(str(folder))
    try:
        generation = GenerationConfig.from_pretrained(str(source), local_files_only=True)
    except OSError:
        generation = GenerationConfig.from_model_config(config)
    own = generation.eos_token_id
    if own is None:
        own = config.get_text_config().eos_token_id
    ends = own if isinstance(own, list) else [] if own is None else [own]
    generation.eos_token_id = list(dict.fromkeys([*ends, *stop_token_ids(tokenizer)]))
    generation.pad_token_id = tokenizer.pad_token_id
    try:
        generation.save_pretrained(str(folder))
    except ValueError:  # settings that contradict each other, as some models ship them
        GenerationConfig(
            bos_token_id=generation.bos_token_id,
            eos_token_id=generation.eos_token_id,
            pad_token_id=generation.pad_token_id,
        ).save_pretrained(str(folder))
    tokenizer.save_pretrained(str(folder))
    for file in [*source.glob("*.py"), *source.glob("LICENSE*")]:
        shutil.copyfile(file, folder / file.name)


def _compare(
    run: Run,
    recipe: Recipe,
    adapter: Path,
    folder: Path,
    dtype: str,
    rows: dict[str, list[TokenRow]],
    on_event: OnEvent,
) -> dict[str, Difference]:
    """Base and adapter against the merged model in ``folder``, on held-out rows of each run."""
    if recipe.method.name == "full":
        before_model: nn.Module = load_model(
            run.model_path,
            torch.float32,
            device=pick_device(),
            trust_remote_code=recipe.model.trust_remote_code,
            on_event=on_event,
        )
    else:
        before_model = load_adapter(load_base(run, on_event), adapter)
    arithmetic = exact_arithmetic(before_model)
    before = {
        name: outputs(before_model, tokens, "loss of base and adapter", on_event)
        for name, tokens in rows.items()
    }
    del before_model
    after_model = load_model(
        folder,
        getattr(torch, dtype),
        device=pick_device(),
        trust_remote_code=recipe.model.trust_remote_code,
        on_event=on_event,
    )
    exact_arithmetic(after_model)
    after = {
        name: outputs(after_model, tokens, "loss of the merged model", on_event)
        for name, tokens in rows.items()
    }
    return {
        name: difference(before[name], after[name], len(tokens), arithmetic)
        for name, tokens in rows.items()
    }
