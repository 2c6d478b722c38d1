"""Everything before the first step; whether a run is new or goes on is decided here, once."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Protocol

import torch
from peft import PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase, set_seed

from luthier.data.batches import RowDataset, StepBatches
from luthier.data.prepare import Prepared, load_stored, load_streamed, prepare, store
from luthier.data.split import sample
from luthier.data.stream import WINDOW, Window
from luthier.data.stream_batches import StreamBatches
from luthier.data.tokens import TokenRow
from luthier.data.unused import sentence
from luthier.data.workers import Ahead
from luthier.events import Note, OnEvent
from luthier.files import write_json
from luthier.kernels.fp8_base import refuse_device
from luthier.models.adapters import trainable_parameters
from luthier.models.continued import continue_adapter
from luthier.models.dtype import pick_device
from luthier.models.load import load_config, load_model
from luthier.models.residual import start_of
from luthier.models.source import ResolvedModel
from luthier.objectives.noise import Noisy
from luthier.objectives.objective import Objective
from luthier.recipe import Recipe
from luthier.records import Provenance
from luthier.records.data import StreamPlace
from luthier.run import Run, save_recipe
from luthier.runtime import keep_freed_memory
from luthier.train.checkpoints import Checkpoints, usable_checkpoint
from luthier.train.course import plan_course
from luthier.train.first_weights import begin_adapter
from luthier.train.guards import (
    check_embedding,
    check_marks,
    check_rows,
    check_untrained_tokens,
)
from luthier.train.handed_on import prepared_once
from luthier.train.learning import checked_objective
from luthier.train.loop import Learner, Loop
from luthier.train.memory import with_micro_batch
from luthier.train.offload import CudaSide
from luthier.train.optimizers import make_optimizer, make_scheduler, step_in_backward
from luthier.train.parallel import (
    check_allowed,
    in_parts,
    of_same_steps,
    replicated,
    rows_per_step,
)
from luthier.train.processes import Processes
from luthier.train.provenance import note_changed_versions, provenance_of
from luthier.train.setup import (
    LoadModel,
    Setup,
    build_model,
    choose_setup,
    load_prepared_tokenizer,
    recompute_activations,
    resolve_model,
)
from luthier.train.sharded import ShardedLoss, are_shards, shard
from luthier.train.skips import Skips
from luthier.train.state import State, load_state
from luthier.train.stop import StopRequest
from luthier.train.teaching import Teach, ask_anew
from luthier.train.validation import Probe, Validation
from luthier.train.watch import Watch


class Forecast(Protocol):
    """Says before a run what it will take, and keeps that in plan.json.

    ``luthier plan`` simulates the training step of this part, so who calls ``fit`` hands it in.
    """

    def __call__(
        self,
        recipe: Recipe,
        resolved: ResolvedModel,
        data: Prepared,
        setup: Setup,
        on_event: OnEvent,
    ) -> Callable[[Run], None]:
        """Tell the user; what is returned writes plan.json into the run folder, made by then."""
        ...


@dataclass(frozen=True)
class Materials:
    """Where a run gets its rows, its base and what its teacher finds likely: each anew, unless a caller
    shares them among runs.
    """

    prepare: Callable[[Recipe, PreTrainedTokenizerBase, OnEvent], Prepared] = prepare
    load: LoadModel = load_model
    teach: Teach = ask_anew


@dataclass(frozen=True)
class Asked:
    """What a caller wants of a run.

    Attributes:
        probe: asked before the first step and at every evaluation.
        micro_batch: rows per micro-batch where the recipe's did not fit into memory.
        materials: where data and weights come from.
        stop: a request to save and stop; a program may make one as a user does by Ctrl-C.
        processes: that train together.
    """

    recipe: Recipe
    run: Run
    on_event: OnEvent
    probe: Probe | None = None
    forecast: Forecast | None = None
    micro_batch: int | None = None
    materials: Materials = field(default_factory=Materials)
    stop: StopRequest = field(default_factory=StopRequest)
    processes: Processes = field(default_factory=Processes)


@dataclass(frozen=True)
class Session:
    """A loop that is ready to run, and what the end of the run has to know.

    Attributes:
        sizes: trainable and all parameters.
    """

    loop: Loop
    setup: Setup
    tokenizer: PreTrainedTokenizerBase
    sizes: tuple[int, int]


@dataclass(frozen=True)
class _Start:
    """Where a run starts: at the beginning or after a checkpoint.

    Attributes:
        announce: says what is special about it, once the data has been described.
        write: what the run folder must hold before the first step, given the provenance.
    """

    setup: Setup
    data: Prepared
    template: str
    micro_batch: int | None
    announce: Callable[[], None]
    write: Callable[[], None]
    state: State = field(default_factory=State)
    checkpoint: Path | None = None


def open_session(asked: Asked) -> Session:
    """Prepare data, model and optimiser, check them, and write what the run folder must hold.

    All that can fail for what the user wrote comes before the first file is written.

    Raises:
        UserError: the recipe, the data or the machine does not allow it.
    """
    recipe, run, on_event, processes = asked.recipe, asked.run, asked.on_event, asked.processes
    check_allowed(recipe, processes)
    if recipe.kernels.fp8_base:
        refuse_device(pick_device())
    resolved = processes.in_turn(lambda: resolve_model(recipe, on_event))
    checkpoint = processes.from_first(lambda: usable_checkpoint(run, on_event))
    begun = run.provenance() if checkpoint is not None else None
    writing = load_prepared_tokenizer(recipe, resolved.folder, begun, on_event)
    tokenizer, template = writing.tokenizer, writing.template
    if checkpoint is None:
        start = _new(asked, resolved, tokenizer, template)
    else:
        start = _resumed(asked, checkpoint, tokenizer, template)
    setup, data = start.setup, start.data
    # Before the model and its threads are there: a process that is forked has no use for them.
    following = data.stream.following() if data.stream is not None else None
    recipe = with_micro_batch(recipe, start.micro_batch)
    if begun is not None:
        recipe = of_same_steps(recipe, begun.processes or 1, processes.size, on_event)
    _describe_data(data, start.template, on_event)
    if processes.size > 1:
        on_event(Note(rows_per_step(recipe.train, processes.size)))
    if start.template != "none":
        check_marks(tokenizer, on_event)
    check_rows(data.train, data.validation, tokenizer, on_event)
    for substitute in setup.substitutes:
        on_event(Note(substitute))
    processes.from_first(start.announce)
    if setup.device.type == "cpu":
        keep_freed_memory()
    elif setup.dtype == torch.float32:  # products by tensor cores: inputs rounded to 10 bits
        torch.backends.cuda.matmul.allow_tf32 = setup.device.type == "cuda"

    set_seed(recipe.train.seed)
    load, tokens = asked.materials.load, writing.tokens
    made = start.checkpoint
    if made is not None and recipe.method.name == "full" and are_shards(made):
        made = None  # its parts are put into the model later
    model = build_model(recipe, resolved, setup, made, on_event, tokens, load)
    if recipe.objective.scores and model.config.get_text_config().pad_token_id is None:
        model.config.get_text_config().pad_token_id = tokenizer.pad_token_id  # how its scores pool
    if start.checkpoint is None:
        if recipe.model.adapter is not None and isinstance(model, PeftModel):
            continue_adapter(model, recipe, tokenizer, on_event)
        else:
            begin_adapter(model, recipe.method, resolved.folder, data.train, on_event)
    sizes = trainable_parameters(model)
    on_event(
        Note(
            f"{recipe.method.name}: {sizes[0]:,} of {sizes[1]:,} parameters are trainable "
            f"({sizes[0] / sizes[1]:.2%}), {setup.dtype_name} on {setup.device_name}"
        )
    )
    check_embedding(model, data.train, len(tokenizer))
    check_untrained_tokens(model, data.train, tokenizer, on_event)
    learning = checked_objective(
        recipe, setup, model, tokenizer, data, run, on_event, processes,
        resumed=start.checkpoint is not None, teach=asked.materials.teach,
    )  # fmt: skip
    objective, together = learning.objective, recipe.objective.together
    batches = _batches(recipe, start, following, model, tokenizer, objective, processes, on_event)
    course = plan_course(recipe.train, batches.steps_per_epoch, validates=bool(data.validation))
    processes.from_first(start.write)
    processes.from_first(learning.write)

    alpha = recipe.train.neftune_noise_alpha
    learned = Noisy(objective, alpha) if alpha is not None else objective
    parted, cuts_weights = in_parts(recipe, processes), recipe.train.parallel == "fsdp2"
    if parted:
        shard(model, setup.device, processes.size, weights=cuts_weights)
    learner = _make_learner(recipe, setup, model, learned, course.max_steps, processes)
    checkpoints = Checkpoints(
        run,
        model,
        learner.optimizer,
        learner.scheduler,
        learner.scaler,
        recipe.train.save_total_limit,
        load_config(resolved.folder, recipe.model.trust_remote_code).get_text_config().vocab_size,
        start.checkpoint,
        on_event,
        start_of(model) if isinstance(model, PeftModel) and recipe.method.changes_base else None,
        processes,
    )
    checkpoints.load()
    if parted:
        learner.shared = ShardedLoss(model, learned, weights=cuts_weights)
    elif processes.size > 1:
        learner.shared = replicated(model, learned)
    asks = data.validation and not recipe.objective.scores
    probe = asked.probe if asks else None
    rate = recipe.train.learning_rate
    assert rate is not None  # the recipe filled in the method's
    loop = Loop(
        learner,
        batches,
        course,
        start.state,
        Validation(
            objective,
            _sampled(data.validation, recipe),
            recipe.train.per_device_eval_batch_size,
            partial(probe, model, tokenizer) if probe is not None else None,
            on_event,
            together,
            processes,
            parted,
        ),
        checkpoints,
        Watch(model, rate, on_event),
        Skips(run, batches.rows, rate, processes),
        asked.stop,
        on_event,
    )
    return Session(loop, setup, tokenizer, sizes)


def _new(
    asked: Asked, resolved: ResolvedModel, tokenizer: PreTrainedTokenizerBase, template: str
) -> _Start:
    recipe, run, processes = asked.recipe, asked.run, asked.processes
    setup = _choose_setup(recipe, processes)
    data = prepared_once(
        lambda: asked.materials.prepare(recipe, tokenizer, asked.on_event),
        run,
        processes,
        streaming=recipe.data.streaming,
    )
    template = _template_used(template, data)
    keep_plan: Callable[[Run], None] | None = None

    def announce() -> None:
        nonlocal keep_plan
        if asked.forecast is not None:
            keep_plan = asked.forecast(recipe, resolved, data, setup, asked.on_event)

    def write() -> None:
        made_of = provenance_of(resolved, setup, tokenizer, template, data)
        several = processes.size if processes.size > 1 else None
        made_of = made_of.model_copy(
            update={"micro_batch": asked.micro_batch, "processes": several}
        )
        # The recipe first: it makes the folder a run, which is begun anew if the process dies here.
        save_recipe(run, recipe.with_absolute_paths())
        store(data, run)
        if keep_plan is not None:
            keep_plan(run)
        write_json(run.provenance_path, made_of.to_dict())

    return _Start(setup, data, template, asked.micro_batch, announce, write)


def _resumed(
    asked: Asked, checkpoint: Path, tokenizer: PreTrainedTokenizerBase, template: str
) -> _Start:
    recipe, run = asked.recipe, asked.run
    begun: Provenance = run.provenance()
    # Measured once per run: a busy machine must not change the answer.
    setup = _choose_setup(recipe, asked.processes)
    setup = replace(setup, dtype=getattr(torch, begun.dtype))
    state = load_state(checkpoint)

    def load() -> Prepared:
        if state.place is not None:
            return load_streamed(recipe, tokenizer, run, state.place, asked.on_event)
        return load_stored(recipe.data, tokenizer, run, asked.on_event, recipe.objective)

    data = prepared_once(load, run, asked.processes, streaming=recipe.data.streaming)
    return _Start(
        setup,
        data,
        _template_used(template, data),
        begun.micro_batch,
        announce=partial(note_changed_versions, begun, tokenizer, asked.on_event),
        write=lambda: None,  # it is all there
        state=state,
        checkpoint=checkpoint,
    )


def _choose_setup(recipe: Recipe, processes: Processes) -> Setup:
    """Rank 0's, which may have measured, on this process's own device."""
    return replace(processes.from_first(lambda: choose_setup(recipe)), device=pick_device())


def _template_used(template: str, data: Prepared) -> str:
    """``none`` for plain text: nothing is rendered, neither now nor at inference."""
    spoken = any(row.spoken for row in data.train)
    return template if spoken else "none"


def _batches(
    recipe: Recipe,
    start: _Start,
    following: Ahead[Window] | None,
    model: PreTrainedModel | PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    objective: Objective,
    processes: Processes,
    on_event: OnEvent,
) -> StepBatches | StreamBatches:
    train, data, stream = recipe.train, recipe.data, start.data.stream
    together = recipe.objective.together
    size, accumulated = train.per_device_train_batch_size, train.gradient_accumulation_steps
    ahead = start.setup.device.type == "cuda"
    if stream is None or following is None:
        return StepBatches(
            RowDataset(start.data.train, data.max_length, data.packing, together),
            size,
            accumulated,
            train.seed,
            objective.collate,
            ahead,
            processes.rank,
            processes.size,
        )

    def check(rows: Sequence[TokenRow], on_note: OnEvent) -> None:
        check_rows(rows, (), tokenizer, on_note)
        check_embedding(model, rows, len(tokenizer))

    return StreamBatches(
        stream.first,
        following,
        start.state.place or StreamPlace(),
        data.max_length,
        data.packing,
        together,
        size,
        accumulated,
        train.seed,
        train.max_steps,
        objective.collate,
        check,
        on_event,
        ahead,
        processes.rank,
        processes.size,
    )


def _sampled(rows: Sequence[TokenRow], recipe: Recipe) -> list[TokenRow]:
    """The validation rows of each evaluation during training; pairs stay whole."""
    together = recipe.objective.together
    groups = [rows[i : i + together] for i in range(0, len(rows), together)]
    chosen = sample(groups, recipe.train.eval_rows or len(groups), recipe.train.seed)
    return [row for group in chosen for row in group]


def _make_learner(
    recipe: Recipe,
    setup: Setup,
    model: PreTrainedModel | PeftModel,
    objective: Objective,
    max_steps: int,
    processes: Processes,
) -> Learner:
    train = recipe.train
    # What was drawn before the first step must not matter to it; dropout differs by process.
    set_seed(train.seed + processes.rank)
    if train.gradient_checkpointing:
        recompute_activations(model)
    adapted = recipe.method.name != "full"
    ratio = recipe.method.loraplus_lr_ratio if adapted else None
    optimizer = make_optimizer(model, train, setup.optim, ratio)
    if train.optimizer_in_backward:
        step_in_backward(optimizer)
    half = setup.dtype == torch.float16
    return Learner(
        model,
        objective,
        optimizer,
        make_scheduler(optimizer, train, max_steps),
        setup.device,
        setup.dtype,
        train.max_grad_norm,
        scaler=torch.amp.GradScaler(setup.device.type) if half else None,
        steps_in_backward=train.optimizer_in_backward,
        side=CudaSide() if train.activation_offload and setup.device.type == "cuda" else None,
        processes=processes,
    )


def _describe_data(data: Prepared, template: str, on_event: OnEvent) -> None:
    report = data.report
    for source in report.sources:
        how = "streamed" if source.rows is None else f"{source.rows:,} rows"
        on_event(Note(f"{source.file}: {how}, format {source.format}"))
    rows, tokens = report.rows, report.tokens.train
    if data.stream is not None:
        on_event(
            Note(
                f"data.streaming: the next rows are read, checked and shuffled in windows of up to {WINDOW:,} "
                "while the run trains, and none is kept. So nobody knows how many there are, and duplicates "
                "among them are not looked for (luthier data check does, and reads all)"
            )
        )
    on_event(
        Note(
            f"{rows.train:,} training rows{' so far' if data.stream is not None else ''}, {rows.validation:,} validation rows; "
            f"{tokens.supervised:,} of {tokens.total:,} training tokens are trainable; "
            f"the longest row has {tokens.longest} tokens; template {template}"
        )
    )
    replay = report.replay
    if replay is not None:
        short = "" if replay.added == replay.wanted else f", but {replay.wanted:,} were wanted"
        on_event(Note(f"{replay.added:,} of them are general examples (data.replay){short}"))
    if report.answers_apart:
        on_event(
            Note(
                f"the chat template writes earlier turns otherwise than the last, so the answers of "
                f"{report.answers_apart:,} conversations are rows of their own (data.history)"
            )
        )
    for may_be_content in (True, False):
        unused = [f for f in report.unused_fields or () if f.may_be_content == may_be_content]
        if unused:
            meaning = "; if they belong to the conversation, see docs/data.md" * may_be_content
            note = f"fields that are not used: {sentence(unused)}{meaning}"
            on_event(Note(note, warning=may_be_content))
    left_out = report.left_out
    for lost, meaning in (
        (len(left_out.bad), "cannot be used"),
        (len(left_out.too_long), "are longer than data.max_length"),
        (
            len(left_out.also_in_validation),
            "are in the validation file too, so they are skipped",
        ),
    ):
        if lost:
            on_event(Note(f"{lost} rows {meaning}: see data/data-report.json", warning=True))
