"""The objective of a run with the model that it will train, held against the plain way before it starts."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

import torch
from peft import PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from luthier.data.batches import by_length
from luthier.data.prepare import Prepared
from luthier.data.tokens import TokenRow
from luthier.errors import UserError
from luthier.events import Note, OnEvent
from luthier.kernels import compiling
from luthier.kernels.fast import install_checked
from luthier.kernels.head import HeadLoss
from luthier.kernels.separation import rows_stay_apart
from luthier.objectives.choose import choose
from luthier.objectives.objective import Objective, mean_over
from luthier.objectives.preference import Preference, first_loss
from luthier.objectives.reference import (
    AdapterOff,
    Reference,
    Stored,
    asked_in_every_step,
    store,
)
from luthier.objectives.sft import SFT, check_first_loss, few_short, plain_loss
from luthier.objectives.teacher import Lessons
from luthier.recipe import Recipe
from luthier.run import Run
from luthier.train.loop import arithmetic
from luthier.train.parallel import in_parts
from luthier.train.processes import Processes
from luthier.train.setup import Setup
from luthier.train.teaching import Teach, load_teacher

_PAIRS = 4  # of the loss that is known beforehand


def _nothing() -> None:
    return None


@dataclass(frozen=True)
class Learning:
    """An objective, and what ``write`` puts into the run folder for it."""

    objective: Objective
    write: Callable[[], None] = field(default=_nothing)


def checked_objective(
    recipe: Recipe,
    setup: Setup,
    model: PreTrainedModel | PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    data: Prepared,
    run: Run,
    on_event: OnEvent,
    processes: Processes,
    *,
    resumed: bool,
    teach: Teach,
) -> Learning:
    """The recipe's objective and the fast paths of ``model``, held against the plain loss.

    Args:
        teach: how a new run comes to what its teacher finds likely.

    Raises:
        UserError: they differ, a teacher does not suit the model, or what a resumed run kept of its
            teacher or reference model is gone.
    """
    settings = recipe.objective
    few = [] if settings.scores else few_short(data.train)
    expected = plain_loss(model, few) if few else None
    compiled = compiling.pays(recipe.train.compile, _micro_batches(recipe, data), setup.device)
    if compiled:
        on_event(
            Note(
                "compiling element-wise operations: this takes about ten seconds the first time on a machine"
            )
        )
    kernels = recipe.kernels
    if settings.scores:  # there is no head over words
        kernels = kernels.model_copy(update={"loss": False})
    fast = install_checked(model, kernels, compiled)
    for missing in fast.missing:
        on_event(Note(f"there is no fast path for {missing}"))
    packed = rows_stay_apart(model)
    if not packed:
        if in_parts(recipe, processes):
            raise UserError(
                "this model cannot separate packed rows, so each row runs by itself, and processes with "
                "unequal numbers of rows would wait for each other: use train.parallel ddp"
            )
        on_event(
            Note("this model cannot separate packed rows: each row runs by itself, which is slower")
        )
    if expected is not None:
        check_first_loss(SFT(packed, fast.head), model, few, expected)
    if settings.teacher is not None:
        lessons = Lessons(run.teacher_path)
        objective = choose(settings, packed, fast.head, lessons=lessons)
        if resumed:
            lessons.check()
            return Learning(objective)
        if not processes.leads:
            return Learning(objective)
        load = partial(load_teacher, recipe, setup, tokenizer, model, data, run, on_event, compiled)
        return Learning(objective, teach(run, setup.dtype_name, load))
    if not settings.has_reference:
        return Learning(choose(settings, packed, fast.head))
    with arithmetic(setup.device, setup.dtype):
        reference, write = _reference(
            recipe, model, data, run, packed, fast.head, on_event, processes, resumed
        )
        objective = choose(settings, packed, fast.head, reference)
        if not resumed:
            _check_first_preference(objective, recipe, model, data.train, setup.dtype)
    return Learning(objective, write)


def _reference(
    recipe: Recipe,
    model: PreTrainedModel | PeftModel,
    data: Prepared,
    run: Run,
    packed: bool,
    head: HeadLoss | None,
    on_event: OnEvent,
    processes: Processes,
    resumed: bool,
) -> tuple[Reference, Callable[[], None]]:
    if asked_in_every_step(recipe.objective, recipe.method, recipe.model.adapter is not None):
        on_event(Note("the reference is the model with its adapter off, asked in every step"))
        return AdapterOff(), _nothing
    if recipe.data.streaming:
        raise UserError(
            f"the objective {recipe.objective.name} would compute its reference's log-probabilities of all rows "
            "before the first step, and data.streaming does not have them: train a new adapter with "
            "objective.precompute_ref_log_probs=false, whose reference is asked in every step"
        )
    path = run.reference_path
    if resumed:
        return Stored.load(path), _nothing
    on_event(
        Note(
            "the reference is the model before the first step: its log-probabilities of all rows "
            "are computed once, and kept in the run folder"
        )
    )
    size = recipe.objective.together * recipe.train.per_device_eval_batch_size
    ask = Preference(recipe.objective, None, packed, head).ask

    def asked(rows: Sequence[TokenRow]) -> dict[bytes, float]:
        groups = by_length(rows, size)[processes.rank :: processes.size]
        parts = processes.gathered(store(model, ask, groups, on_event).values)
        return {key: value for part in parts for key, value in part.items()}

    known = asked(data.train)
    with torch.no_grad():  # as validation asks the model
        known = asked(data.validation) | known
    stored = Stored(known)
    return stored, lambda: stored.save(path)


def _check_first_preference(
    objective: Objective,
    recipe: Recipe,
    model: PreTrainedModel | PeftModel,
    rows: Sequence[TokenRow],
    dtype: torch.dtype,
) -> None:
    """See that the model is its own reference before the first step.

    Raises:
        UserError: its loss is another than that of a model that is.
    """
    together = recipe.objective.together
    groups = [list(rows[i : i + together]) for i in range(0, min(len(rows), 400), together)]
    few = [
        row for group in sorted(groups, key=lambda g: sum(map(len, g)))[:_PAIRS] for row in group
    ]
    expected = first_loss(recipe.objective, few)
    loss = mean_over(objective, model, few, _PAIRS, together=together)["loss"]
    numbers = {p.dtype for p in model.parameters() if p.is_floating_point()}
    exact = numbers <= {torch.float32} and dtype == torch.float32
    if not abs(loss - expected) <= (1e-3 if exact else 0.05) * (1 + expected):
        raise UserError(
            f"before the first step the {recipe.objective.name} loss is {loss:.4f}, but a model that is "
            f"its own reference has {expected:.4f}: the reference is not the model that training "
            "starts from. Try objective.precompute_ref_log_probs=true, and report it"
        )


def _micro_batches(recipe: Recipe, data: Prepared) -> int:
    """How many go through the model, at most."""
    train = recipe.train
    if train.max_steps > 0:
        return train.max_steps * train.gradient_accumulation_steps
    return round(len(data.train) * train.num_train_epochs / train.per_device_train_batch_size)
