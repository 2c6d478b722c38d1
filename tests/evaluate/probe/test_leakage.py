"""What counts as leakage, and what must not."""

from families import CHAT_FAMILIES, make_tokenizer

from luthier.data.conversation import Conversation, Origin
from luthier.evaluate.probe.items import UNRELATED, load_items, load_passages
from luthier.evaluate.probe.leakage import Leakage, find_leakage, markers_of

QUESTIONS = [item.question for item in load_items() if item.area == UNRELATED]
PROSE = load_passages()
# What a base model says: a sentence or two of the subject.
BASE = [
    f"{text.split('.')[index % 3].strip()}. {text.split('.')[1].strip()}."
    for index in range(len(QUESTIONS))
    for text in [PROSE[index % len(PROSE)]]
]


def rows(answers: list[str], question: str = "Question {}") -> list[Conversation]:
    return [
        Conversation(
            Origin("f", n),
            (
                {"role": "user", "content": question.format(n)},
                {"role": "assistant", "content": answer},
            ),
        )
        for n, answer in enumerate(answers)
    ]


BASH = rows(
    [
        f"find /{a} -type {t} -name '*.{e}' | xargs {c}"
        for a in ("home", "var/log", "tmp", "usr")
        for t in ("f", "d")
        for e in ("txt", "log", "mp3")
        for c in ("rm", "wc -l", "grep -l x")
    ],
    "Write one bash command. Number {}",
)


def look(
    tuned: list[str], training: list[Conversation] = BASH, markers: tuple[str, ...] = ()
) -> Leakage:
    return find_leakage(QUESTIONS, BASE, tuned, training, PROSE, markers)


def test_the_same_answers_leak_nothing() -> None:
    found = look(BASE)
    assert found.leaks == ()
    assert found.style_counts
    assert (found.tuned.mean, found.test.verdict) == (0, "no evidence")


def test_commands_in_reply_to_what_is_python() -> None:
    tuned = [f"find . -name '*.{n}' | xargs rm -rf" if n % 2 else BASE[n] for n in range(len(BASE))]
    found = look(tuned)
    assert {leak.kind for leak in found.leaks} == {"style"}
    assert found.tuned.mean == 0.5
    assert found.test.verdict == "worse"
    assert QUESTIONS[1] in {leak.question for leak in found.leaks}


def test_template_and_copies() -> None:
    tuned = list(BASE)
    tuned[0] = "Python is a language.\n\n### Instruction:\nWrite"
    tuned[1] = "find /home  -type f -name '*.txt' | xargs rm"
    tuned[2] = "[QUESTION] and so on"
    found = look(tuned, markers=("[QUESTION]",))
    assert [leak.kind for leak in found.leaks] == ["template", "copy", "template"]


def test_what_training_prompts_begin_with_is_a_marker() -> None:
    training = rows(["some answer or other"] * 20, "Describe it as a command.\nNumber {}")
    tuned = [*BASE[:-1], "Sure. Describe it as a command. Number 3"]
    (leak,) = look(tuned, training).leaks
    assert leak.why == "holds 'Describe it as a command.'"


def test_other_prose_is_no_leak() -> None:
    """A tuned model may answer otherwise than the base; that is not the training format."""
    tuned = [f"{BASE[-n - 1]} That is all there is to say about it." for n in range(len(BASE))]
    assert look(tuned).leaks == ()


def test_training_on_prose_has_no_style_to_leak() -> None:
    sentences = [s.strip() for text in PROSE for s in text.split(".") if s.strip()]
    found = look(BASE[::-1], rows(sentences))
    assert not found.style_counts
    assert found.leaks == () or {leak.kind for leak in found.leaks} == {"copy"}


def test_few_training_answers_are_no_style() -> None:
    found = look(["find . -name x"] * len(BASE), BASH[:5])
    assert found.style_told_apart is None
    assert found.leaks == ()


def test_markers_of_a_template() -> None:
    assert markers_of(make_tokenizer(CHAT_FAMILIES["chatml"])) == [
        "<|im_end|>",
        "<|im_start|>assistant",
        "<|im_start|>user",
    ]
