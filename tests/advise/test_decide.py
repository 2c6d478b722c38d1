"""Every path of the decision, by a table that says in one line each what should come out."""

import itertools
from typing import Any

import pytest

from luthier.advise.answers import Answers, Question, parse_answers, size_in_name
from luthier.advise.decide import Decision, decide
from luthier.advise.method import needed
from luthier.advise.otherwise import alternatives
from luthier.errors import UserError

# Answers that lead all the way to a method; each test changes what it is about.
TUNES: dict[str, Any] = {
    "metric": True,
    "budget": True,
    "tasks": "one",
    "few_shot": "not_enough",
    "goals": frozenset({"format"}),
    "examples": 2000,
    "prompts_exhausted": True,
    "model": "llama-3.1-8b",
    "gpu_memory": 40.0,
    "priority": "balanced",
}

DOMAINS: dict[str, list[Any]] = {
    "metric": [None, False, True],
    "budget": [None, False, True],
    "tasks": [None, "one", "several"],
    "few_shot": [None, "enough", "too_dear", "not_enough", "untried"],
    "goals": [
        None,
        frozenset({"knowledge"}),
        frozenset({"facts"}),
        frozenset({"style"}),
        frozenset({"facts", "style"}),
        frozenset({"none"}),
    ],
    "knowledge": [None, "stable", "changing"],
    "examples": [None, 0, 499, 500, 999, 1000, 10_000],
    "reviewed": [None, False, True],
    "prompts_exhausted": [None, False, True],
    "gpu_memory": [None, 24.0],
}


def decided(**changes: Any) -> Decision:
    found = decide(Answers(**{**TUNES, **changes}))
    assert isinstance(found, Decision)
    return found


def expected(a: dict[str, Any]) -> str:
    """The issue's rules written the other way round: what each combination must come to."""
    documents = bool((a["goals"] or set()) & {"knowledge", "facts"})
    learned = bool((a["goals"] or set()) & {"style"})
    back = "rag" if documents else "few-shot"
    count = a["examples"]
    stages: list[tuple[str, str | None]] = [
        ("metric", "prepare" if a["metric"] is False else None),
        ("budget", "few-shot" if a["budget"] is False else None),
        ("tasks", "few-shot" if a["tasks"] == "several" else None),
        ("few_shot", "few-shot" if a["few_shot"] in ("enough", "untried") else None),
        ("goals", None),
    ]
    if documents:
        stages.append(
            ("knowledge", "rag" if a["knowledge"] == "changing" and not learned else None)
        )
    stages.append(("goals", None if learned else "rag"))
    stages.append(("examples", back if count is not None and count < 500 else None))
    if count is not None and 500 <= count < 1000:
        stages.append(("reviewed", None if a["reviewed"] else back))
    stages.append(("prompts_exhausted", None if a["prompts_exhausted"] else back))
    stages.append(("gpu_memory", "hybrid" if documents else "fine-tune"))
    for key, outcome in stages:
        if a[key] is None:
            return f"?{key}"
        if outcome is not None:
            return outcome
    raise AssertionError("no stage settled it")


def test_every_path() -> None:
    reached = set()
    for values in itertools.product(*DOMAINS.values()):
        given = dict(zip(DOMAINS, values, strict=True))
        found = decide(Answers(**given, model="llama-3.1-8b", priority="balanced"))
        name = f"?{found.key}" if isinstance(found, Question) else found.outcome
        assert name == expected(given), given
        reached.add(name)
    asked = {f"?{key}" for key in DOMAINS}
    assert reached == asked | {"few-shot", "rag", "hybrid", "fine-tune", "prepare"}


def test_the_path_ends_where_it_is_settled_and_says_why() -> None:
    found = decided(few_shot="enough")
    assert [s.settled for s in found.path] == [False, False, False, True]
    assert all(step.finding and step.source for step in found.path)
    assert decided() == decided()


@pytest.mark.parametrize(
    ("model", "memory", "priority", "method", "rents"),
    [
        ("smollm2-135m", 0, "balanced", "lora", False),
        ("smollm2-135m", 0, "accuracy", "lora", False),
        ("smollm2-135m", 0, "memory", "qlora", False),
        ("llama-3.2-1b", 24, "accuracy", "full", False),
        ("llama-3.2-1b", 24, "balanced", "lora", False),
        ("llama-2-7b", 24, "balanced", "qlora", False),
        ("llama-2-7b", 24, "accuracy", "qlora", False),
        ("llama-2-13b", 24, "balanced", "qlora", False),
        ("llama-2-7b", 80, "balanced", "lora", False),
        ("llama-2-7b", 80, "memory", "qlora", False),
        ("llama-2-70b", 24, "balanced", "qlora", True),
        ("llama-2-7b", 0, "balanced", "qlora", True),
    ],
)
def test_method(model: str, memory: float, priority: str, method: str, rents: bool) -> None:
    choice = decided(model=model, gpu_memory=memory, priority=priority).choice
    assert choice is not None
    assert (choice.method, choice.rent is not None) == (method, rents)


def test_a_model_whose_name_does_not_say_its_size_is_asked_about() -> None:
    found = decide(Answers(**{**TUNES, "model": "our-model"}))
    assert isinstance(found, Question)
    assert found.key == "billions"
    assert decided(model="our-model", billions=8).headline == "fine-tune (lora)"


@pytest.mark.parametrize(
    ("name", "billions"),
    [
        ("meta-llama/Llama-3.1-8B", 8),
        ("smollm2-135m", 0.135),
        ("mixtral-8x7b", 56),
        ("Qwen2.5-0.5B-Instruct", 0.5),
        ("gpt2-xl", None),
        ("my-8bit-model", None),
    ],
)
def test_size_in_name(name: str, billions: float | None) -> None:
    assert size_in_name(name) == billions


CASES = [
    {},
    {"few_shot": "enough"},
    {"goals": frozenset({"knowledge"}), "knowledge": "changing"},
    {"goals": frozenset({"facts", "style"}), "knowledge": "stable"},
    {"goals": frozenset({"none"})},
    {"examples": 100},
    {"examples": 700, "reviewed": False},
    {"model": "llama-2-70b"},
    {"gpu_memory": 0.0},
]


@pytest.mark.parametrize("changes", CASES)
def test_what_would_change_the_answer_does(changes: dict[str, Any]) -> None:
    """Each alternative leads elsewhere; every answer that settled it is among them."""
    answers = Answers(**{**TUNES, **changes})
    found = decide(answers)
    assert isinstance(found, Decision)
    others = alternatives(answers, found)
    assert all(other.outcome != found.headline for other in others)
    settling = [key for step in found.path if step.settled for key in step.answers]
    assert {other.key for other in others} & set(settling)
    edges = {f"{needed(m, 8):.3g} GB" for m in ("full", "lora", "qlora")}  # type: ignore[arg-type]
    for other in others:
        if other.key == "gpu_memory" and answers.size == 8:
            assert any(edge in other.instead for edge in edges)


def test_wrong_answers_are_explained() -> None:
    with pytest.raises(UserError, match="did you mean 'metric'"):
        parse_answers({"metrics": True})
    with pytest.raises(UserError, match="'tasks' is 'two': it takes one, several"):
        parse_answers({"tasks": "two"})
    with pytest.raises(UserError, match="'examples' is -1"):
        parse_answers({"examples": -1})
    with pytest.raises(UserError, match="'goals'"):
        parse_answers({"goals": []})
    assert parse_answers({"metric": "yes", "examples": "12"}) == Answers(metric=True, examples=12)
