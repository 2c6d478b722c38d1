"""A larger model as the judge of answers, through any endpoint that speaks OpenAI's protocol."""

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from luthier.data.conversation import Conversation, flatten
from luthier.errors import UserError
from luthier.evaluate.store import Store, key_of
from luthier.extras import need
from luthier.recipe import EvaluateGroup

if TYPE_CHECKING:
    from openai import OpenAI

_GRADE = re.compile(r"\[\[\s*(\d+(?:\.\d+)?)\s*\]\]")
_VERDICT = re.compile(r"\[\[\s*([ABC])\s*\]\]")
_VERDICTS = {"A": 1.0, "B": 0.0, "C": 0.5}
_ATTEMPTS = 2
_TIMEOUT = 120.0  # seconds per request
WORKERS = 8  # requests at once

# Grading of single answers against a reference (Zheng et al. 2023, figures 6 and 8). Nothing is
# compared side by side, so there is no position to prefer.
_INSTRUCTIONS = """\
Please act as an impartial judge and evaluate the quality of the answer given by an AI assistant to \
the user's request below. Consider its correctness, helpfulness, relevance and level of detail. You \
are given a reference answer; the assistant's may be right and differ from it. Do not let the length \
of the answer influence you. Begin with a short explanation, then rate the answer on a scale of 1 to \
10 strictly in this format: "[[rating]]", for example "Rating: [[5]]".

[Request]
{request}

[Reference answer]
{reference}

[The assistant's answer]
{answer}
[End of the assistant's answer]"""


# Comparison of two answers without a reference (Zheng et al. 2023, figure 5), to be asked in both
# orders, since judges prefer a place.
_COMPARISON = """\
Please act as an impartial judge and evaluate the quality of the answers that two AI assistants gave to \
the user's request below. Choose the assistant that follows the instructions and answers the request \
better. Consider factors such as helpfulness, relevance, accuracy, depth, creativity and level of detail. \
Begin with a short comparison. Avoid any position bias: the order of the answers must not influence you, \
nor their length, nor the names of the assistants. Then give your verdict strictly in this format: \
"[[A]]" if assistant A is better, "[[B]]" if assistant B is better, and "[[C]]" for a tie.

[Request]
{request}

[Assistant A's answer]
{first}
[End of assistant A's answer]

[Assistant B's answer]
{second}
[End of assistant B's answer]"""


class Judge:
    """Grades answers and compares them; what it said once is kept.

    The key comes from the environment alone and is never written down.
    """

    def __init__(self, settings: EvaluateGroup, kept_in: Path | None) -> None:
        """Raises UserError where the client library is not installed."""
        self.settings = settings
        self.store = Store(kept_in) if kept_in is not None else None
        self.client = _client(settings)

    def __call__(self, answer: str, row: Conversation) -> float:
        """The grade of ``answer``, 1 to 10 given as 0 to 1.

        Raises:
            UserError: the endpoint does not answer, or its model writes no grade.
        """
        prompt = _INSTRUCTIONS.format(request=_request(row), reference=row.reference, answer=answer)
        return self._asked(prompt, _GRADE, "grade from 1 to 10 as [[n]]", row, _score)

    def first_is_better(self, first: str, second: str, row: Conversation) -> float:
        """1 where ``first`` is the better answer, 0 where ``second`` is, 0.5 for a tie; in this order.

        Raises:
            UserError: the endpoint does not answer, or its model writes no verdict.
        """
        prompt = _COMPARISON.format(request=_request(row), first=first, second=second)
        return self._asked(prompt, _VERDICT, "verdict as [[A]], [[B]] or [[C]]", row, _VERDICTS.get)

    def _asked(
        self,
        prompt: str,
        pattern: re.Pattern[str],
        wanted: str,
        row: Conversation,
        meaning: Callable[[str], float | None],
    ) -> float:
        """The ``meaning`` of the last match of ``pattern`` in what the judge says."""
        key = key_of(self.settings.judge_model, self.settings.judge_url, prompt)
        if self.store is not None and key in self.store:
            return float(self.store[key]["score"])
        said = ""
        for _ in range(_ATTEMPTS):
            said = self._say(prompt)
            found = pattern.findall(said)
            score = meaning(found[-1]) if found else None
            if score is not None:
                if self.store is not None:
                    self.store.add({key: {"row": str(row.origin), "score": score, "said": said}})
                return score
        raise UserError(f"the judge {self.settings.judge_model} gave no {wanted}: {said[:200]!r}")

    def _say(self, prompt: str) -> str:
        from openai import OpenAIError

        model = self.settings.judge_model or ""
        try:
            reply = self.client.chat.completions.create(
                model=model, messages=[{"role": "user", "content": prompt}], temperature=0
            )
        except OpenAIError as error:
            raise UserError(
                f"the judge {model} at {self.settings.judge_url} did not answer: {error}; its "
                f"key is read from the environment variable {self.settings.judge_key_env}"
            ) from error
        return (reply.choices[0].message.content if reply.choices else None) or ""


def _request(row: Conversation) -> str:
    return "\n\n".join(f"{m['role']}: {m['content']}" for m in flatten(row.prompt))


def _score(grade: str) -> float | None:
    return (float(grade) - 1) / 9 if 1 <= float(grade) <= 10 else None


def _client(settings: EvaluateGroup) -> "OpenAI":
    need("openai", extra="judge", what="a judge")
    from openai import OpenAI

    # Servers on one's own machine ask for no key, but the client wants one.
    key = os.environ.get(settings.judge_key_env) or "none"
    return OpenAI(api_key=key, base_url=settings.judge_url, timeout=_TIMEOUT, max_retries=2)
