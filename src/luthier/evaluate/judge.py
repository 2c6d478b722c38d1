"""A larger model as the judge of answers, through any endpoint that speaks OpenAI's protocol."""

import os
import re
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
_ATTEMPTS = 2
_TIMEOUT = 120.0  # seconds per request

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


class Judge:
    """Grades an answer 1 to 10 and gives it as 0 to 1; a grade once given is kept.

    The key comes from the environment alone and is never written down.
    """

    def __init__(self, settings: EvaluateGroup, kept_in: Path | None) -> None:
        """Raises UserError where the client library is not installed."""
        self.settings = settings
        self.store = Store(kept_in) if kept_in is not None else None
        self.client = _client(settings)

    def __call__(self, answer: str, row: Conversation) -> float:
        """The grade of ``answer``.

        Raises:
            UserError: the endpoint does not answer, or its model writes no grade.
        """
        request = "\n\n".join(f"{m['role']}: {m['content']}" for m in flatten(row.prompt))
        prompt = _INSTRUCTIONS.format(request=request, reference=row.reference, answer=answer)
        key = key_of(self.settings.judge_model, self.settings.judge_url, prompt)
        if self.store is not None and key in self.store:
            return float(self.store[key]["score"])
        said = self._grade(prompt)
        score = (float(_GRADE.findall(said)[-1]) - 1) / 9
        if self.store is not None:
            self.store.add({key: {"row": str(row.origin), "score": score, "said": said}})
        return score

    def _grade(self, prompt: str) -> str:
        from openai import OpenAIError

        model = self.settings.judge_model or ""
        said = ""
        for _ in range(_ATTEMPTS):
            try:
                reply = self.client.chat.completions.create(
                    model=model, messages=[{"role": "user", "content": prompt}], temperature=0
                )
            except OpenAIError as error:
                raise UserError(
                    f"the judge {model} at {self.settings.judge_url} did not answer: {error}; its "
                    f"key is read from the environment variable {self.settings.judge_key_env}"
                ) from error
            said = (reply.choices[0].message.content if reply.choices else None) or ""
            found = _GRADE.findall(said)
            if found and 1 <= float(found[-1]) <= 10:
                return said
        raise UserError(f"the judge {model} gave no grade from 1 to 10 as [[n]]: {said[:200]!r}")


def _client(settings: EvaluateGroup) -> "OpenAI":
    need("openai", extra="judge", what="the metric judge")
    from openai import OpenAI

    # Servers on one's own machine ask for no key, but the client wants one.
    key = os.environ.get(settings.judge_key_env) or "none"
    return OpenAI(api_key=key, base_url=settings.judge_url, timeout=_TIMEOUT, max_retries=2)
