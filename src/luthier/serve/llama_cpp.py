"""Answers by llama.cpp's own server, behind the same routes, keys and limits as ours.

Prompts are made here, by each run's template and tokenizer, and go there as token ids; so do the
choice of an adapter and the sampling. What comes back is text, which is cut and framed here.
"""

import http.client
import json
import logging
import secrets
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, cast

import torch
from transformers import PreTrainedConfig, PreTrainedTokenizerBase

from luthier.errors import UserError
from luthier.events import Note, OnEvent, during, ignore
from luthier.export.options import GgufType
from luthier.export.served import adapter_file, base_file, merged_file
from luthier.export.tuned import base_of
from luthier.extras import need
from luthier.generate.cache import bytes_of_token, rows_in_memory
from luthier.models.load import load_tokenizer, max_positions
from luthier.run import Run, open_run
from luthier.serve import llama_cpp_process
from luthier.serve.choose import Chosen
from luthier.serve.engine import Ask, Busy, Closed, Piece, Token
from luthier.serve.limits import Limits
from luthier.serve.models import (
    Models,
    Served,
    Speech,
    base_key,
    base_name_of,
    check_name,
    parse_run,
)
from luthier.serve.text import TextStream
from luthier.serve.weights import Weights

log = logging.getLogger(__name__)

_CONTEXT = 4096  # tokens of a place, where nobody asks for more
_START = 600.0  # seconds for a large file to be read
_LOOK = 0.25


@dataclass(frozen=True)
class Settings:
    """How one llama.cpp is started.

    Attributes:
        context: tokens of prompt and answer of each place.
        slots: answers at once.
        precise: keys and values in 32 bits.
        key: without which it answers nobody, others of this machine included.
    """

    model: str
    adapters: list[str]
    context: int
    slots: int
    threads: int
    precise: bool
    key: str = field(default_factory=lambda: secrets.token_urlsafe(24), repr=False)


class Gguf:
    """One GGUF file with its adapters, in a llama.cpp of its own.

    Attributes:
        vocabulary, positions: as ``Weights`` has them; positions are those of a place.
        adapters: names, in llama.cpp's order.
        alive: whether its process is.
    """

    def __init__(
        self,
        file: Path,
        adapters: Mapping[str, Path],
        config: PreTrainedConfig,
        limits: Limits,
        precise: bool,
    ) -> None:
        self.vocabulary: int = config.get_text_config().vocab_size
        trained = max_positions(config) or _CONTEXT
        self.positions = min(limits.context or _CONTEXT, trained)
        place = bytes_of_token(config, 4 if precise else 2) * self.positions
        self.slots = rows_in_memory(limits.batch, place, torch.device("cpu"))
        self.adapters = list(adapters)
        settings = Settings(
            str(file),
            [str(path) for path in adapters.values()],
            self.positions,
            self.slots,
            torch.get_num_threads(),
            precise,
        )
        self._key = settings.key
        self._process = subprocess.Popen(
            [sys.executable, str(Path(llama_cpp_process.__file__))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self._tail: list[str] = []
        threading.Thread(target=self._keep_log, daemon=True).start()
        self._host, self._port = self._ready(settings)

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    def post(self, path: str, body: dict[str, Any], seconds: float) -> http.client.HTTPConnection:
        """A connection on which a request was sent, and whose answer is to be read."""
        connection = http.client.HTTPConnection(self._host, self._port, timeout=max(0.1, seconds))
        head = {"Content-Type": "application/json", "Authorization": f"Bearer {self._key}"}
        connection.request("POST", path, json.dumps(body), head)
        return connection

    def close(self) -> None:
        with suppress(OSError, ValueError):
            cast(Any, self._process.stdin).close()
        try:
            self._process.wait(5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _keep_log(self) -> None:
        for line in cast(Any, self._process.stderr):
            self._tail = [*self._tail[-30:], line.rstrip()]

    def _ready(self, settings: Settings) -> tuple[str, int]:
        found: list[str] = []

        def read() -> None:
            for line in cast(Any, self._process.stdout):
                if line.startswith("READY http://"):
                    found.append(line.split("http://")[1].strip())
                    return

        pipe = cast(Any, self._process.stdin)
        with suppress(OSError):
            pipe.write(json.dumps(asdict(settings)) + "\n")
            pipe.flush()
        reader = threading.Thread(target=read, daemon=True)
        reader.start()
        reader.join(_START)
        if not found:
            self.close()
            said = next((line for line in reversed(self._tail) if "rror" in line), "")
            raise UserError(
                f"llama.cpp does not load {settings.model}: {said or 'it says nothing'}; "
                "use --engine own"
            )
        host, _, port = found[0].rpartition(":")
        return host, int(port)


class LlamaCppModels(Models):
    """Runs as llama.cpp serves them; see ``Models``.

    Attributes:
        files: all that are served, each in a process of its own.
        kind: type of the GGUF files.
    """

    def __init__(
        self,
        runs: Sequence[str],
        limits: Limits,
        kind: GgufType = "f16",
        on_event: OnEvent = ignore,
    ) -> None:
        """Write the files where they are not there yet, and start llama.cpp.

        Raises:
            UserError: as ``Models``, or llama.cpp does not know a model.
        """
        need("xllamacpp", extra="llama-cpp", what="--engine llama-cpp")
        need("gguf", extra="llama-cpp", what="--engine llama-cpp")
        super().__init__([])
        self.files: list[Gguf] = []
        self.kind = kind
        self._limits, self._on_event = limits, on_event
        groups: dict[Any, dict[str, Run]] = {}
        for name, path in map(parse_run, runs):
            check_name(name)
            run = open_run(path)
            run.require_finished()
            full = run.recipe().method.name == "full"
            group = groups.setdefault(("run", name) if full else base_key(run), {})
            if any(name in each for each in groups.values()):
                raise UserError(f"two models would be called '{name}'; write another_name={path}")
            group[name] = run
        try:
            for group in groups.values():
                self._serve(group)
        except BaseException:
            self.close()
            raise

    def load(self, name: str, path: Path, between_steps: Any = None) -> Served:
        raise UserError("llama.cpp loads adapters at its start alone; use --engine own")

    def close(self) -> None:
        for file in self.files:
            file.close()

    def _serve(self, group: dict[str, Run]) -> None:
        """Runs of one base: the adapters that can be beside it, and each other run by itself."""
        adapters: dict[str, Path] = {}
        for name, run in group.items():
            if run.recipe().method.name != "full":
                file = adapter_file(run, name, self._on_event)
                adapters |= {name: file} if file is not None else {}
        alone = [name for name in group if name not in adapters]
        for name in alone:
            file = merged_file(group[name], self.kind, self._on_event)
            self._add(name, self._start(file, {}, group[name]), None, group[name], None)
        if not adapters:
            return
        runs = [group[name] for name in adapters]
        gguf = self._start(base_file(runs, self.kind, self._on_event), adapters, runs[0])
        parent = base_name_of(runs[0].recipe())
        parent = parent if parent not in (*self.by_name, *group) else f"{parent}:base"
        for name in adapters:
            self._add(name, gguf, name, group[name], parent)
        speech = self.by_name[next(iter(adapters))].speech
        self.by_name[parent] = Served(parent, cast(Weights, gguf), None, speech, None, None)

    def _start(self, file: Path, adapters: Mapping[str, Path], run: Run) -> Gguf:
        config = base_of(run, run.recipe())[1]
        with during(f"starting llama.cpp with {file.name}", self._on_event):
            gguf = Gguf(file, adapters, config, self._limits, self.kind == "f32")
        self.files.append(gguf)
        self._on_event(
            Note(
                f"llama.cpp serves {file}: {gguf.slots} answers at once of {gguf.positions:,} "
                "tokens with their prompt (--max-batch, --max-model-len)"
            )
        )
        return gguf

    def _add(
        self, name: str, gguf: Gguf, adapter: str | None, run: Run, parent: str | None
    ) -> None:
        recipe = run.recipe()
        tokenizer = load_tokenizer(run.weights_path(recipe), recipe.model.trust_remote_code)
        speech = Speech(tokenizer, gguf.vocabulary, run.provenance().learned_turns)
        # All that the routes ask of weights is how many tokens and positions they have.
        self.by_name[name] = Served(name, cast(Weights, gguf), adapter, speech, parent, run)


@dataclass(eq=False)
class _Answer:
    ask: Ask
    deliver: Callable[[Piece], None]
    deadline: float
    given_up: threading.Event = field(default_factory=threading.Event)
    connection: http.client.HTTPConnection | None = None
    line: socket.socket | None = None
    started: bool = False
    over: bool = False
    made: int = 0

    def cancel(self) -> None:
        """Cancel it: llama.cpp stops where nobody listens."""
        self.given_up.set()
        line = self.line
        if line is not None:
            with suppress(OSError):  # it may be closed already
                line.shutdown(socket.SHUT_RDWR)


class LlamaCppEngine:
    """Hands answers to llama.cpp; see ``Engine``, whose methods these are.

    Attributes:
        models: that it answers for.
    """

    def __init__(self, models: LlamaCppModels, limits: Limits) -> None:
        self.models, self._limits = models, limits
        self._places = sum(gguf.slots for gguf in models.files)
        self._answers: list[_Answer] = []
        self._lock = threading.Lock()
        self._closed = False
        self._pool = ThreadPoolExecutor(self._places, "llama-cpp")
        threading.Thread(target=self._watch, name="llama-cpp-watch", daemon=True).start()

    @property
    def waiting(self) -> int:
        return sum(not answer.started for answer in self._answers)

    @property
    def running(self) -> int:
        return sum(answer.started for answer in self._answers)

    @property
    def alive(self) -> bool:
        return not self._closed and all(gguf.alive for gguf in self.models.files)

    def uses(self, weights: Any, adapter: str | None) -> bool:
        asks = [answer.ask for answer in self._answers]
        return any(ask.weights is weights and ask.adapter == adapter for ask in asks)

    def submit(self, asks: list[Ask], deliver: Callable[[int, Piece], None]) -> list[_Answer]:
        """As ``Engine.submit``."""
        deadline = time.monotonic() + self._limits.seconds
        answers = [
            _Answer(ask, lambda piece, number=number: deliver(number, piece), deadline)  # type: ignore[misc]
            for number, ask in enumerate(asks)
        ]
        with self._lock:
            if self._closed:
                raise Closed
            if len(self._answers) + len(asks) > self._places + self._limits.queue:
                raise Busy
            self._answers += answers
            for answer in answers:
                self._pool.submit(self._work, answer)
        return answers

    def call(self, function: Callable[[], Any]) -> "Future[Any]":
        raise UserError("llama.cpp loads adapters at its start alone; use --engine own")

    def close(self) -> None:
        """End: what still runs is failed."""
        with self._lock:
            self._closed = True
            answers = list(self._answers)
        for answer in answers:
            self._end(answer, "error")
            answer.cancel()
        # First: an answer that was about to ask has no line yet that could be cut.
        self.models.close()
        self._pool.shutdown(wait=True, cancel_futures=True)

    def _watch(self) -> None:
        """End what takes too long, waiting for a place or for a token, and what nobody waits for."""
        while not self._closed:
            now = time.monotonic()
            for answer in self._answers:
                if now > answer.deadline or (answer.given_up.is_set() and not answer.started):
                    self._end(answer, "timeout")
                    answer.cancel()
            time.sleep(_LOOK)

    def _end(self, answer: _Answer, finish: str, **more: Any) -> None:
        """The last piece of an answer, once; none for one that nobody waits for."""
        with self._lock:
            if answer.over:
                return
            answer.over = True
            self._answers = [each for each in self._answers if each is not answer]
        if not answer.given_up.is_set():
            answer.deliver(Piece(more.pop("text", ""), finish=finish, made=answer.made, **more))

    def _work(self, answer: _Answer) -> None:
        if answer.over or answer.given_up.is_set():
            self._end(answer, "error")
            return
        answer.started = True
        try:
            self._ask(answer)
        except Exception:
            if not (answer.over or answer.given_up.is_set()):
                log.exception("llama.cpp failed an answer")
            self._end(answer, "error")
        finally:
            connection = answer.connection
            if connection is not None:
                connection.close()

    def _ask(self, answer: _Answer) -> None:
        ask = answer.ask
        gguf = cast(Gguf, ask.weights)
        text = TextStream(ask.tokenizer, ask.stops, ask.shape)
        left = answer.deadline - time.monotonic()
        answer.connection = gguf.post("/completion", request(ask, gguf), left)
        answer.line = answer.connection.sock
        response = answer.connection.getresponse()
        if response.status != 200:
            raise RuntimeError(f"{response.status}: {response.read(2000)!r}")
        first = True
        for event in _events(response):
            if "error" in event:
                raise RuntimeError(str(event["error"]))
            ids = event.get("tokens") or []
            answer.made = max(answer.made + len(ids), event.get("tokens_predicted") or 0)
            ended = any(token in ask.stop_tokens for token in ids)
            piece = "" if ended else _decoded(ask.tokenizer, event.get("content", ""), ids, first)
            first = first and not ids
            at = text.length
            told = text.add_text(piece)
            tokens = tuple(Token(each, at) for each in _chosen(event, ask)) if piece else ()
            if ended or text.stopped or event.get("stop"):
                limit = event.get("stop_type") == "limit"
                self._finish(answer, text, told, tokens, "length" if limit else "stop")
                return
            if answer.over or answer.given_up.is_set():
                return
            thought = text.take_thought()
            if told or tokens or thought:
                answer.deliver(Piece(told, tokens, made=answer.made, thought=thought))
        raise RuntimeError("the connection ended before the answer")

    def _finish(
        self,
        answer: _Answer,
        text: TextStream,
        told: str,
        tokens: tuple[Token, ...],
        finish: str,
    ) -> None:
        told += text.finish()
        length = text.length if text.stopped else None
        kept = tuple(token for token in tokens if length is None or token.at < length)
        self._end(
            answer,
            "stop" if text.stopped else finish,
            text=told,
            tokens=kept,
            length=length,
            thought=text.take_thought(),
        )


def request(ask: Ask, gguf: Gguf) -> dict[str, Any]:
    """What llama.cpp's ``/completion`` is sent for ``ask``."""
    choice, sampling = ask.choice, ask.choice.sampling
    body: dict[str, Any] = {
        "prompt": ask.prompt,
        "n_predict": sampling.max_new_tokens,
        "stream": True,
        "return_tokens": True,
        # The order of Transformers' `generate`; nothing else chooses.
        "samplers": ["penalties", "temperature", "top_k", "top_p"],
        "temperature": sampling.temperature,
        "top_k": sampling.top_k,
        "top_p": sampling.top_p,
        "repeat_penalty": sampling.repetition_penalty,
        "repeat_last_n": gguf.positions,  # all of them
        "presence_penalty": choice.presence_penalty,
        "frequency_penalty": choice.frequency_penalty,
        "logit_bias": [[token, bias] for token, bias in choice.logit_bias.items()],
        "seed": -1 if sampling.seed is None else sampling.seed % 2**32,
    }
    if gguf.adapters:
        body["lora"] = [
            {"id": number, "scale": float(name == ask.adapter)}
            for number, name in enumerate(gguf.adapters)
        ]
    if choice.top_logprobs is not None:
        body["n_probs"] = max(1, choice.top_logprobs)
    if ask.grammar is not None:
        body["json_schema"] = json.loads(ask.grammar.schema)
    return body


def _events(response: http.client.HTTPResponse) -> Iterator[dict[str, Any]]:
    """Server-sent events."""
    for line in response:
        head, _, rest = line.partition(b":")
        if head in (b"data", b"error") and rest.strip() not in (b"", b"[DONE]"):
            event: dict[str, Any] = json.loads(rest)
            yield event if head == b"data" else {"error": event}


def _decoded(
    tokenizer: PreTrainedTokenizerBase, content: str, ids: Sequence[int], first: bool
) -> str:
    """``content`` as our tokenizer begins an answer: some take off the space before its first word."""
    if first and len(ids) == 1 and content.startswith(" "):
        own = str(tokenizer.decode(list(ids)))
        return own if own == content[1:] else content
    return content


def _chosen(event: dict[str, Any], ask: Ask) -> Iterator[Chosen]:
    wanted = ask.choice.top_logprobs
    told = event.get("completion_probabilities") or ()
    if not told:
        yield from (Chosen(token) for token in event.get("tokens") or ())
    for entry in told:
        top = [(each["id"], each["logprob"]) for each in entry.get("top_logprobs", ())]
        yield Chosen(entry["id"], entry["logprob"], tuple(top[: wanted or 0]))
