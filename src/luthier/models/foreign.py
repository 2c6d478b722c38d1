"""A PEFT folder that any tool made, taken as a run: what a run keeps is found or asked for.

The run is a folder in the cache that points to the adapter, so that every command takes it.
"""

import hashlib
import json
import math
import shutil
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from safetensors import SafetensorError, safe_open
from transformers import PreTrainedTokenizerBase

from luthier import __version__
from luthier.errors import UserError
from luthier.events import Note, OnEvent, ignore
from luthier.files import staged_folder, user_path, write_json, write_text
from luthier.models.known import KNOWN_MODELS
from luthier.models.load import load_config, load_tokenizer, template_hash
from luthier.models.pull import cache_folder
from luthier.models.source import ResolvedModel, resolve
from luthier.recipe.reading import model_recipe
from luthier.records import Measured, Provenance
from luthier.run import Run, open_run, save_recipe

_CONFIG, _WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_TEMPLATE = "chat_template.jinja"
# PEFT's LoRA that begins with a part of the base; other bases than that one's rest do not fit it.
_ON_A_REST = ("pissa", "olora", "corda", "loftq", "lora_ga")


def open_tuned(path: Path, base: str | None = None, on_event: OnEvent = ignore) -> Run:
    """The run at ``path``, or the PEFT folder there as one.

    Args:
        base: the model of a PEFT folder that does not say its own, or says a place that is gone.

    Raises:
        UserError: it is neither, or the adapter is not one of a language model that is here.
    """
    if (path / _CONFIG).is_file():
        return _as_run(path, base, on_event)
    run = open_run(path)
    if base is not None:
        raise UserError(
            f"{path} is a run, which says itself what its base is; leave out --base-model"
        )
    return run


def _as_run(folder: Path, base: str | None, on_event: OnEvent) -> Run:
    config = _config_of(folder)
    if not (folder / _WEIGHTS).is_file():  # PEFT would read a pickle in its place
        raise UserError(f"{folder} has no {_WEIGHTS}, and pickle files are not read")
    source, revision = _base_of(folder, config, base)
    resolved = _resolved(folder, source, revision, base is not None, on_event)
    tokenizer, template = _writing(folder, resolved.folder)
    on_event(Note(f"{folder} is an adapter on {source}, {template}"))
    target = _place(folder, source, revision)
    target.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{target.parent}.lock"):
        if not target.is_dir():
            try:
                with staged_folder(target) as staging:
                    _write(Run(staging), folder, config, resolved, source, revision, tokenizer)
            except SafetensorError as error:
                raise UserError(f"{folder / _WEIGHTS} or the base is damaged: {error}") from error
            except OSError as error:
                raise UserError(f"cannot write in {target.parent}: {error}") from error
    return Run(target)


def _config_of(folder: Path) -> dict[str, Any]:
    path = folder / _CONFIG
    try:
        config = json.loads(path.read_text("utf-8"))
        if not isinstance(config, dict):
            raise ValueError("it is not a JSON object")
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"cannot read {path}: {error}") from error
    kind, task = config.get("peft_type"), config.get("task_type")
    if kind != "LORA":
        raise UserError(f"{folder} holds an adapter of the kind {kind}; luthier uses LoRA adapters")
    if task not in (None, "CAUSAL_LM"):
        raise UserError(
            f"{folder} holds an adapter for the task {task}; luthier uses those of language models "
            "(CAUSAL_LM)"
        )
    start = config.get("init_lora_weights")
    if isinstance(start, str) and start.startswith(_ON_A_REST):
        raise UserError(
            f"the adapter in {folder} stands on a base that {start} has changed, so it does not fit "
            "the published one; save it again with PEFT's path_initial_model_for_weight_conversion"
        )
    return config


def _base_of(folder: Path, config: dict[str, Any], asked: str | None) -> tuple[str, str | None]:
    """What the base is called, and its revision on the hub."""
    if asked is not None:
        return asked, None
    told = config.get("base_model_name_or_path")
    if not isinstance(told, str) or not told:
        raise UserError(
            f"{folder / _CONFIG} does not say which model the adapter is for; add --base-model MODEL"
        )
    known = next((name for name, model in KNOWN_MODELS.items() if model.hub_id == told), None)
    revision = config.get("revision")
    return known or told, revision if isinstance(revision, str) and known is None else None


def _resolved(
    folder: Path, source: str, revision: str | None, asked: bool, on_event: OnEvent
) -> ResolvedModel:
    try:
        return resolve(source, revision, on_event=on_event)
    except UserError as error:
        if asked:
            raise
        raise UserError(
            f"the adapter in {folder} is for {source}, which cannot be used here: {error}. If the "
            "model is elsewhere, add --base-model MODEL"
        ) from error


def _writing(folder: Path, base: Path) -> tuple[PreTrainedTokenizerBase, str]:
    """The tokenizer of the adapter, else the base's; where it and its chat template come from."""
    own = (folder / "tokenizer.json").is_file()
    tokenizer = load_tokenizer(folder if own else base)
    whose = "the adapter's folder" if own else "the base"
    if isinstance(tokenizer.chat_template, dict):  # several, by name
        tokenizer.chat_template = tokenizer.chat_template.get("default")
    beside = folder / _TEMPLATE
    if not own and beside.is_file():
        tokenizer.chat_template = beside.read_text("utf-8")
        whose = "the adapter's folder"
    if own and not tokenizer.chat_template:
        theirs = load_tokenizer(base).chat_template
        if isinstance(theirs, str):
            tokenizer.chat_template, whose = theirs, "the base"
    if not tokenizer.chat_template:
        return tokenizer, "without a chat template: prompts are continued as plain text"
    return tokenizer, f"with the chat template of {whose}"


def _place(folder: Path, source: str, revision: str | None) -> Path:
    """Where the run of the adapter is; other files or another base have another."""
    stamps = [
        (path.name, path.stat().st_size, path.stat().st_mtime_ns)
        for path in sorted(folder.iterdir())
        if path.is_file()
    ]
    local = user_path(source)
    where = str(local.resolve()) if local.exists() else source
    told = repr((__version__, str(folder.resolve()), stamps, where, revision))
    key = hashlib.sha256(told.encode()).hexdigest()[:16]
    return cache_folder().parent / "adapters" / key / folder.resolve().name


def _write(
    run: Run,
    folder: Path,
    config: dict[str, Any],
    resolved: ResolvedModel,
    source: str,
    revision: str | None,
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    run.adapter_path.mkdir()
    for rows in (run.train_path, run.validation_path):  # nobody knows them any more
        write_text(rows, "")
    tokenizer.save_pretrained(str(run.adapter_path))
    for name in (_CONFIG, _WEIGHTS):
        _point_to(folder / name, run.adapter_path / name)
    dtype = _dtype(resolved.folder)
    recipe = model_recipe(
        source,
        model={"source": source, "revision": revision, "dtype": dtype},
        method={
            "name": "lora",
            "lora_r": config.get("r", 8),
            "use_rslora": bool(config.get("use_rslora")),
            "use_dora": bool(config.get("use_dora")),
        },
        evaluate={"probe": False},
    )
    adapter = _numbers(run.adapter_path)
    template = "model" if tokenizer.chat_template else "none"
    write_json(
        run.provenance_path,
        Provenance(
            versions={},
            device="unknown",
            dtype=dtype,
            model=resolved.origin,
            template=template,
            template_sha256=template_hash(tokenizer),
            data_sha256={},
        ).to_dict(),
    )
    write_json(
        run.measured_path,
        Measured(
            steps=0,
            best_step=0,
            best_eval_loss=None,
            best_eval_perplexity=None,
            stopped_early=False,
            seconds=0.0,
            tokens=0,
            tokens_per_second=0.0,
            peak_memory_bytes=0,
            trainable_parameters=adapter,
            total_parameters=adapter + _numbers(resolved.folder),
            device="unknown",
            dtype=dtype,
            weights=run.adapter_path.name,
        ).to_dict(),
    )
    save_recipe(run, recipe.with_absolute_paths())


def _numbers(folder: Path) -> int:
    """All numbers in the safetensors files of a folder."""
    total = 0
    for path in folder.glob("*.safetensors"):
        with safe_open(str(path), "pt") as file:
            shapes = [file.get_slice(name).get_shape() for name in file.keys()]  # noqa: SIM118
        total += sum(math.prod(shape) for shape in shapes)
    return total


def _point_to(file: Path, place: Path) -> None:
    try:
        place.symlink_to(file.resolve())
    except OSError:  # Windows lets not everybody make links
        shutil.copyfile(file, place)


def _dtype(base: Path) -> str:
    """The number format that the base is stored in, where this machine computes in it."""
    stored = load_config(base).dtype
    if stored == torch.float16 and not torch.cuda.is_available():
        return "float32"
    name = str(stored).removeprefix("torch.")
    return name if name in ("float32", "bfloat16", "float16") else "float32"
