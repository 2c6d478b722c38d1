"""The two forms of an answer: chat and completion, in one piece or as a stream."""

import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from luthier.serve.engine import Piece, Token
from luthier.serve.job import Job
from luthier.serve.models import Speech


@dataclass
class Choices:
    """All pieces of one answer, put together."""

    text: str = ""
    thought: str = ""
    tokens: list[Token] = field(default_factory=list)
    finish: str | None = None

    def add(self, piece: Piece) -> None:
        self.text += piece.text
        self.thought += piece.thought
        self.tokens += piece.tokens
        self.finish = piece.finish
        if piece.length is not None:
            self.tokens = [token for token in self.tokens if token.at < piece.length]


class Reply(Protocol):
    """How one kind of request is answered."""

    def whole(self, choices: Sequence[Choices], job: Job) -> dict[str, Any]: ...

    def opening(self, number: int) -> list[dict[str, Any]]:
        """Chunks before the first piece of an answer."""
        ...

    def chunk(self, number: int, piece: Piece) -> dict[str, Any]: ...

    def usage_chunk(self, job: Job) -> dict[str, Any]: ...


def usage(job: Job) -> dict[str, int]:
    return {
        "prompt_tokens": job.prompt_tokens,
        "completion_tokens": job.generated_tokens,
        "total_tokens": job.prompt_tokens + job.generated_tokens,
    }


class _Reply:
    def __init__(self, prefix: str, model: str, speech: Speech, logprobs: bool) -> None:
        self._head = {
            "id": f"{prefix}-{uuid.uuid4().hex}",
            "created": int(time.time()),
            "model": model,
        }
        self._speech = speech
        self._wants_logprobs = logprobs

    def _bytes(self, token: int) -> bytes:
        return self._speech.vocabulary.bytes_of(token)

    def _text(self, token: int) -> str:
        """Of one token alone, which may be a part of a character."""
        return self._bytes(token).decode("utf-8", "replace")


class ChatReply(_Reply):
    """Of `/v1/chat/completions`."""

    def __init__(self, model: str, speech: Speech, logprobs: bool) -> None:
        super().__init__("chatcmpl", model, speech, logprobs)

    def whole(self, choices: Sequence[Choices], job: Job) -> dict[str, Any]:
        return {
            **self._head,
            "object": "chat.completion",
            "choices": [
                {
                    "index": number,
                    "message": {
                        "role": "assistant",
                        "content": choice.text,
                        "refusal": None,
                        # As other servers of models that think name it.
                        **({"reasoning_content": choice.thought} if choice.thought else {}),
                    },
                    "logprobs": self._logprobs(choice.tokens),
                    "finish_reason": choice.finish,
                }
                for number, choice in enumerate(choices)
            ],
            "usage": usage(job),
        }

    def opening(self, number: int) -> list[dict[str, Any]]:
        return [self._chunk(number, {"role": "assistant", "content": ""}, None, None)]

    def chunk(self, number: int, piece: Piece) -> dict[str, Any]:
        delta = {"reasoning_content": piece.thought} if piece.thought else {}
        delta |= {"content": piece.text} if piece.text else {}
        return self._chunk(number, delta, self._logprobs(piece.tokens), piece.finish)

    def usage_chunk(self, job: Job) -> dict[str, Any]:
        return {**self._head, "object": "chat.completion.chunk", "choices": [], "usage": usage(job)}

    def _chunk(self, number: int, delta: Any, logprobs: Any, finish: str | None) -> dict[str, Any]:
        choice = {"index": number, "delta": delta, "logprobs": logprobs, "finish_reason": finish}
        return {**self._head, "object": "chat.completion.chunk", "choices": [choice]}

    def _logprobs(self, tokens: Sequence[Token]) -> dict[str, Any] | None:
        if not self._wants_logprobs:
            return None
        content = []
        for token in tokens:
            chosen = token.chosen
            top = [self._entry(other, logprob) for other, logprob in chosen.top]
            content.append({**self._entry(chosen.token, chosen.logprob), "top_logprobs": top})
        return {"content": content, "refusal": None}

    def _entry(self, token: int, logprob: float | None) -> dict[str, Any]:
        return {
            "token": self._text(token),
            "logprob": logprob,
            "bytes": list(self._bytes(token)),
        }


class CompletionReply(_Reply):
    """Of `/v1/completions`."""

    def __init__(self, model: str, speech: Speech, logprobs: bool) -> None:
        super().__init__("cmpl", model, speech, logprobs)

    def whole(self, choices: Sequence[Choices], job: Job) -> dict[str, Any]:
        return {
            **self._head,
            "object": "text_completion",
            "choices": [
                self._choice(number, choice.text, choice.tokens, choice.finish)
                for number, choice in enumerate(choices)
            ],
            "usage": usage(job),
        }

    def opening(self, number: int) -> list[dict[str, Any]]:
        return []

    def chunk(self, number: int, piece: Piece) -> dict[str, Any]:
        choice = self._choice(number, piece.text, piece.tokens, piece.finish)
        return {**self._head, "object": "text_completion", "choices": [choice]}

    def usage_chunk(self, job: Job) -> dict[str, Any]:
        return {**self._head, "object": "text_completion", "choices": [], "usage": usage(job)}

    def _choice(
        self, number: int, text: str, tokens: Sequence[Token], finish: str | None
    ) -> dict[str, Any]:
        logprobs = None
        if self._wants_logprobs:
            logprobs = {
                "tokens": [self._text(token.chosen.token) for token in tokens],
                "token_logprobs": [token.chosen.logprob for token in tokens],
                "top_logprobs": [
                    {self._text(other): logprob for other, logprob in token.chosen.top}
                    for token in tokens
                ],
                "text_offset": [token.at for token in tokens],
            }
        return {"index": number, "text": text, "logprobs": logprobs, "finish_reason": finish}
