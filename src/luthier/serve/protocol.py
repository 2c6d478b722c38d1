"""What clients send: the parts of OpenAI's API that are answered, and nothing else in silence."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from luthier.errors import UserError
from luthier.generate.answer import Sampling
from luthier.serve.choose import Choice
from luthier.serve.limits import Limits

# Of the account or the service, not of the answer: taken and left alone.
_IGNORED = frozenset(
    (
        *("user", "store", "metadata", "service_tier", "safety_identifier", "prompt_cache_key"),
        *("parallel_tool_calls", "reasoning_effort", "verbosity", "modalities"),
    )
)


# Of the turns that clients send back as they got them: nothing that would change the answer.
_EMPTY: tuple[Any, ...] = (None, [])


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")

    @model_validator(mode="before")
    @classmethod
    def _absent(cls, values: Any) -> Any:
        """Null means that the default is wanted."""
        if not isinstance(values, dict):
            return values
        return {key: value for key, value in values.items() if value is not None}


class StreamOptions(_Strict):
    include_usage: bool = False
    include_obfuscation: bool = False  # padding of OpenAI's own; there is none here


class _Generation(_Strict):
    """What both kinds of request share; `top_k` and `repetition_penalty` are vLLM's."""

    model: str
    temperature: float = Field(1.0, ge=0, le=10)
    top_p: float = Field(1.0, gt=0, le=1)
    top_k: int = Field(0, ge=-1)  # vLLM's -1 means all, as 0 does
    repetition_penalty: float = Field(1.0, ge=0.1, le=10)
    presence_penalty: float = Field(0.0, ge=-2, le=2)
    frequency_penalty: float = Field(0.0, ge=-2, le=2)
    logit_bias: dict[int, Annotated[float, Field(ge=-100, le=100)]] = Field({}, max_length=1024)
    seed: int | None = Field(None, ge=0, lt=2**63)
    stop: list[Annotated[str, Field(min_length=1, max_length=1024)]] = Field([], max_length=16)
    n: int = Field(1, ge=1)
    stream: bool = False
    stream_options: StreamOptions | None = None

    @model_validator(mode="before")
    @classmethod
    def _without_ignored(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        return {key: value for key, value in values.items() if key not in _IGNORED}

    @field_validator("stop", mode="before")
    @classmethod
    def _one_stop(cls, stop: Any) -> Any:
        return [stop] if isinstance(stop, str) else stop

    @model_validator(mode="after")
    def _options_of_a_stream(self) -> "_Generation":
        if self.stream_options is not None and not self.stream:
            raise ValueError("stream_options needs stream: true")
        return self

    def choice(self, number: int, new_tokens: int, top_logprobs: int | None) -> Choice:
        """Of the ``number``-th answer: with one seed, several answers still differ."""
        seed = None if self.seed is None else (self.seed + number) % 2**63
        return Choice(
            Sampling(
                max_new_tokens=new_tokens,
                temperature=self.temperature,
                top_p=self.top_p,
                top_k=max(0, self.top_k),
                repetition_penalty=self.repetition_penalty,
                seed=seed,
            ),
            presence_penalty=self.presence_penalty,
            frequency_penalty=self.frequency_penalty,
            logit_bias=self.logit_bias,
            top_logprobs=top_logprobs,
        )


class TextPart(_Strict):
    type: Literal["text"]
    text: str


class ChatMessage(_Strict):
    """A turn; `tool_calls` and the like are refused (``extra``), `name` is left alone.

    Clients send a reply's own message back with all its fields, most of them null or empty.
    """

    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[TextPart]
    name: str | None = None
    reasoning_content: str | None = None

    @model_validator(mode="before")
    @classmethod
    def _without_empty(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        return {k: v for k, v in values.items() if k == "content" or v not in _EMPTY}

    def as_turn(self) -> dict[str, str]:
        content = self.content
        if not isinstance(content, str):
            content = "".join(part.text for part in content)
        role = "system" if self.role == "developer" else self.role
        thought = {"reasoning_content": self.reasoning_content} if self.reasoning_content else {}
        return {"role": role, "content": content, **thought}


class JsonSchema(_Strict):
    name: str = ""
    description: str | None = None
    schema_: dict[str, Any] = Field({}, alias="schema")
    strict: bool | None = None


class ResponseFormat(_Strict):
    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None

    @model_validator(mode="after")
    def _complete(self) -> "ResponseFormat":
        if (self.type == "json_schema") != (self.json_schema is not None):
            raise ValueError(
                "json_schema is required with type json_schema, and allowed only there"
            )
        return self


class ChatRequest(_Generation):
    """The body of `/v1/chat/completions`."""

    messages: list[ChatMessage] = Field(min_length=1)
    max_tokens: int | None = Field(None, ge=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    logprobs: bool = False
    top_logprobs: int = Field(0, ge=0, le=20)
    response_format: ResponseFormat | None = None
    # Tools are not supported; that none are to be called is.
    tools: list[Any] = []
    functions: list[Any] = []
    tool_choice: Literal["none", "auto"] = "none"
    function_call: Literal["none", "auto"] = "none"

    @field_validator("tools", "functions")
    @classmethod
    def _none(cls, given: list[Any]) -> list[Any]:
        if given:
            raise ValueError("this server does not call tools")
        return given

    @model_validator(mode="after")
    def _top_needs_logprobs(self) -> "ChatRequest":
        if self.top_logprobs and not self.logprobs:
            raise ValueError("top_logprobs needs logprobs: true")
        return self

    @property
    def new_tokens(self) -> int | None:
        return self.max_completion_tokens or self.max_tokens


class CompletionRequest(_Generation):
    """The body of `/v1/completions`: text or token ids to continue."""

    prompt: str | list[str] | list[int] | list[list[int]]
    max_tokens: int = Field(16, ge=1)  # OpenAI's default
    logprobs: int | None = Field(None, ge=0, le=20)
    echo: Literal[False] = False
    best_of: Literal[1] = 1

    @property
    def prompts(self) -> list[str | list[int]]:
        """Each on its own, of whichever form."""
        prompt: Any = self.prompt
        if isinstance(prompt, str) or (prompt and isinstance(prompt[0], int)):
            return [prompt]
        return list(prompt)


class LoadAdapter(_Strict):
    """The body of `/v1/load_lora_adapter`, vLLM's names: a run's folder, on the server."""

    lora_name: str
    lora_path: str = Field(min_length=1, max_length=4096)


class UnloadAdapter(BaseModel):
    """The body of `/v1/unload_lora_adapter`."""

    lora_name: str


def answer_room(wanted: int | None, prompt: int, context: int | None, limits: Limits) -> int:
    """How many tokens an answer to ``prompt`` tokens may have.

    Raises:
        UserError: more are wanted than the server gives, or than fit behind the prompt.
    """
    if wanted is not None and wanted > limits.new_tokens:
        raise UserError(f"max_tokens is {wanted}; this server allows at most {limits.new_tokens}")
    room = limits.new_tokens if context is None else context - prompt
    if room < max(1, wanted or 0):
        asked = f" and {wanted} for the answer" if wanted else ""
        raise UserError(
            f"this model's context is {context} tokens: {prompt} prompt tokens{asked} do not fit"
        )
    return wanted or min(room, limits.new_tokens)
