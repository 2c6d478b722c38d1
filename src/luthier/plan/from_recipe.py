"""The job that a recipe means: with the rows of its data where they can be read here."""

from dataclasses import replace
from pathlib import Path

import torch
from transformers import PreTrainedConfig

from luthier.data.batches import RowDataset
from luthier.data.prepare import Prepared, prepare
from luthier.errors import UserError
from luthier.events import OnEvent, ignore
from luthier.models.dtype import pick_device, pick_dtype
from luthier.models.known import KNOWN_MODELS
from luthier.models.pull import cached
from luthier.models.rope import scaled
from luthier.models.source import resolve
from luthier.plan.catalogues import Accelerator, find_config
from luthier.plan.job import Job, check_length, job_from_lengths, job_from_shape
from luthier.recipe import Recipe
from luthier.train.setup import load_prepared_tokenizer


def dtype_on(asked: str, accelerator: Accelerator, here: bool) -> torch.dtype:
    """The dtype that ``model.dtype`` means on a device; ``here``: it is this machine."""
    if asked != "auto":
        found: torch.dtype = getattr(torch, asked)
        return found
    if here:
        return pick_dtype(pick_device())
    return torch.float16 if "float16 only" in accelerator.name else torch.bfloat16


def job_of_recipe(
    recipe: Recipe, dtype: torch.dtype, on_gpu: bool, on_event: OnEvent = ignore
) -> tuple[Job, str | None]:
    """The job, and what had to be assumed where the data could not be read.

    Raises:
        UserError: the recipe's model or data is wrong.
    """
    source, trusted = recipe.model.source, recipe.model.trust_remote_code
    config = scaled(find_config(source, trusted), recipe.model.rope_scaling)
    check_length(recipe.data.max_length, source, config)
    folder = _tokenizer_folder(recipe, on_event)
    if folder is None:
        assumed = (
            f"the tokenizer of {source} is not on this machine, so the data was not read: the plan "
            f"assumes 1,000 rows of data.max_length ({recipe.data.max_length:,}) tokens"
        )
        return job_from_shape(recipe, config, dtype, 1000, on_gpu), assumed
    tokenizer = load_prepared_tokenizer(recipe, folder).tokenizer
    data = prepare(recipe, tokenizer, on_event)
    job = job_of_data(recipe, data, config, dtype, on_gpu)
    if data.stream is None:
        return job, None
    return job, (
        "data.train is streamed: how many rows it has is not known, the time is that of rows like the "
        f"first {len(data.train):,}, and the memory that of rows of data.max_length"
    )


def job_of_shape(recipe: Recipe, dtype: torch.dtype, rows: int, on_gpu: bool) -> Job:
    """The job of ``rows`` rows of ``data.max_length`` tokens; no data is read.

    Args:
        dtype: what ``model.dtype`` comes to.

    Raises:
        UserError: no such model, or rows longer than the model can read.
    """
    config = scaled(find_config(recipe.model.source), recipe.model.rope_scaling)
    return job_from_shape(recipe, config, dtype, rows, on_gpu)


def job_of_data(
    recipe: Recipe,
    data: Prepared,
    config: PreTrainedConfig,
    dtype: torch.dtype,
    on_gpu: bool,
    optim: str | None = None,
) -> Job:
    """The job of a recipe whose data was prepared; ``optim`` is what stands in for its optimiser."""
    dataset = RowDataset(
        data.train, recipe.data.max_length, recipe.data.packing, recipe.objective.together
    )
    items = [[len(row) for row in item] for item in dataset.items]
    tokens = data.report.tokens
    held_out = tokens.validation.supervised
    job = job_from_lengths(
        recipe, config, dtype, items, tokens.train.supervised, optim, held_out, on_gpu
    )
    if data.stream is None:
        return job
    longest = recipe.data.max_length * recipe.objective.together  # of rows that nobody has seen yet
    return replace(job, largest=(longest,) * recipe.train.per_device_train_batch_size)


def _tokenizer_folder(recipe: Recipe, on_event: OnEvent) -> Path | None:
    source = recipe.model.source
    if source in KNOWN_MODELS:
        pulled = cached(source)
        return pulled.folder if pulled else None
    try:
        return resolve(source, recipe.model.revision, weights=False, on_event=on_event).folder
    except UserError:  # a model of the catalogue that cannot be fetched from the hub here
        return None
