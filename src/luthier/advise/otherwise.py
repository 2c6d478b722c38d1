"""What would change the advice: the decision computed again with one answer changed."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from luthier.advise.answers import DOCUMENTS, LEARNED, QUESTIONS, Answers
from luthier.advise.decide import FLOOR, LEAST, Decision, decide
from luthier.advise.method import needed


@dataclass(frozen=True)
class Alternative:
    """Another answer to one question, and what the decision would be.

    Where a further question would have to be answered first, ``outcome`` says which.
    """

    key: str
    instead: str
    outcome: str


def alternatives(answers: Answers, decision: Decision) -> list[Alternative]:
    """All changes of a single answer that would change the outcome, in the path's order.

    Where several numbers lead to the same outcome, the nearest is given.
    """
    found: list[Alternative] = []
    for key in dict.fromkeys(key for step in decision.path for key in step.answers):
        led_to = set()
        for instead, value in _others(key, answers):
            changed = decide(answers.model_copy(update={key: value}))
            if isinstance(changed, Decision):
                if changed.headline == decision.headline:
                    continue
                outcome = changed.headline
            else:
                outcome = f"depends: {changed.text}"
            if outcome not in led_to or key == "goals":
                found.append(Alternative(key, instead, outcome))
            led_to.add(outcome)
    return found


def _others(key: str, answers: Answers) -> Iterator[tuple[str, Any]]:
    """Other answers to ``key``, in words and as values."""
    given = getattr(answers, key)
    if key == "examples":
        yield from _examples(given)
    elif key == "goals":
        yield from _goals(given)
    elif key == "billions":
        yield from _sizes(answers)
    elif key == "gpu_memory":
        yield from _memories(answers)
    else:
        for name in QUESTIONS[key].choices:
            value = name == "yes" if isinstance(given, bool) else name
            if value != given:
                yield name, value


def _examples(given: int) -> Iterator[tuple[str, Any]]:
    if given >= FLOOR:
        yield f"fewer than {FLOOR}", FLOOR - 1
    if not FLOOR <= given < LEAST:
        yield f"{FLOOR} to {LEAST - 1}", LEAST - 1
    if given < LEAST:
        yield f"{LEAST:,} or more", LEAST


def _goals(given: frozenset[str]) -> Iterator[tuple[str, Any]]:
    documents, learned = given & DOCUMENTS, given & LEARNED
    if documents and learned:
        yield f"without {', '.join(sorted(documents))}", learned
        yield f"only {', '.join(sorted(documents))}", documents
    elif learned:
        yield "also knowledge", given | {"knowledge"}
        yield "knowledge instead", frozenset({"knowledge"})
    else:
        besides = "style, behaviour, format or another goal of training"
        yield f"also {besides}" if documents else besides, documents | {"style"}
        if not documents:
            yield "knowledge", frozenset({"knowledge"})


def _sizes(answers: Answers) -> Iterator[tuple[str, Any]]:
    """Models just small enough for each method, and just too large."""
    memory, size = answers.gpu_memory, answers.size
    if not memory or size is None:
        return
    edges = {memory / needed("full", 1), memory / needed("lora", 1)}
    edges.add((memory - needed("qlora", 0)) / (needed("qlora", 1) - needed("qlora", 0)))
    for edge in sorted(edges, key=lambda edge: abs(edge - size)):
        if edge > 0:
            if size > edge:
                yield f"{edge:.3g} or less", edge * 0.999
            else:
                yield f"over {edge:.3g}", edge * 1.001


def _memories(answers: Answers) -> Iterator[tuple[str, Any]]:
    """Memory just enough for each method, and just too little."""
    given, size = answers.gpu_memory, answers.size
    if given is None or size is None:
        return
    edges = {needed(method, size) for method in ("full", "lora", "qlora")}
    for edge in sorted(edges, key=lambda edge: abs(edge - given)):
        if given < edge:
            yield f"{edge:.3g} GB or more", edge * 1.001
        else:
            yield f"under {edge:.3g} GB", edge * 0.999
