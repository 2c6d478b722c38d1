"""The questions, the answers each accepts, and all answers as one validated object."""

import difflib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from luthier.errors import UserError

Goal = Literal[
    "knowledge", "facts", "style", "behaviour", "format", "reasoning", "cost", "privacy", "none"
]
DOCUMENTS = frozenset({"knowledge", "facts"})  # goals that documents serve
LEARNED = frozenset({"style", "behaviour", "format", "reasoning", "cost", "privacy"})


class Answers(BaseModel):
    """Answers to ``QUESTIONS``; None where a question is not answered yet."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())

    metric: bool | None = None
    budget: bool | None = None
    tasks: Literal["one", "several"] | None = None
    few_shot: Literal["enough", "too_dear", "not_enough", "untried"] | None = None
    goals: frozenset[Goal] | None = Field(None, min_length=1)
    knowledge: Literal["stable", "changing"] | None = None
    examples: int | None = Field(None, ge=0)
    reviewed: bool | None = None
    prompts_exhausted: bool | None = None
    model: str | None = None
    billions: float | None = Field(None, gt=0)
    gpu_memory: float | None = Field(None, ge=0)
    priority: Literal["accuracy", "balanced", "memory"] | None = None
    # What a query looks like: for the table, never for the decision.
    prompt_tokens: int | None = Field(None, ge=1)
    completion_tokens: int | None = Field(None, ge=1)
    context_tokens: int | None = Field(None, ge=0)
    queries: int | None = Field(None, ge=1)

    @property
    def wants_documents(self) -> bool:
        """Whether retrieved documents serve one of the goals."""
        return bool((self.goals or frozenset()) & DOCUMENTS)

    @property
    def wants_learning(self) -> bool:
        """Whether training can serve one of the goals."""
        return bool((self.goals or frozenset()) & LEARNED)

    @property
    def size(self) -> float | None:
        """Parameters of the model in billions: as answered, else as its name says."""
        return self.billions or size_in_name(self.model or "")


def size_in_name(model: str) -> float | None:
    """Billions of parameters by a model's name (``llama-3.1-8b``); None where it does not say."""
    found = re.findall(r"(?<![a-z0-9.])(?:(\d+)x)?(\d+(?:\.\d+)?)([bm])(?![a-z0-9])", model.lower())
    if not found:
        return None
    experts, number, unit = found[-1]
    return float(number) * int(experts or 1) / (1 if unit == "b" else 1000)


@dataclass(frozen=True)
class Question:
    """One screen: what is asked, why, and the answers to choose from (none: a number or text)."""

    key: str
    text: str
    why: str
    choices: dict[str, str] = field(default_factory=dict)
    many: bool = False


_YES_NO = {"yes": "", "no": ""}
QUESTIONS = {
    question.key: question
    for question in (
        Question(
            "metric",
            "Do you have a metric that tells good answers from bad ones, and held-out examples to "
            "compute it on?",
            "without one nobody can say whether fine-tuning helped",
            _YES_NO,
        ),
        Question(
            "budget",
            "Can you spend a few days of work, and a GPU or tens of dollars?",
            "data, training and evaluation take days, and again each time the task changes",
            _YES_NO,
        ),
        Question(
            "tasks",
            "One task, or several that have little to do with each other?",
            "unrelated tasks in one small model lower each other's quality",
            {"one": "one task, or closely related ones", "several": "several unrelated ones"},
        ),
        Question(
            "few_shot",
            "Are 2 to 10 few-shot examples in the prompt of a good model good enough?",
            "trying it takes an afternoon, fine-tuning takes days",
            {
                "enough": "yes",
                "too_dear": "yes, but too slow or costly at our volume, or our data must stay here",
                "not_enough": "no, tried and measured",
                "untried": "not tried yet",
            },
        ),
        Question(
            "goals",
            "What should get better?",
            "training teaches how to answer, documents supply what to answer",
            {
                "knowledge": "it should know our documents",
                "facts": "it should answer questions of fact",
                "style": "tone, voice",
                "behaviour": "what it does and refuses to do",
                "format": "a fixed output format",
                "reasoning": "a special skill: a query language, a domain's way of reasoning",
                "cost": "lower latency or cost than a large model",
                "privacy": "data must not leave our machines",
                "none": "none of these",
            },
            many=True,
        ),
        Question(
            "knowledge",
            "How often does the knowledge that it needs change?",
            "a model is only as recent as its training data",
            {"stable": "rarely: every few years", "changing": "often: every few months, or faster"},
        ),
        Question(
            "examples",
            "How many good examples (prompt and ideal answer) do you have, or can you get?",
            "below 500, prompting works better; 1,000 is the minimum, 10,000 is good",
        ),
        Question(
            "reviewed",
            "Has a person read and corrected every one of them?",
            "with 500 to 1,000 examples, fine-tuning works only if all of them are clean",
            _YES_NO,
        ),
        Question(
            "prompts_exhausted",
            "Have you improved the prompt, and measured it, until it got no better?",
            "a better prompt may be enough, and it is the baseline to beat in any case",
            _YES_NO,
        ),
        Question(
            "model",
            "Which model? A known name (luthier models list), a folder, or an id on the hub.",
            "fine-tune the smallest model that comes close with a prompt alone",
        ),
        Question(
            "billions",
            "How many billions of parameters does it have?",
            "its name does not say, and the memory needed depends on it",
        ),
        Question(
            "gpu_memory",
            "How much GPU memory do you have in total, in GB? 0: no GPU.",
            "it decides which methods fit",
        ),
        Question(
            "priority",
            "What matters most?",
            "it chooses between the methods that fit",
            {
                "accuracy": "the best accuracy, whatever it costs",
                "balanced": "a balance of quality, time and memory",
                "memory": "least memory",
            },
        ),
        Question(
            "prompt_tokens", "How many tokens does a typical prompt have?", "for cost and latency"
        ),
        Question(
            "completion_tokens",
            "How many tokens does a typical answer have?",
            "for cost and latency",
        ),
        Question(
            "context_tokens",
            "How many tokens of documents are added to a prompt (RAG)?",
            "for cost",
        ),
        Question("queries", "How many queries per month?", "for cost"),
    )
}


def parse_answers(given: Mapping[str, Any], origin: str = "answers") -> Answers:
    """Check answers from JSON, flags or a prompt.

    Raises:
        UserError: an unknown question, with the nearest known, or an answer that it does not take.
    """
    try:
        return Answers.model_validate(given)
    except ValidationError as error:
        lines = [_explain(dict(issue)) for issue in error.errors()]
        raise UserError(f"{origin}: " + "\n".join(dict.fromkeys(lines))) from None


def _explain(issue: dict[str, Any]) -> str:
    key = str(issue["loc"][0])
    if issue["type"] == "extra_forbidden":
        near = difflib.get_close_matches(key, QUESTIONS, n=1, cutoff=0.5)
        hint = f"did you mean '{near[0]}'?" if near else f"questions are {', '.join(QUESTIONS)}"
        return f"there is no question '{key}'; {hint}"
    choices = ", ".join(QUESTIONS[key].choices)
    message = str(issue["msg"])
    takes = f"it takes {choices}" if choices else message[0].lower() + message[1:]
    return f"'{key}' is {issue['input']!r}: {takes}"


assert set(QUESTIONS) == set(Answers.model_fields)
assert set(QUESTIONS["goals"].choices) == set(get_args(Goal))
