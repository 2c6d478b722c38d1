"""The teacher of a distillation: found, held against the student, asked before the first step, let go."""

import gc
from collections.abc import Callable
from typing import Protocol

import torch
from peft import PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from luthier.data.prepare import Prepared
from luthier.data.template import TemplateRejects, set_template
from luthier.data.tokens import Tokenizer
from luthier.errors import UserError
from luthier.events import Note, OnEvent
from luthier.kernels.fast import install_checked
from luthier.kernels.separation import rows_stay_apart
from luthier.kernels.taught_head import Top
from luthier.models.load import load_config, load_model, load_tokenizer, max_positions
from luthier.models.source import resolve
from luthier.objectives.teacher import Teacher, keep_lessons
from luthier.recipe import Recipe
from luthier.run import Run
from luthier.train.setup import Setup

Asking = Callable[[], None]  # asks the teacher, keeps what it said, and lets it go


class Teach(Protocol):
    """Says how a new run comes to what its teacher finds likely; several runs may share it."""

    def __call__(self, run: Run, dtype: str, load: Callable[[], Asking], /) -> Asking:
        """What writes it into ``run``, once that has its folder.

        Args:
            dtype: that the teacher computes in.
            load: loads the teacher, held against the student.
        """
        ...


def ask_anew(_run: Run, _dtype: str, load: Callable[[], Asking]) -> Asking:
    """By the teacher itself."""
    return load()


_TRIED = 8  # rows that both tokenizers write
_NAMED = 3  # tokens in a message


def load_teacher(
    recipe: Recipe,
    setup: Setup,
    tokenizer: PreTrainedTokenizerBase,
    student: PreTrainedModel | PeftModel,
    data: Prepared,
    run: Run,
    on_event: OnEvent,
    compiled: bool,
) -> Asking:
    """Load the recipe's teacher; what is returned asks it, keeps what it said in ``run`` and lets it go.

    Code that ships with it is not run.

    Args:
        tokenizer: the student's, with the run's chat template on it.

    Raises:
        UserError: there is no such model, it writes rows otherwise than the student, or its positions
            are too few.
    """
    settings, name = recipe.objective, recipe.objective.teacher
    assert name is not None
    folder = resolve(name, on_event=on_event).folder
    config = load_config(folder)
    most = max_positions(config)
    if most is not None and recipe.data.max_length > most:
        raise UserError(
            f"data.max_length {recipe.data.max_length} is more than the {most} positions of the teacher "
            f"{name}; set data.max_length={most} or less"
        )
    _check_tokenizer(load_tokenizer(folder), tokenizer, recipe, data)
    model = load_model(folder, setup.dtype, device=setup.device, on_event=on_event)
    fast = install_checked(model, recipe.kernels, compiled)
    heads = (m.config.get_text_config().vocab_size for m in (model, student))
    words = min(heads)
    assert settings.top_k is not None and settings.temperature is not None
    top = Top(min(settings.top_k, words), words, settings.temperature)
    held = [Teacher(model, top, rows_stay_apart(model), fast.head)]
    on_event(
        Note(
            f"the teacher {name} ({model.num_parameters():,} parameters) is asked once, before the first "
            f"step; its top {top.k} tokens of each position are kept in the run folder"
        )
    )
    del model, fast

    def ask() -> None:
        rows = [*data.train, *data.validation]
        size = recipe.train.per_device_eval_batch_size
        asked = keep_lessons(run.teacher_path, held[0], rows, size, on_event)
        held.clear()
        gc.collect()  # fast paths refer to their modules and back
        if setup.device.type == "cuda":
            torch.cuda.empty_cache()
        on_event(
            Note(
                f"the teacher's loss is {asked.loss:.4f} nats per trainable token, and its top {top.k} "
                f"tokens have {asked.kept:.2%} of its probability; {asked.bytes / 2**20:,.1f} MiB are kept"
            )
        )

    return ask


def _check_tokenizer(
    theirs: PreTrainedTokenizerBase,
    ours: PreTrainedTokenizerBase,
    recipe: Recipe,
    data: Prepared,
) -> None:
    """See that both write the run's rows as the same ids.

    Where the recipe gives a template, the teacher reads that one.

    Raises:
        UserError: they do not.
    """
    name, there, here = recipe.objective.teacher, theirs.get_vocab(), ours.get_vocab()
    if there != here:
        different = sorted(set(there.items()) ^ set(here.items()), key=lambda item: item[1])
        tokens = ", ".join(repr(token) for token, _ in different[:_NAMED])
        raise UserError(
            f"the teacher {name} has another tokenizer than {recipe.model.source}: {len(there):,} tokens "
            f"against {len(here):,}, and {tokens} have not the same ids; what it finds likely means "
            "nothing to this model: choose a teacher of the same family as objective.teacher"
        )
    if theirs.chat_template is not None and recipe.data.template in ("auto", "model"):
        set_template(theirs, recipe.data)
    else:
        theirs.chat_template = ours.chat_template
    encoders = [
        Tokenizer(each, recipe.data.train_on, recipe.data.history) for each in (ours, theirs)
    ]
    for row in data.train[:_TRIED]:
        try:
            mine, other = ([r.input_ids for r in e.encode(row.conversation)] for e in encoders)
            same = mine == other
        except TemplateRejects:
            same = False
        if not same:
            raise UserError(
                f"the teacher {name} writes {row.origin} as other tokens than {recipe.model.source}, "
                "because its chat template is another: give the template that both are to read as "
                "data.template (a file, or alpaca)"
            )
