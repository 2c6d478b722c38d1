"""The HTTP face: OpenAI's routes over the engine."""

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response, StreamingResponse

from luthier.errors import UserError
from luthier.generate.answer import Prompt
from luthier.serve.backend import Backend
from luthier.serve.engine import Ask, Engine, Piece
from luthier.serve.errors import ApiError, json_response
from luthier.serve.guard import Guard
from luthier.serve.job import ClientGone, Job
from luthier.serve.limits import Limits
from luthier.serve.metrics import Metrics
from luthier.serve.models import Models, Served
from luthier.serve.protocol import (
    ChatRequest,
    CompletionRequest,
    LoadAdapter,
    UnloadAdapter,
    answer_room,
)
from luthier.serve.replies import ChatReply, Choices, CompletionReply, Reply
from luthier.serve.threads import Threads


def create_app(
    models: Models,
    limits: Limits,
    api_key: str | None = None,
    adapters: Path | None = None,
    backend: Backend | None = None,
) -> FastAPI:
    """The server as an ASGI application, with an engine that lives as long as it does.

    Args:
        adapters: clients may load adapters of runs in this folder; None: of none.
        backend: what makes the answers; None for our own engine.
    """
    metrics, threads = Metrics(), Threads()
    engine = backend or Engine(limits, lambda rows: metrics.rows.observe(rows))
    metrics.watch(engine)

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        yield
        await threads.run(engine.close)

    app = FastAPI(
        title="Luthier", lifespan=lifespan, docs_url=None, redoc_url=None, openapi_url=None
    )
    app.add_middleware(Guard, api_key=api_key, body_limit=limits.body)
    app.state.engine = engine
    loads_from = adapters.resolve() if adapters is not None and api_key is not None else None
    server = _Server(models, limits, engine, metrics, threads, loads_from)
    for method, path, handler in (
        ("POST", "/v1/chat/completions", server.chat),
        ("POST", "/v1/completions", server.complete),
        ("GET", "/v1/models", server.list_models),
        ("GET", "/v1/models/{name:path}", server.show_model),
        ("POST", "/v1/load_lora_adapter", server.load_adapter),
        ("POST", "/v1/unload_lora_adapter", server.unload_adapter),
        ("GET", "/healthz", server.health),
        ("GET", "/metrics", server.show_metrics),
    ):
        app.add_api_route(path, handler, methods=[method], response_model=None)
    app.add_exception_handler(ApiError, _tell)
    app.add_exception_handler(RequestValidationError, _tell_invalid)
    app.add_exception_handler(HTTPException, _tell_http)
    return app


class _Server:
    """The routes."""

    def __init__(
        self,
        models: Models,
        limits: Limits,
        engine: Backend,
        metrics: Metrics,
        threads: Threads,
        loads_from: Path | None,
    ) -> None:
        self._models = models
        self._limits = limits
        self._engine = engine
        self._metrics = metrics
        self._threads = threads
        self._loads_from = loads_from
        self._loading = asyncio.Lock()

    async def chat(self, request: Request, body: ChatRequest) -> Response:
        served = self._find(body.model)
        if not served.speech.chats:
            raise ApiError(
                400,
                f"'{served.name}' was trained on plain text, not on conversations; use /v1/completions",
            )
        messages: Prompt = tuple(message.as_turn() for message in body.messages)
        schema: dict[str, Any] | None = None
        as_json = body.response_format is not None and body.response_format.type != "text"
        if body.response_format is not None and body.response_format.json_schema is not None:
            schema = body.response_format.json_schema.schema_
        top = body.top_logprobs if body.logprobs else None

        def asks() -> list[Ask]:
            prompt = served.speech.encode(messages)
            room = self._room(served, prompt, body.new_tokens)
            return [
                Ask(
                    served.weights,
                    served.adapter,
                    served.speech.tokenizer,
                    prompt,
                    body.choice(number, room, top),
                    served.speech.stop_tokens,
                    tuple(body.stop),
                    served.speech.vocabulary.grammar(schema) if as_json else None,
                    served.speech.shape,
                )
                for number in range(body.n)
            ]

        self._check(served, body.n, body.logit_bias)
        reply = ChatReply(served.name, served.speech, body.logprobs)
        return await self._answer(request, body, served, asks, 1, reply)

    async def complete(self, request: Request, body: CompletionRequest) -> Response:
        served = self._find(body.model)
        prompts = body.prompts
        if not prompts:
            raise ApiError(400, "prompt is empty", param="prompt")

        def asks() -> list[Ask]:
            made = []
            for number in range(len(prompts) * body.n):
                prompt = prompts[number // body.n]
                ids = served.speech.encode(prompt) if isinstance(prompt, str) else prompt
                if not ids or not all(0 <= token < served.weights.vocabulary for token in ids):
                    raise UserError("a prompt is empty, or has token ids outside the vocabulary")
                room = self._room(served, ids, body.max_tokens)
                made.append(
                    Ask(
                        served.weights,
                        served.adapter,
                        served.speech.tokenizer,
                        ids,
                        body.choice(number % body.n, room, body.logprobs),
                        served.speech.stop_tokens,
                        tuple(body.stop),
                    )
                )
            return made

        self._check(served, len(prompts) * body.n, body.logit_bias)
        reply = CompletionReply(served.name, served.speech, body.logprobs is not None)
        return await self._answer(request, body, served, asks, len(prompts), reply)

    async def _answer(
        self,
        request: Request,
        body: ChatRequest | CompletionRequest,
        served: Served,
        make_asks: Callable[[], list[Ask]],
        prompts: int,
        reply: Reply,
    ) -> Response:
        endpoint = "chat" if isinstance(body, ChatRequest) else "completions"
        status = 500
        try:
            try:
                asks = await self._threads.run(make_asks)
            except (UserError, UnicodeError) as error:
                raise ApiError(400, str(error)) from None
            each = [len(ask.prompt) for ask in asks]
            job = Job(served, endpoint, self._metrics, sum(each) * prompts // len(asks))
            job.submit(self._engine, asks)
            pieces = job.pieces(request)
            if not body.stream:
                response = await self._whole(pieces, len(asks), job, reply)
                status = 200
                return response
            # The first piece is awaited here: what fails before it has a status of its own.
            first = await anext(pieces)
            status = 200
            with_usage = body.stream_options is not None and body.stream_options.include_usage
            return StreamingResponse(
                _stream(first, pieces, job, reply, len(asks), with_usage),
                media_type="text/event-stream",
                headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"},
            )
        except ApiError as error:
            status = error.status
            raise
        except ClientGone:
            status = 499  # nginx's number for it; nobody reads this response
            return Response(status_code=status)
        finally:
            self._metrics.requests.labels(endpoint, served.name, str(status)).inc()

    async def _whole(
        self, pieces: AsyncIterator[tuple[int, Piece]], count: int, job: Job, reply: Reply
    ) -> Response:
        choices = [Choices() for _ in range(count)]
        async for number, piece in pieces:
            choices[number].add(piece)
        return json_response(reply.whole(choices, job))

    def _find(self, name: str) -> Served:
        served = self._models.by_name.get(name)
        if served is None:
            known = ", ".join(self._models.by_name)
            raise ApiError(
                404,
                f"there is no model '{name}' here; the models are {known}",
                param="model",
                code="model_not_found",
            )
        return served

    def _room(self, served: Served, prompt: Sequence[int], wanted: int | None) -> int:
        bounds = [b for b in (self._limits.context, served.weights.positions) if b is not None]
        return answer_room(wanted, len(prompt), min(bounds, default=None), self._limits)

    def _check(self, served: Served, answers: int, bias: dict[int, float]) -> None:
        if answers > self._limits.choices:
            raise ApiError(
                400,
                f"the request asks for {answers} answers; the limit is {self._limits.choices}",
                param="n",
            )
        if any(not 0 <= token < served.weights.vocabulary for token in bias):
            raise ApiError(400, "logit_bias has a token id outside the vocabulary")

    async def list_models(self) -> Response:
        return json_response(
            {"object": "list", "data": [_card(served) for served in self._models.by_name.values()]}
        )

    async def show_model(self, name: str) -> Response:
        return json_response(_card(self._find(name)))

    async def load_adapter(self, body: LoadAdapter) -> Response:
        folder = self._may_load()

        def load() -> Served:
            path = _within(folder, body.lora_path)
            return self._models.load(body.lora_name, path, lambda f: self._engine.call(f).result())

        async with self._loading:
            try:
                served = await self._threads.run(load)
            except (UserError, ValueError, OSError) as error:
                raise ApiError(400, str(error)) from None
        return json_response(_card(served))

    async def unload_adapter(self, body: UnloadAdapter) -> Response:
        self._may_load()
        async with self._loading:
            served = self._find(body.lora_name)
            try:
                self._models.hide(served)
            except UserError as error:
                raise ApiError(400, str(error)) from None
            while self._engine.uses(served.weights, served.adapter):  # its answers are finished
                await asyncio.sleep(0.02)
            adapter = served.adapter
            assert adapter is not None
            await asyncio.wrap_future(
                self._engine.call(lambda: served.weights.unload_adapter(adapter))
            )
        return json_response({"unloaded": body.lora_name})

    def _may_load(self) -> Path:
        if self._loads_from is None:
            raise ApiError(
                403,
                "this server does not load or unload adapters: start it with --adapters DIR, the "
                "folder of their runs, and an API key (--api-key-env)",
            )
        return self._loads_from

    async def health(self) -> Response:
        if not self._engine.alive:
            raise ApiError(503, "the engine has stopped", kind="server_error")
        return json_response({"status": "ok"})

    async def show_metrics(self) -> Response:
        return Response(self._metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")


async def _stream(
    first: tuple[int, Piece],
    rest: AsyncGenerator[tuple[int, Piece]],
    job: Job,
    reply: Reply,
    answers: int,
    with_usage: bool,
) -> AsyncIterator[bytes]:
    """Server-sent events, OpenAI's `data: [DONE]` last; an error is an event too."""
    try:
        for number in range(answers):
            for opening in reply.opening(number):
                yield _event(opening)
        yield _event(reply.chunk(*first))
        async for number, piece in rest:
            if piece.text or piece.tokens or piece.finish or piece.thought:
                yield _event(reply.chunk(number, piece))
        if with_usage:
            yield _event(reply.usage_chunk(job))
    except ApiError as error:
        yield _event({"error": error.body})
    except ClientGone:
        return
    finally:
        await rest.aclose()
    yield b"data: [DONE]\n\n"


def _within(folder: Path, text: str) -> Path:
    """The run that a client names, which must lie in ``folder``, links followed.

    Raises:
        UserError: it is elsewhere.
    """
    path = (folder / text).resolve()
    if not path.is_relative_to(folder) or path == folder:
        raise UserError(
            f"lora_path {text!r} is not in the folder that this server loads adapters from"
        )
    return path


def _event(value: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(value).encode("ascii") + b"\n\n"


def _card(served: Served) -> dict[str, Any]:
    """A model in the list, with vLLM's `root` and `parent`."""
    return {
        "id": served.name,
        "object": "model",
        "created": served.created,
        "owned_by": "luthier",
        "root": str(served.run.root) if served.run is not None else served.name,
        "parent": served.parent,
    }


async def _tell(_request: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    return error.response()


async def _tell_invalid(_request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"] if part != "body")
    message = f"{where}: {first['msg']}" if where else str(first["msg"])
    return ApiError(400, message, param=where or None).response()


async def _tell_http(_request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return ApiError(error.status_code, str(error.detail)).response()
