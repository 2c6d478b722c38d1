"""A Modelfile for Ollama: the chat template in Go's language, where to stop, how to sample.

The template is not looked up by the model's name. It is read off what the trained template renders,
then compared with it on conversations; one that cannot be written this way is refused, since Ollama
would silently answer with some other template.
"""

import os
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from luthier.data.conversation import Message
from luthier.data.spans import stop_token_ids
from luthier.data.template import TemplateRejects, render
from luthier.errors import UserError

_MARKS = {role: f"\u2063{role}\u2063" for role in ("system", "user", "assistant")}


@dataclass(frozen=True)
class Turns:
    """The text around the turns of a conversation.

    Attributes:
        head: before the first turn where there is no system turn (a default system prompt).
        around: role → the text before and after its content.
        first: the same for a turn that opens the conversation, where that is another.
        prompt: what asks for an answer after the last turn.
    """

    head: str
    around: dict[str, tuple[str, str]]
    first: dict[str, tuple[str, str]]
    prompt: str

    def turn(self, role: str, index: int) -> tuple[str, str]:
        """The text before and after the content of turn number ``index``."""
        own = self.first if index == 0 and role in self.first else self.around
        return own[role]

    def text(self, messages: list[Message]) -> str:
        """The text that the Go template makes of ``messages``."""
        has_system = any(m["role"] == "system" for m in messages)
        parts = [] if has_system else [self.head]
        for index, message in enumerate(messages):
            before, after = self.turn(message["role"], index)
            parts += [before, message["content"], after]
        return "".join([*parts, self.prompt])


def read_turns(tokenizer: PreTrainedTokenizerBase) -> Turns:
    """Take the trained template apart.

    The token that begins every text is omitted where the tokenizer adds it anyway.

    Raises:
        UserError: what it renders is not made of turns one after another.
    """
    has_system = _renders(tokenizer, ["system", "user"])
    exchange = ["user", "assistant", "user"]
    start, after_user, after_answer, _ = _split(_render(tokenizer, exchange), exchange)
    asked = _split(_render(tokenizer, ["user"]), ["user"])[1]
    # Where one turn ends and the next begins shows where nothing follows.
    user_alone = _split(_render(tokenizer, ["user"], ask=False), ["user"])[1]
    answer_alone = _split(_render(tokenizer, exchange[:2], ask=False), exchange[:2])[2]
    user_end = _common_start(tokenizer, after_user, asked, user_alone)
    answer_end = _common_start(tokenizer, after_answer, answer_alone)
    user_start = after_answer[len(answer_end) :]
    around = {
        "user": (user_start, user_end),
        "assistant": (after_user[len(user_end) :], answer_end),
    }
    first = {"user": (start, user_end)}
    head = ""
    if start.endswith(user_start):
        head, first = start.removesuffix(user_start), {}
    if has_system:
        opening, middle, _ = _split(_render(tokenizer, ["system", "user"]), ["system", "user"])
        first["system"] = (opening, middle.removesuffix(user_start))
    prompt = asked[len(user_end) :]
    turns = Turns(head, around, first, prompt)
    for names in _CONVERSATIONS:
        if "system" in names and not has_system:
            continue
        if turns.text(_messages(names)) != _render(tokenizer, names):
            raise UserError(
                "this chat template cannot be written for Ollama: the text of a turn depends on "
                "its position. Serve the GGUF file with llama.cpp, which runs the template itself"
            )
    return turns


_CONVERSATIONS = [
    ["user"],
    ["system", "user"],
    ["user", "assistant", "user"],
    ["system", "user", "assistant", "user"],
    ["user", "assistant", "user", "assistant", "user"],
]


def _messages(roles: list[str]) -> list[Message]:
    return [{"role": role, "content": _MARKS[role] + str(i)} for i, role in enumerate(roles)]


def _render(tokenizer: PreTrainedTokenizerBase, roles: list[str], ask: bool = True) -> str:
    text = render(tokenizer, tuple(_messages(roles)), add_generation_prompt=ask)
    bos = tokenizer.bos_token
    added = bos is not None and tokenizer("a").input_ids[0] == tokenizer.bos_token_id
    return text.removeprefix(str(bos)) if added else text


def _renders(tokenizer: PreTrainedTokenizerBase, roles: list[str]) -> bool:
    """Whether the template takes these roles and shows them as turns of their own."""
    try:
        text = _render(tokenizer, roles)
    except TemplateRejects:
        return False
    return all(_MARKS[role] in text for role in roles)


def _split(text: str, roles: list[str]) -> list[str]:
    """The text before, between and after the contents.

    Raises:
        UserError: a content is missing.
    """
    parts = []
    for index, role in enumerate(roles):
        before, mark, text = text.partition(_MARKS[role] + str(index))
        if not mark:
            raise UserError("this chat template skips turns, but Ollama needs all of them")
        parts.append(before)
    return [*parts, text]


def _common_start(tokenizer: PreTrainedTokenizerBase, *texts: str) -> str:
    """What all of ``texts`` begin with, special tokens not split."""
    common = os.path.commonprefix(texts)  # noqa: RUF071  # by characters is meant
    for token in map(str, tokenizer.get_added_vocab()):
        for size in range(1, len(token)):
            cut = common[: len(common) - size]
            if common.endswith(token[:size]) and any(t.startswith(cut + token) for t in texts):
                return cut
    return common


def go_template(turns: Turns) -> str:
    """``turns`` as a template of Ollama (Go's text/template over .System and .Messages)."""
    lines = []
    if turns.head:
        lines.append("{{- if not .System }}" + _literal(turns.head) + "{{- end }}")
    lines.append("{{- range $i, $_ := .Messages }}")
    lines.append("{{- $last := eq (len (slice $.Messages $i)) 1 }}")
    for number, role in enumerate(dict.fromkeys([*turns.first, *turns.around])):
        word = "if" if number == 0 else "else if"
        lines.append(f'{{{{- {word} eq .Role "{role}" }}}}')
        here = turns.around.get(role, turns.first.get(role))
        opening = turns.first.get(role, here)
        assert here is not None and opening is not None
        before, after = _literal(here[0]), _literal(here[1])
        if opening != here:
            first, first_after = map(_literal, opening)
            before = "{{- if eq $i 0 }}" + first + "{{- else }}" + before + "{{- end }}"
            if first_after != after:
                after = "{{- if eq $i 0 }}" + first_after + "{{- else }}" + after + "{{- end }}"
        if role == "assistant":
            after = "{{- if not $last }}" + after + "{{- end }}"
        lines.append(before + "{{- .Content }}" + after)
    lines.append("{{- end }}")
    lines.append(
        '{{- if and $last (ne .Role "assistant") }}' + _literal(turns.prompt) + "{{- end }}"
    )
    lines.append("{{- end }}")
    return "\n".join(lines)


def _literal(text: str) -> str:
    """A Go string, quoted: white space around the actions is trimmed, that in strings is not."""
    if not text:
        return ""
    quoted = "".join(_ESCAPES.get(character, character) for character in text)
    return '{{- "' + quoted + '" }}'


_ESCAPES = {"\\": "\\\\", '"': '\\"', "\n": "\\n", "\r": "\\r", "\t": "\\t"}


def modelfile(tokenizer: PreTrainedTokenizerBase, gguf: str, context: int) -> str:
    """The Modelfile beside the file ``gguf``.

    It samples as the model was evaluated, greedily; Ollama's own penalty on repetition would change
    answers.

    Raises:
        UserError: the chat template cannot be written for Ollama.
    """
    # A run that was trained on plain text has no template: the prompt is passed unchanged.
    turns = read_turns(tokenizer) if tokenizer.chat_template else None
    template = go_template(turns) if turns else "{{ .Prompt }}"
    no_system = turns is not None and "system" not in turns.first
    stops = [str(tokenizer.convert_ids_to_tokens(i)) for i in stop_token_ids(tokenizer)]
    lines = [
        "# ollama create NAME -f Modelfile",
        *(["# The model has no system prompt: one that is given is ignored."] if no_system else []),
        f"FROM ./{gguf}",
        f'TEMPLATE """{template}"""',
        *(f'PARAMETER stop "{stop}"' for stop in stops),
        "PARAMETER temperature 0",
        "PARAMETER repeat_penalty 1",
        f"PARAMETER num_ctx {context}",
    ]
    return "\n".join(lines) + "\n"
