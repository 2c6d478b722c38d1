"""The decision: rules in order, each with its reason and source, until one decides."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from luthier.advise.answers import QUESTIONS, Answers, Question
from luthier.advise.method import Choice, choose_method
from luthier.recipe import MethodName

Outcome = Literal["few-shot", "rag", "hybrid", "fine-tune", "prepare"]

FLOOR, LEAST, GOOD = 500, 1_000, 10_000  # examples


@dataclass(frozen=True)
class Step:
    """A rule on the path.

    Attributes:
        answers: the answers that it depends on.
        settled: the path ends here.
        finding: what follows, and why.
    """

    rule: str
    answers: dict[str, object]
    settled: bool
    finding: str
    source: str


@dataclass(frozen=True)
class Decision:
    """The answer, and the rules that led to it; ``choice`` where a model is to be tuned."""

    outcome: Outcome
    path: tuple[Step, ...]
    choice: Choice | None = None

    @property
    def method(self) -> MethodName | None:
        return self.choice.method if self.choice else None

    @property
    def headline(self) -> str:
        """The outcome in a few words: ``fine-tune (qlora)``."""
        return f"{self.outcome} ({self.method})" if self.method else self.outcome


_Judgement = tuple[Outcome | None, str]  # None: the path goes on


@dataclass(frozen=True)
class _Rule:
    name: str
    asks: tuple[str, ...]
    judge: Callable[[Answers], _Judgement]
    source: str
    applies: Callable[[Answers], bool] = lambda _: True


def decide(answers: Answers) -> Decision | Question:
    """The decision that follows from ``answers`` alone, or the first question still to be answered.

    A pure function: equal answers give equal decisions, on every machine.
    """
    path: list[Step] = []
    for rule in _RULES:
        if not rule.applies(answers):
            continue
        for key in rule.asks:
            if getattr(answers, key) is None:
                return QUESTIONS[key]
        outcome, finding = rule.judge(answers)
        given = {key: getattr(answers, key) for key in rule.asks}
        path.append(Step(rule.name, given, outcome is not None, finding, rule.source))
        if outcome is not None:
            return Decision(outcome, tuple(path))
    for key in ("model", "billions", "gpu_memory", "priority"):
        if getattr(answers, key) is None and not (key == "billions" and answers.size):
            return QUESTIONS[key]
    choice = choose_method(answers)
    given = {"model": answers.model, "billions": answers.size}
    given |= {"gpu_memory": answers.gpu_memory, "priority": answers.priority}
    path.append(Step("method", given, True, choice.reason, choice.source))
    return Decision("hybrid" if answers.wants_documents else "fine-tune", tuple(path), choice)


def _metric(answers: Answers) -> _Judgement:
    if answers.metric:
        return None, "a metric can tell better answers from worse ones"
    return "prepare", "first write 50 to 100 test cases and choose a metric that scores them"


def _budget(answers: Answers) -> _Judgement:
    if answers.budget:
        return None, "there is time for data, training and evaluation"
    return "few-shot", "without that budget, prompting is the only option"


def _tasks(answers: Answers) -> _Judgement:
    if answers.tasks == "one":
        return None, "one task can be fine-tuned for"
    return "few-shot", (
        "use a large general model with a prompt per task; fine-tune for the most valuable task "
        "only, or train one adapter per task"
    )


def _few_shot(answers: Answers) -> _Judgement:
    match answers.few_shot:
        case "enough":
            return (
                "few-shot",
                "few-shot examples are good enough: there is nothing to train or to host",
            )
        case "untried":
            return (
                "few-shot",
                "try few-shot prompting first, and measure it: it is the baseline to beat",
            )
        case "too_dear":
            return (
                None,
                "the prompt shows that it is possible; a fine-tuned small model does it for less",
            )
        case _:
            return None, "few-shot examples are not good enough"


def _documents(answers: Answers) -> _Judgement:
    if answers.wants_learning:
        if answers.wants_documents:
            return None, "both style and knowledge: training for the one, documents for the other"
        return None, "training can teach a model how to answer"
    if not answers.wants_documents:
        return "rag", (
            "none of the goals needs training: use prompts, with documents where they help"
        )
    if "facts" in (answers.goals or ()):
        return "rag", (
            "for questions of fact, retrieval beats training, and training on new facts makes a "
            "model hallucinate others"
        )
    return "rag", "it needs access to documents: add them to the prompt"


def _changing(answers: Answers) -> _Judgement:
    if answers.knowledge == "stable":
        return None, "the knowledge that it needs does not change"
    if answers.wants_learning:
        return None, "keep changing knowledge in documents; train only how to answer"
    return "rag", "an index is updated in minutes, weights only by another training run"


def _examples(answers: Answers) -> _Judgement:
    count = answers.examples or 0
    back: Outcome = "rag" if answers.wants_documents else "few-shot"
    if count < FLOOR:
        return (
            back,
            f"{count:,} are fewer than {FLOOR}: they help more in the prompt than as training data",
        )
    if count < LEAST:
        if answers.reviewed:
            return (
                None,
                f"{count:,} are few, but all were reviewed: it can work, and must be measured",
            )
        return (
            back,
            f"{count:,} unreviewed ones are too few: collect {LEAST:,}, or review every one",
        )
    if count < GOOD:
        return None, f"{count:,} are enough for an adapter"
    return None, f"{count:,} are enough for a large adapter or full fine-tuning"


def _prompts(answers: Answers) -> _Judgement:
    if answers.prompts_exhausted:
        return None, "the prompt cannot be improved further"
    return "rag" if answers.wants_documents else "few-shot", (
        "improve the prompt first: it takes hours, and may be enough"
    )


_RULES = (
    _Rule("success metric", ("metric",), _metric, "OpenAI, evaluation best practices"),
    _Rule("time and budget", ("budget",), _budget, "common practice"),
    _Rule("one task", ("tasks",), _tasks, "Standley et al. 2020, which tasks to learn together"),
    _Rule("few-shot examples", ("few_shot",), _few_shot, "Brown et al. 2020 (GPT-3)"),
    _Rule(
        "changing knowledge",
        ("goals", "knowledge"),
        _changing,
        "Lewis et al. 2020 (RAG)",
        # Before the goals are known nothing says that the rule is idle, so it asks for them.
        lambda answers: answers.goals is None or answers.wants_documents,
    ),
    _Rule(
        "goals: knowledge or style",
        ("goals",),
        _documents,
        "Ovadia et al. 2024, fine-tuning or retrieval; Gekhman et al. 2024; Balaguer et al. 2024",
    ),
    _Rule(
        "enough examples",
        ("examples",),
        _examples,
        "Zhou et al. 2023 (LIMA: 1,000 curated examples)",
        lambda answers: answers.examples is None or not FLOOR <= answers.examples < LEAST,
    ),
    _Rule(
        "few but clean examples",
        ("examples", "reviewed"),
        _examples,
        "Zhou et al. 2023 (LIMA: quality before quantity)",
        lambda answers: answers.examples is not None and FLOOR <= answers.examples < LEAST,
    ),
    _Rule("prompts exhausted", ("prompts_exhausted",), _prompts, "OpenAI, fine-tuning guide"),
)
