"""The functions of ``import luthier``; the command line calls this and nothing deeper.

The functions here put parts together; what needs no putting together is only named (``_PARTS``) and
comes from its own module when it is first used, so that importing this loads no library.
"""

from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from luthier import runtime
from luthier.errors import UserError
from luthier.events import OnEvent, ignore
from luthier.files import user_path
from luthier.recipe import MethodName, Recipe, as_recipe
from luthier.records import Comparison, DataCheck, Evaluation, Exported, Sweep, TokenizedData
from luthier.run import Run, claim_run, open_run

# Whoever imports this is about to use it, and libraries read their environment when they are imported.
runtime.prepare()

if TYPE_CHECKING:
    from luthier.advise.answers import QUESTIONS as QUESTIONS
    from luthier.advise.answers import Answers as Answers
    from luthier.advise.answers import Goal as Goal
    from luthier.advise.answers import Question as Question
    from luthier.advise.answers import parse_answers as parse_answers
    from luthier.advise.costs import USUAL as USUAL
    from luthier.advise.costs import Way as Way
    from luthier.advise.costs import compare as compare_costs
    from luthier.advise.costs import load_prices as load_prices
    from luthier.advise.decide import Decision as Decision
    from luthier.advise.decide import decide as decide
    from luthier.advise.from_data import answers_from_data as answers_from_data
    from luthier.advise.method import needed as memory_needed
    from luthier.advise.otherwise import Alternative as Alternative
    from luthier.advise.otherwise import alternatives as alternatives
    from luthier.advise.recipe import make_recipe as make_advised_recipe
    from luthier.compare.approaches import Question as ApproachQuestion
    from luthier.compare.decision import compare_approaches as compare_approaches
    from luthier.compare.folder import ComparisonFolder as ComparisonFolder
    from luthier.compare.methods import compare_methods as compare_methods
    from luthier.compare.page import write_approaches as write_approaches
    from luthier.compare.page import write_methods as write_methods
    from luthier.compare.prompts import APPROACHES as APPROACHES
    from luthier.compare.prompts import Approach as Approach
    from luthier.compare.side_by_side import RunsCompared as RunsCompared
    from luthier.compare.side_by_side import compare_runs as compare_runs
    from luthier.compare.tables import approaches_table as approaches_table
    from luthier.compare.tables import groups_table as groups_table
    from luthier.compare.tables import quality_table as quality_table
    from luthier.compare.tables import resources_table as resources_table
    from luthier.compare.tables import rules_table as rules_table
    from luthier.compare.tables import tests_table as tests_table
    from luthier.compare.variants import Variant as Variant
    from luthier.compare.variants import make_variants as make_variants
    from luthier.compare.variants import parse_vary as parse_vary
    from luthier.data.check.page import render_page as render_page
    from luthier.data.convert import convert_data as convert_data
    from luthier.data.fix import fix_data as fix_data
    from luthier.data.mix import mix_data as mix_data
    from luthier.data.mix import split_data as split_data
    from luthier.data.rows import read_as as read_as
    from luthier.data.show import encode_row as encode_row
    from luthier.data.template import Messages as Messages
    from luthier.evaluate.before_after import evaluate_run as evaluate_run
    from luthier.evaluate.gate import check_gate as check_gate
    from luthier.evaluate.report.drawing import marks as marks
    from luthier.evaluate.report.headline import Headline as Headline
    from luthier.evaluate.report.headline import headline as headline
    from luthier.evaluate.report.page import write_report as write_report
    from luthier.export.export import export as export_run
    from luthier.export.merge import Merged as Merged
    from luthier.export.merge import MergeOptions as MergeOptions
    from luthier.export.merge import merge as merge_runs
    from luthier.export.options import Combination as Combination
    from luthier.export.options import GgufType as GgufType
    from luthier.export.options import Onto as Onto
    from luthier.export.options import Shape as Shape
    from luthier.export.push import push as push
    from luthier.export.same import Difference as Difference
    from luthier.generate.answer import Model as Model
    from luthier.generate.answer import Sampling as Sampling
    from luthier.generate.answer import stream_answer as stream_answer
    from luthier.generate.batch import answer_file as answer_file
    from luthier.generate.batching import Pace as Pace
    from luthier.generate.sides import answer_sides as answer_sides
    from luthier.launch.engine import Engine as Engine
    from luthier.launch.job import Needs as Needs
    from luthier.launch.job import make_job as make_job
    from luthier.launch.on_ray import OnRay as OnRay
    from luthier.launch.skypilot import SkyPilot as SkyPilot
    from luthier.launch.slurm import Slurm as Slurm
    from luthier.launch.ssh import Ssh as Ssh
    from luthier.models.known import KNOWN_MODELS as KNOWN_MODELS
    from luthier.models.pull import cached as cached
    from luthier.models.pull import pull as pull
    from luthier.models.source import resolve as resolve
    from luthier.models.tuned import TunedModel as TunedModel
    from luthier.models.tuned import load_tuned as load_tuned
    from luthier.plan.calibrate import calibrate as calibrate
    from luthier.plan.capacity import Capacity as Capacity
    from luthier.plan.capacity import Change as Change
    from luthier.plan.catalogues import Accelerator as Accelerator
    from luthier.plan.catalogues import accelerators as accelerators
    from luthier.plan.job import Job as Job
    from luthier.plan.planning import Planned as Planned
    from luthier.plan.planning import find_target as find_target
    from luthier.plan.planning import job_without_data as job_without_data
    from luthier.plan.planning import jobs_of_recipe as jobs_of_recipe
    from luthier.plan.planning import plan_jobs as plan_jobs
    from luthier.plan.ranks import RankPlan as RankPlan
    from luthier.plan.ranks import Ranks as Ranks
    from luthier.plan.ranks import sizes as rank_sizes
    from luthier.plan.tables import ASSUMPTIONS as ASSUMPTIONS
    from luthier.plan.tables import classic_tables as classic_tables
    from luthier.records.plan import Plan as Plan
    from luthier.records.plan import Range as Range
    from luthier.retrieve.ask import Answer as Answer
    from luthier.retrieve.ask import ask as ask
    from luthier.retrieve.embed import Embedder as Embedder
    from luthier.retrieve.index import build_index as build_index
    from luthier.retrieve.index import changes as index_changes
    from luthier.retrieve.index import read_manifest as read_manifest
    from luthier.retrieve.models import load_answering as load_answering
    from luthier.retrieve.search import Index as Index
    from luthier.runs import train_run as train_run
    from luthier.runs import train_run_together as train_run_together
    from luthier.serve.limits import Limits as Limits
    from luthier.serve.llama_cpp import LlamaCppEngine as LlamaCppEngine
    from luthier.serve.llama_cpp import LlamaCppModels as LlamaCppModels
    from luthier.serve.models import Models as ServedModels
    from luthier.serve.server import check_address as check_address
    from luthier.serve.server import serve as run_server
    from luthier.serve.vllm import command as vllm_command
    from luthier.serve.vllm import hand_over as hand_over_to_vllm
    from luthier.serve.which import pick_engine as pick_engine
    from luthier.sockets import bind as bind
    from luthier.sweep.folder import SweepFolder as SweepFolder
    from luthier.sweep.sweep import ask as ask_sweep
    from luthier.sweep.sweep import run_sweep as run_sweep
    from luthier.sweep.tables import importance_text as importance_text
    from luthier.sweep.tables import trials_table as sweep_table
    from luthier.sweep.tables import verdict_text as verdict_text
    from luthier.train.detached import start_evaluation as start_evaluation
    from luthier.train.detached import start_training as start_training
    from luthier.train.detached import stop as stop_run
    from luthier.train.determinism import STEPS as DETERMINISM_STEPS
    from luthier.train.determinism import verify_determinism as verify_determinism

__all__ = [
    "APPROACHES",
    "ASSUMPTIONS",
    "DETERMINISM_STEPS",
    "KNOWN_MODELS",
    "QUESTIONS",
    "USUAL",
    "Accelerator",
    "Alternative",
    "Answer",
    "Answers",
    "Approach",
    "ApproachQuestion",
    "Capacity",
    "Change",
    "Combination",
    "ComparisonFolder",
    "Decision",
    "Difference",
    "Embedder",
    "Engine",
    "GgufType",
    "Goal",
    "Headline",
    "Index",
    "Job",
    "Limits",
    "LlamaCppEngine",
    "LlamaCppModels",
    "MergeOptions",
    "Merged",
    "Messages",
    "Model",
    "Needs",
    "OnRay",
    "Onto",
    "Pace",
    "Plan",
    "Planned",
    "Question",
    "Range",
    "RankPlan",
    "Ranks",
    "RunsCompared",
    "Sampling",
    "ServedModels",
    "Shape",
    "SkyPilot",
    "Slurm",
    "Ssh",
    "SweepFolder",
    "TunedModel",
    "Variant",
    "Way",
    "accelerators",
    "advise",
    "alternatives",
    "answer_file",
    "answer_sides",
    "answers_from_data",
    "approaches_table",
    "ask",
    "ask_sweep",
    "bind",
    "build_index",
    "cached",
    "calibrate",
    "check_address",
    "check_data",
    "check_gate",
    "classic_tables",
    "compare",
    "compare_approaches",
    "compare_costs",
    "compare_methods",
    "compare_runs",
    "convert_data",
    "decide",
    "encode_row",
    "evaluate",
    "evaluate_run",
    "export",
    "export_run",
    "find_run",
    "find_target",
    "fix_data",
    "generate",
    "groups_table",
    "hand_over_to_vllm",
    "headline",
    "importance_text",
    "index_changes",
    "job_without_data",
    "jobs_of_recipe",
    "load",
    "load_answering",
    "load_prices",
    "load_tuned",
    "make_advised_recipe",
    "make_job",
    "make_variants",
    "marks",
    "memory_needed",
    "merge",
    "merge_runs",
    "mix_data",
    "parse_answers",
    "parse_vary",
    "pick_engine",
    "plan",
    "plan_jobs",
    "pull",
    "push",
    "quality_table",
    "rank_sizes",
    "read_as",
    "read_manifest",
    "render_page",
    "resolve",
    "resources_table",
    "rules_table",
    "run_server",
    "run_sweep",
    "split_data",
    "start_evaluation",
    "start_training",
    "stop_run",
    "stream_answer",
    "sweep",
    "sweep_table",
    "tests_table",
    "tokenize_data",
    "train",
    "train_run",
    "train_run_together",
    "verdict_text",
    "verify_determinism",
    "vllm_command",
    "write_approaches",
    "write_methods",
    "write_report",
]

# Name here: module, name there. The same as above, for when the program runs; a test compares them.
_PARTS = {
    "RankPlan": ("luthier.plan.ranks", "RankPlan"),
    "Ranks": ("luthier.plan.ranks", "Ranks"),
    "rank_sizes": ("luthier.plan.ranks", "sizes"),
    "accelerators": ("luthier.plan.catalogues", "accelerators"),
    "marks": ("luthier.evaluate.report.drawing", "marks"),
    "Headline": ("luthier.evaluate.report.headline", "Headline"),
    "headline": ("luthier.evaluate.report.headline", "headline"),
    "memory_needed": ("luthier.advise.method", "needed"),
    "stop_run": ("luthier.train.detached", "stop"),
    "start_evaluation": ("luthier.train.detached", "start_evaluation"),
    "start_training": ("luthier.train.detached", "start_training"),
    "approaches_table": ("luthier.compare.tables", "approaches_table"),
    "groups_table": ("luthier.compare.tables", "groups_table"),
    "quality_table": ("luthier.compare.tables", "quality_table"),
    "resources_table": ("luthier.compare.tables", "resources_table"),
    "rules_table": ("luthier.compare.tables", "rules_table"),
    "tests_table": ("luthier.compare.tables", "tests_table"),
    "vllm_command": ("luthier.serve.vllm", "command"),
    "hand_over_to_vllm": ("luthier.serve.vllm", "hand_over"),
    "QUESTIONS": ("luthier.advise.answers", "QUESTIONS"),
    "Answers": ("luthier.advise.answers", "Answers"),
    "Goal": ("luthier.advise.answers", "Goal"),
    "Question": ("luthier.advise.answers", "Question"),
    "parse_answers": ("luthier.advise.answers", "parse_answers"),
    "USUAL": ("luthier.advise.costs", "USUAL"),
    "Way": ("luthier.advise.costs", "Way"),
    "compare_costs": ("luthier.advise.costs", "compare"),
    "load_prices": ("luthier.advise.costs", "load_prices"),
    "Decision": ("luthier.advise.decide", "Decision"),
    "decide": ("luthier.advise.decide", "decide"),
    "answers_from_data": ("luthier.advise.from_data", "answers_from_data"),
    "Alternative": ("luthier.advise.otherwise", "Alternative"),
    "alternatives": ("luthier.advise.otherwise", "alternatives"),
    "make_advised_recipe": ("luthier.advise.recipe", "make_recipe"),
    "ApproachQuestion": ("luthier.compare.approaches", "Question"),
    "compare_approaches": ("luthier.compare.decision", "compare_approaches"),
    "ComparisonFolder": ("luthier.compare.folder", "ComparisonFolder"),
    "RunsCompared": ("luthier.compare.side_by_side", "RunsCompared"),
    "compare_runs": ("luthier.compare.side_by_side", "compare_runs"),
    "SweepFolder": ("luthier.sweep.folder", "SweepFolder"),
    "compare_methods": ("luthier.compare.methods", "compare_methods"),
    "write_approaches": ("luthier.compare.page", "write_approaches"),
    "write_methods": ("luthier.compare.page", "write_methods"),
    "APPROACHES": ("luthier.compare.prompts", "APPROACHES"),
    "Approach": ("luthier.compare.prompts", "Approach"),
    "Variant": ("luthier.compare.variants", "Variant"),
    "make_variants": ("luthier.compare.variants", "make_variants"),
    "parse_vary": ("luthier.compare.variants", "parse_vary"),
    "render_page": ("luthier.data.check.page", "render_page"),
    "convert_data": ("luthier.data.convert", "convert_data"),
    "fix_data": ("luthier.data.fix", "fix_data"),
    "mix_data": ("luthier.data.mix", "mix_data"),
    "split_data": ("luthier.data.mix", "split_data"),
    "read_as": ("luthier.data.rows", "read_as"),
    "encode_row": ("luthier.data.show", "encode_row"),
    "Messages": ("luthier.data.template", "Messages"),
    "evaluate_run": ("luthier.evaluate.before_after", "evaluate_run"),
    "check_gate": ("luthier.evaluate.gate", "check_gate"),
    "write_report": ("luthier.evaluate.report.page", "write_report"),
    "export_run": ("luthier.export.export", "export"),
    "Merged": ("luthier.export.merge", "Merged"),
    "MergeOptions": ("luthier.export.merge", "MergeOptions"),
    "merge_runs": ("luthier.export.merge", "merge"),
    "Combination": ("luthier.export.options", "Combination"),
    "GgufType": ("luthier.export.options", "GgufType"),
    "Onto": ("luthier.export.options", "Onto"),
    "Shape": ("luthier.export.options", "Shape"),
    "push": ("luthier.export.push", "push"),
    "Difference": ("luthier.export.same", "Difference"),
    "Model": ("luthier.generate.answer", "Model"),
    "Pace": ("luthier.generate.batching", "Pace"),
    "Engine": ("luthier.launch.engine", "Engine"),
    "Needs": ("luthier.launch.job", "Needs"),
    "make_job": ("luthier.launch.job", "make_job"),
    "OnRay": ("luthier.launch.on_ray", "OnRay"),
    "SkyPilot": ("luthier.launch.skypilot", "SkyPilot"),
    "Slurm": ("luthier.launch.slurm", "Slurm"),
    "Ssh": ("luthier.launch.ssh", "Ssh"),
    "Sampling": ("luthier.generate.answer", "Sampling"),
    "stream_answer": ("luthier.generate.answer", "stream_answer"),
    "answer_file": ("luthier.generate.batch", "answer_file"),
    "answer_sides": ("luthier.generate.sides", "answer_sides"),
    "KNOWN_MODELS": ("luthier.models.known", "KNOWN_MODELS"),
    "cached": ("luthier.models.pull", "cached"),
    "pull": ("luthier.models.pull", "pull"),
    "resolve": ("luthier.models.source", "resolve"),
    "TunedModel": ("luthier.models.tuned", "TunedModel"),
    "load_tuned": ("luthier.models.tuned", "load_tuned"),
    "calibrate": ("luthier.plan.calibrate", "calibrate"),
    "Capacity": ("luthier.plan.capacity", "Capacity"),
    "Change": ("luthier.plan.capacity", "Change"),
    "Accelerator": ("luthier.plan.catalogues", "Accelerator"),
    "Plan": ("luthier.records.plan", "Plan"),
    "Range": ("luthier.records.plan", "Range"),
    "Job": ("luthier.plan.job", "Job"),
    "Planned": ("luthier.plan.planning", "Planned"),
    "find_target": ("luthier.plan.planning", "find_target"),
    "job_without_data": ("luthier.plan.planning", "job_without_data"),
    "jobs_of_recipe": ("luthier.plan.planning", "jobs_of_recipe"),
    "plan_jobs": ("luthier.plan.planning", "plan_jobs"),
    "ASSUMPTIONS": ("luthier.plan.tables", "ASSUMPTIONS"),
    "classic_tables": ("luthier.plan.tables", "classic_tables"),
    "Answer": ("luthier.retrieve.ask", "Answer"),
    "ask": ("luthier.retrieve.ask", "ask"),
    "Embedder": ("luthier.retrieve.embed", "Embedder"),
    "build_index": ("luthier.retrieve.index", "build_index"),
    "index_changes": ("luthier.retrieve.index", "changes"),
    "read_manifest": ("luthier.retrieve.index", "read_manifest"),
    "load_answering": ("luthier.retrieve.models", "load_answering"),
    "Index": ("luthier.retrieve.search", "Index"),
    "train_run": ("luthier.runs", "train_run"),
    "train_run_together": ("luthier.runs", "train_run_together"),
    "Limits": ("luthier.serve.limits", "Limits"),
    "LlamaCppEngine": ("luthier.serve.llama_cpp", "LlamaCppEngine"),
    "LlamaCppModels": ("luthier.serve.llama_cpp", "LlamaCppModels"),
    "pick_engine": ("luthier.serve.which", "pick_engine"),
    "ServedModels": ("luthier.serve.models", "Models"),
    "bind": ("luthier.sockets", "bind"),
    "check_address": ("luthier.serve.server", "check_address"),
    "run_server": ("luthier.serve.server", "serve"),
    "ask_sweep": ("luthier.sweep.sweep", "ask"),
    "run_sweep": ("luthier.sweep.sweep", "run_sweep"),
    "importance_text": ("luthier.sweep.tables", "importance_text"),
    "sweep_table": ("luthier.sweep.tables", "trials_table"),
    "verdict_text": ("luthier.sweep.tables", "verdict_text"),
    "DETERMINISM_STEPS": ("luthier.train.determinism", "STEPS"),
    "verify_determinism": ("luthier.train.determinism", "verify_determinism"),
}


def __getattr__(name: str) -> Any:
    if name not in _PARTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, there = _PARTS[name]
    return getattr(import_module(module), there)


RunLike = Run | Path | str
RecipeLike = Recipe | Path | str | Mapping[str, Any]


def train(
    recipe: RecipeLike,
    /,
    *,
    processes: int = 1,
    on_event: OnEvent = ignore,
    **changes: Mapping[str, Any],
) -> Run:
    """Train by a recipe, or resume an interrupted run; returns the run folder.

    ``luthier.train("lora.yaml", data={"train": "my.jsonl"}, train={"max_steps": 30})``

    Args:
        recipe: a recipe, the path of a recipe file, or a mapping of groups.
        processes: of this machine that train together, each with a GPU of its own where there are any.
        on_event: called with each thing that happens (``luthier.events``), ``print`` for instance.
        changes: keys and values by group, laid over the recipe.

    Raises:
        UserError: the recipe, the data or the machine does not allow it.
        Interrupted: Ctrl-C or SIGTERM; a checkpoint was written, and the same call resumes from it.
    """
    from luthier.runs import train_run, train_run_together

    full = as_recipe(recipe, **changes)
    stem = Path(recipe).stem if isinstance(recipe, str | Path) else "run"
    run = claim_run(full, stem)
    if processes > 1:
        train_run_together(full, run, processes, on_event)
    else:
        train_run(full, run, on_event)
    return run


def find_run(
    run: RunLike, base_model: str | None = None, trust: bool = False, on_event: OnEvent = ignore
) -> Run:
    """The run that a program names: as such, by its folder, or by a PEFT folder of another tool.

    Args:
        base_model: the base of a PEFT folder that does not say its own, or says a place that is gone.
        trust: trust what the run of someone else asks for, from now on (SECURITY.md).

    Raises:
        UserError: there is no run folder there.
    """
    if isinstance(run, Run):
        found = run
    else:
        path = user_path(str(run))
        if base_model is None and not (path / "adapter_config.json").is_file():
            found = open_run(path)
        else:
            from luthier.models.foreign import open_tuned

            found = open_tuned(path, base_model, on_event)
    if trust:
        found.trust()
    return found


def evaluate(
    run: RunLike,
    data: Path | str | None = None,
    *,
    metrics: Sequence[str] | None = None,
    settings: Mapping[str, Any] | None = None,
    adapter_scale: float = 1.0,
    probe: bool | None = None,
    tasks: Sequence[str] = (),
    tasks_limit: int | None = None,
    base_model: str | None = None,
    trust: bool = False,
    on_event: OnEvent = ignore,
) -> Evaluation:
    """Compare a finished run with the model it began from; keep evaluation.json and report.html.

    Args:
        data: rows to evaluate on instead of the run's validation rows.
        metrics: names instead of the recipe's.
        settings: values of the recipe's ``evaluate`` group to use instead:
            ``{"reward_model": "runs/reward"}``.
        adapter_scale: multiplies what the adapter adds.
        probe: whether to look for forgetting; None: as the recipe says.
        tasks: of lm-evaluation-harness, and ``tasks_limit`` rows of each.
        base_model, trust: see ``find_run``.

    Raises:
        UserError: the run has not finished, or a row, a metric or the scale is wrong.
        Untrusted: the run is of someone else, and asks for what needs consent.
    """
    from luthier.evaluate.before_after import evaluate_run
    from luthier.evaluate.report.page import write_report

    found = find_run(run, base_model, trust, on_event)
    evaluation = evaluate_run(
        found,
        None if data is None else str(data),
        on_event,
        metrics=metrics,
        settings=settings,
        adapter_scale=adapter_scale,
        probe=probe,
        tasks=tasks,
        tasks_limit=tasks_limit,
    )
    write_report(found)
    return evaluation


def compare(
    recipe: RecipeLike,
    /,
    *,
    methods: Sequence[str] = (),
    vary: Mapping[str, Sequence[Any]] | None = None,
    seeds: int = 1,
    data: str | None = None,
    metrics: Sequence[str] | None = None,
    price_per_hour: float | None = None,
    out: Path | str = "comparison",
    on_event: OnEvent = ignore,
    **changes: Mapping[str, Any],
) -> Comparison:
    """Train variants of a recipe, evaluate each on the same rows, and put them side by side.

    Args:
        methods: ``full``, ``lora``, ``qlora``.
        vary: values by key, ``{"method.lora_r": [4, 16]}``; all combinations run.
        seeds: runs of each variant.
        out: folder of the runs, comparison.json, .md and .html; a second call resumes there.

    Raises:
        UserError: a variant is wrong, or a run cannot begin.
        Interrupted: as ``train``.
    """
    from luthier.compare.folder import ComparisonFolder
    from luthier.compare.methods import compare_methods
    from luthier.compare.page import write_methods
    from luthier.compare.variants import make_variants

    folder = Path(out)
    grid = {key: list(values) for key, values in (vary or {}).items()}
    full = as_recipe(recipe, **changes)
    variants = make_variants(full, list(methods), grid, seeds, ComparisonFolder(folder).runs_path)
    comparison = compare_methods(
        variants,
        folder,
        data,
        metrics=list(metrics) if metrics else None,
        price_per_hour=price_per_hour,
        on_event=on_event,
    )
    write_methods(comparison, folder)
    return Comparison.model_validate(comparison)


def sweep(
    recipe: RecipeLike,
    /,
    *,
    space: Mapping[str, Any] | Sequence[str] = (),
    trials: int = 20,
    out: Path | str | None = None,
    budget_hours: float | None = None,
    budget_cost: float | None = None,
    price_per_hour: float | None = None,
    storage: str | None = None,
    jobs: int = 1,
    keep_all: bool = False,
    on_event: OnEvent = ignore,
    **changes: Mapping[str, Any],
) -> Sweep:
    """Search for better settings of a recipe, and judge the best against the recipe as it is.

    ``luthier.sweep("lora.yaml", space={"train.learning_rate": "1e-5..1e-3:log"}, trials=12)``

    Args:
        space: keys and what they may be: a list of values, or a range ``LOW..HIGH``, ``:log`` behind
            it; or texts and files as ``luthier sweep --space`` takes them. Default: by method.
        trials: runs, the recipe as it is among them.
        out: folder of the sweep, where a second call goes on; default: one in ``sweeps``.
        budget_hours, budget_cost: what all trials together may take, in hours or US dollars.
        price_per_hour: of this machine, US dollars.
        storage: URL of a database of Optuna's that several machines share.
        jobs: trials at a time on this machine.
        keep_all: keep the weights of all trials, not of the best and the default alone.

    Raises:
        UserError: a key or value is wrong, or the recipe cannot be trained as it is.
        Interrupted: as ``train``.
    """
    from luthier.sweep.sweep import ask, run_sweep

    asked = ask(
        as_recipe(recipe, **changes),
        Path(recipe).stem if isinstance(recipe, str | Path) else "sweep",
        space=space,
        trials=trials,
        out=None if out is None else Path(out),
        budget_hours=budget_hours,
        budget_cost=budget_cost,
        price_per_hour=price_per_hour,
        storage=storage,
        jobs=jobs,
        keep_all=keep_all,
        on_event=on_event,
    )
    return run_sweep(asked, on_event)


def plan(
    recipe: RecipeLike,
    /,
    *,
    methods: Sequence[MethodName] = (),
    gpu: str | None = None,
    memory: float | None = None,
    price: float | None = None,
    sweep: int = 1,
    api_price: float | None = None,
    capacity: bool = True,
    on_event: OnEvent = ignore,
    **changes: Mapping[str, Any],
) -> "Planned":
    """What a run will take: memory, hours, money, and what fits where.

    Args:
        methods: plan each of these instead of the recipe's own.
        gpu: a device of the catalogue, else this machine; ``memory`` GB of one that is not in it.
        price: of the device, US dollars per hour.
        sweep: so many runs, for the cost.
        api_price: of a model behind an API, US dollars per million tokens.
        capacity: whether to look for the largest micro-batch and row on each device, too; that
            takes most of the time of a plan.

    Raises:
        UserError: the recipe, its data or the device is wrong.
    """
    from luthier.plan.planning import find_target, jobs_of_recipe, plan_jobs

    target = find_target(gpu, memory, price=price)
    jobs = jobs_of_recipe(as_recipe(recipe, **changes), target, methods, on_event)
    return plan_jobs(jobs, target, sweep, api_price, on_event, capacity=capacity)


def advise(**answers: Any) -> "Decision | Question":
    """Whether to fine-tune at all, and by which method; or the question that has to be answered.

    ``luthier.advise(metric=True, budget=True, examples=1000)``

    Raises:
        UserError: an answer is wrong.
    """
    from luthier.advise.answers import parse_answers
    from luthier.advise.decide import decide

    return decide(parse_answers(answers))


def check_data(
    train: Sequence[str] | str,
    *,
    validation: Sequence[str] = (),
    evaluation: Sequence[str] = (),
    model: str | None = None,
    template: str = "auto",
    max_length: int = 1024,
    columns: Mapping[str, str] | None = None,
    template_kwargs: Mapping[str, Any] | None = None,
    on_event: OnEvent = ignore,
) -> DataCheck:
    """What is wrong with rows before they cost a run, with files and lines.

    Args:
        train: sources of training rows, as in ``data.train``.
        validation, evaluation: rows that must not be among them.
        model: counts lengths in its tokens and holds rows against its chat template.
        columns: what the rows call the fields of their format, as in ``data.columns``.
        template_kwargs: switches of the chat template, as in ``data.template_kwargs``.

    Raises:
        UserError: a source or the model cannot be read.
    """
    from luthier.data.check.report import check_data as check
    from luthier.data.check.scan import TokenizerChoice
    from luthier.models.source import resolve

    tokenizer = None
    if model is not None:
        folder = resolve(model, on_event=on_event).folder
        tokenizer = TokenizerChoice(
            folder, template, max_length, template_kwargs=template_kwargs or {}
        )
    sources = [train] if isinstance(train, str) else list(train)
    report = check(sources, validation, evaluation, tokenizer, on_event, columns)
    return DataCheck.model_validate(report)


def tokenize_data(
    recipe: RecipeLike,
    out: Path | str,
    *,
    shards: int | None = None,
    on_event: OnEvent = ignore,
    **changes: Mapping[str, Any],
) -> TokenizedData:
    """Tokenise the rows of a recipe once, for many runs and machines.

    A recipe whose ``data.train`` is the folder ``out`` trains as it would from the sources.

    Args:
        out: folder for the shards and their manifest.
        shards: of each side of the split; None is one for each 500 MiB of tokens.
        changes: as of ``train``.

    Raises:
        UserError: the recipe or its data is wrong, or ``out`` cannot be written.
    """
    from luthier.data.prepare import tokenize_into
    from luthier.train.setup import load_prepared_tokenizer, resolve_model

    chosen = as_recipe(recipe, **changes)
    folder = resolve_model(chosen, on_event).folder
    tokenizer = load_prepared_tokenizer(chosen, folder, on_event=on_event).tokenizer
    return tokenize_into(user_path(str(out)), chosen, tokenizer, shards, on_event)


def load(
    run: RunLike,
    *,
    adapter_scale: float = 1.0,
    base_model: str | None = None,
    trust: bool = False,
    on_event: OnEvent = ignore,
) -> "TunedModel":
    """The tuned model of a finished run, with its tokenizer and a way to its base.

    ``base_model``, ``trust``: see ``find_run``.

    Raises:
        UserError: the run has not finished, or a file of it is damaged.
        Untrusted: the run is of someone else, and asks for what needs consent.
    """
    from luthier.models.tuned import load_tuned

    return load_tuned(find_run(run, base_model, trust, on_event), adapter_scale, on_event)


def generate(
    model: "TunedModel | RunLike",
    prompts: Sequence[str],
    *,
    system: str | None = None,
    base: bool = False,
    batch_size: int = 64,
    trust: bool = False,
    on_event: OnEvent = ignore,
    **sampling: Any,
) -> list[str]:
    """The answers to ``prompts``, by the template that the run was trained with.

    A run that was trained on plain text continues each prompt instead.

    Args:
        model: a run, or what ``load`` returned (which need not be loaded for each call).
        base: ask the model before tuning.
        batch_size: answers that are made at once; fewer where memory does not hold them.
        trust: as ``find_run``.
        sampling: ``max_new_tokens``, ``temperature``, ``top_p``, ``top_k``, ``repetition_penalty``,
            ``seed``; greedy by default.

    Raises:
        UserError: a prompt is so long that no answer fits, or a sampling option does not exist.
    """
    from contextlib import nullcontext
    from dataclasses import fields

    from luthier.generate.answer import Sampling, answer_all
    from luthier.models.tuned import TunedModel

    known = [field.name for field in fields(Sampling)]
    unknown = sorted(set(sampling) - set(known))
    if unknown:
        raise UserError(
            f"there is no sampling option '{unknown[0]}'; the options are {', '.join(known)}"
        )
    tuned = model if isinstance(model, TunedModel) else load(model, trust=trust, on_event=on_event)
    opening = ({"role": "system", "content": system},) if system else ()
    asked = [
        (*opening, {"role": "user", "content": prompt}) if tuned.learned_turns else prompt
        for prompt in prompts
    ]
    with tuned.as_base() if base else nullcontext(tuned.tuned) as chosen:
        return answer_all(chosen, tuned.tokenizer, asked, Sampling(**sampling), batch_size)


def merge(
    runs: RunLike | Sequence[RunLike],
    out: Path | str,
    *,
    base_model: str | None = None,
    trust: bool = False,
    on_event: OnEvent = ignore,
    **options: Any,
) -> "Merged":
    """Fold adapters into their base: one folder that Transformers loads alone, and how it compares.

    Args:
        base_model, trust: see ``find_run``.
        options: ``dtype``, ``onto``, ``weights``, ``combination``, ``density``,
            ``max_shard_bytes``, ``check_rows``; see ``MergeOptions``.

    Raises:
        UserError: the runs do not go together, or ``out`` exists.
        CheckFailed: what was merged answers otherwise than base and adapter.
    """
    from luthier.export.merge import MergeOptions
    from luthier.export.merge import merge as merge_runs

    several = [runs] if isinstance(runs, Run | Path | str) else runs
    found = [find_run(run, base_model, trust, on_event) for run in several]
    return merge_runs(found, Path(out), MergeOptions(**options), on_event)


def export(
    run: RunLike,
    to: "Shape" = "gguf",
    out: Path | str | None = None,
    *,
    types: "Sequence[GgufType]" = ("q8_0",),
    check_rows: int = 64,
    base_model: str | None = None,
    trust: bool = False,
    on_event: OnEvent = ignore,
) -> Exported:
    """Make a run ready for llama.cpp, Ollama or Transformers, checked against the run's own answers.

    Args:
        out: folder to write; None: one inside the run.
        base_model, trust: see ``find_run``.

    Raises:
        UserError: the model cannot be written in that form, or the folder exists.
    """
    from luthier.export.export import export as export_run

    found = find_run(run, base_model, trust, on_event)
    place = run if isinstance(run, Run) else Run(user_path(str(run)))
    folder = place.export_path(to) if out is None else Path(out)
    done = export_run(found, to, folder, types, check_rows, on_event)
    return Exported.model_validate(done)
