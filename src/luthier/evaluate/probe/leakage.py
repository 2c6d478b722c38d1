"""Format leakage: the training template, or the task's style, in answers to unrelated questions.

An answer leaks for one of three reasons, looked for in this order:

- *template*: it holds a marker of a known prompt format, of the run's own template, or the sentence
  that training prompts begin with;
- *copy*: it is, word for word, an answer of the training data;
- *style*: it is nearer to the training answers than to general prose, and the base's answer to the
  same question is not. Nearness is the mean log-likelihood ratio of character trigrams, each side
  with add-one smoothing (a naive Bayes classifier over n-grams, Cavnar and Trenkle 1994's features).
  It counts only where that classifier tells held-out training answers from held-out prose at least
  nine times of ten on both sides: training answers that are prose have no style to leak.
"""

import math
from collections import Counter
from collections.abc import Sequence
from typing import Literal

from transformers import PreTrainedTokenizerBase

from luthier.data.conversation import Conversation
from luthier.data.template import TemplateRejects, render
from luthier.evaluate.statistics import mean_interval, paired_test
from luthier.records.evaluation import Leak, Leakage

KNOWN_MARKERS = (
    *("### Instruction", "### Response", "### Input", "### Human", "### Assistant"),
    *("Below is an instruction that describes a task", "<|im_start|>", "<|im_end|>", "[INST]"),
    *("[/INST]", "<<SYS>>", "<|start_header_id|>", "<|eot_id|>", "<start_of_turn>"),
    *("<end_of_turn>", "<|user|>", "<|assistant|>", "<|system|>", "<|endoftext|>"),
)

Found = tuple[Literal["template", "copy", "style"], str]  # the kind of a leak, and why

_SENTINELS = ("\u2063a\u2063", "\u2063b\u2063")
_SHORTEST_MARKER = 6  # characters; a shorter piece of a template may be a word of an answer
_SHORTEST_COPY = 12
_SHARED_OPENING = 0.5  # of the training prompts
_TELLS_APART = 0.9
_LEAST_ANSWERS = 10
_MOST_ANSWERS = 400


def find_leakage(
    questions: Sequence[str],
    base: Sequence[str],
    tuned: Sequence[str],
    training: Sequence[Conversation],
    prose: Sequence[str],
    template_markers: Sequence[str],
) -> Leakage:
    """Look for leaks in the answers of both sides.

    Args:
        questions: unrelated to the task.
        training: rows the run was trained on.
        prose: general texts.
        template_markers: of the run's own template, see ``markers_of``.
    """
    markers = [*dict.fromkeys([*KNOWN_MARKERS, *template_markers, *_shared_openings(training)])]
    # A question may itself speak of a marker; then it says nothing.
    completions = [row.reference for row in training if row.reference.strip()]
    copies = {_plain(t): t for t in completions if len(_plain(t)) >= _SHORTEST_COPY}
    style = _Style(completions[:: 1 + len(completions) // _MOST_ANSWERS], [*prose, *base])
    before: list[float] = []
    after: list[float] = []
    leaks = []
    for question, old, new in zip(questions, base, tuned, strict=True):
        marked = [m for m in markers if m not in question]
        before.append(float(_why(old, marked, copies) is not None))
        found = _why(new, marked, copies)
        if found is None and style.counts and style.nearer_training(new, old):
            found = "style", "reads like the training answers, and the base's answer does not"
        after.append(float(found is not None))
        if found is not None:
            kind, why = found
            leaks.append(Leak(question=question, base=old, tuned=new, kind=kind, why=why))
    return Leakage(
        base=mean_interval(before),
        tuned=mean_interval(after),
        test=paired_test(before, after, higher_is_better=False),
        style_told_apart=style.told_apart,
        style_counts=style.counts,
        leaks=tuple(leaks),
    )


def markers_of(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """The texts that the tokenizer's chat template writes around questions and answers."""
    question, answer = _SENTINELS
    turns = ({"role": "user", "content": question}, {"role": "assistant", "content": answer})
    if not tokenizer.chat_template:
        return []
    try:
        text = render(tokenizer, turns, add_generation_prompt=False)
    except TemplateRejects:
        return []
    for sentinel in _SENTINELS:
        text = text.replace(sentinel, "\n")
    pieces = {line.strip() for line in text.splitlines()}
    return sorted(piece for piece in pieces if len(piece) >= _SHORTEST_MARKER)


def _shared_openings(training: Sequence[Conversation]) -> list[str]:
    """The first sentence of the prompts, where most rows have the same."""
    openings = Counter(
        str(row.prompt[-1]["content"]).strip().partition("\n")[0] for row in training if row.prompt
    )
    if not openings or len(training) < _LEAST_ANSWERS:
        return []
    opening, count = openings.most_common(1)[0]
    common = count >= _SHARED_OPENING * len(training)
    return [opening] if common and len(opening) >= 2 * _SHORTEST_MARKER else []


def _why(answer: str, markers: Sequence[str], copies: dict[str, str]) -> Found | None:
    for marker in markers:
        if marker.lower() in answer.lower():
            return "template", f"holds {marker!r}"
    if _plain(answer) in copies:
        return "copy", "is an answer of the training data, word for word"
    return None


def _plain(text: str) -> str:
    return " ".join(text.split())


class _Style:
    """Tells training answers from general prose by their character trigrams."""

    def __init__(self, completions: Sequence[str], prose: Sequence[str]) -> None:
        ours, theirs = [t for t in completions if t.strip()], [t for t in prose if t.strip()]
        self.told_apart: float | None = None
        if min(len(ours), len(theirs)) >= _LEAST_ANSWERS:
            # Every other text teaches, the rest test, then the other way about.
            halves = [(_Ratio(ours[i::2], theirs[i::2]), 1 - i) for i in (0, 1)]
            found = [ratio(t) > 0 for ratio, i in halves for t in ours[i::2]]
            kept = [ratio(t) <= 0 for ratio, i in halves for t in theirs[i::2]]
            self.told_apart = min(_share(found), _share(kept))
        self.counts = self.told_apart is not None and self.told_apart >= _TELLS_APART
        self._completions, self._prose = ours, theirs

    def nearer_training(self, answer: str, base_answer: str) -> bool:
        """Whether ``answer`` is nearer to training, and ``base_answer`` is not."""
        # What the base said to this very question would vouch for an equal answer.
        ratio = _Ratio(self._completions, [t for t in self._prose if t != base_answer])
        return bool(answer.strip()) and ratio(answer) > 0 >= ratio(base_answer)


class _Ratio:
    def __init__(self, ours: Sequence[str], theirs: Sequence[str]) -> None:
        self.counts = [
            Counter(t for text in side for t in _trigrams(text)) for side in (ours, theirs)
        ]
        self.kinds = len(self.counts[0] | self.counts[1]) + 1
        self.totals = [counts.total() for counts in self.counts]

    def __call__(self, text: str) -> float:
        """Mean over trigrams of log P(t | ours) - log P(t | theirs)."""
        pieces = _trigrams(text)
        if not pieces:
            return 0.0
        ours, theirs = (
            sum(math.log((counts[piece] + 1) / (total + self.kinds)) for piece in pieces)
            for counts, total in zip(self.counts, self.totals, strict=True)
        )
        return (ours - theirs) / len(pieces)


def _trigrams(text: str) -> list[str]:
    padded = f"^{_plain(text).lower()}$"
    return [padded[i : i + 3] for i in range(len(padded) - 2)]


def _share(flags: Sequence[bool]) -> float:
    return sum(flags) / len(flags)
