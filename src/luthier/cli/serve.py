"""`luthier serve`."""

import os
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from luthier.api import GgufType
from luthier.cli.app import app, err, out
from luthier.cli.terminal import terminal
from luthier.cli.trusting import Trust
from luthier.cli.tuned import BaseModel, open_tuned
from luthier.errors import UserError
from luthier.events import during

if TYPE_CHECKING:
    from luthier.api import Limits, LlamaCppEngine


@app.command()
def serve(
    runs: Annotated[
        list[str],
        typer.Argument(metavar="RUN…", help="Folders of finished runs; NAME=RUN sets a name."),
    ],
    host: Annotated[
        str, typer.Option(help="Address to listen on; any but this machine's needs an API key.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port; 0 picks a free one.")] = 8000,
    api_key_env: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Environment variable with the key that clients send."),
    ] = None,
    base: Annotated[
        bool, typer.Option("--base", help="Also load the base of a full run (adapters have it).")
    ] = False,
    adapters: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="Clients with the key may load adapters of runs in this folder."
        ),
    ] = None,
    trust: Trust = False,
    max_batch: Annotated[int, typer.Option(min=1, help="Answers generated at once.")] = 16,
    max_queue: Annotated[
        int, typer.Option(min=0, help="Answers that may wait; more are refused (429).")
    ] = 64,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest answer, in tokens.")] = 1024,
    max_model_len: Annotated[
        int | None, typer.Option(min=2, help="Tokens of prompt and answer; default: the model's.")
    ] = None,
    max_connections: Annotated[
        int, typer.Option(min=1, help="Connections at once; idle ones make room for new ones.")
    ] = 512,
    max_body: Annotated[int, typer.Option(min=1024, help="Largest request, in bytes.")] = 1 << 20,
    request_timeout: Annotated[
        float, typer.Option(min=0.1, help="Seconds that a request may take.")
    ] = 300.0,
    shutdown_timeout: Annotated[
        float, typer.Option(min=1, help="Seconds that running answers get to finish.")
    ] = 30.0,
    engine: Annotated[
        Literal["auto", "own", "llama-cpp", "vllm"],
        typer.Option(
            help="What makes the answers: our own engine, llama.cpp (on a CPU; the run is exported to "
            "GGUF once), or vLLM's server (on a GPU; not run yet). auto chooses, and says why."
        ),
    ] = "auto",
    gguf_type: Annotated[
        GgufType,
        typer.Option("--gguf-type", help="With llama.cpp: type of the weights; q8_0 is faster."),
    ] = "f16",
    base_model: BaseModel = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="With `--engine vllm`: only print its command.")
    ] = False,
) -> None:
    """Serve tuned models over an OpenAI-compatible API.

    The model name is the run's folder name; the base model is served under its own name. Adapters of
    the same base share it in memory. The answers of all clients are generated in one batch.
    llama.cpp (`pip install 'luthier[llama-cpp]'`) answers several times as fast on a CPU, in its own
    rounding; --engine own answers exactly as `luthier generate` does.

    Example: `luthier serve runs/first --port 8000`, then with the `openai` package
    `OpenAI(base_url="http://127.0.0.1:8000/v1", api_key="-")`
    """
    key = _key(api_key_env)
    from luthier.api import (
        Limits,
        bind,
        check_address,
        hand_over_to_vllm,
        pick_engine,
        run_server,
    )
    from luthier.api import ServedModels as Models

    check_address(host, key)
    own_only = "--adapters" if adapters is not None else "--base" if base else None
    _check_adapters(adapters, key)
    runs = [_named(text, base_model, trust) for text in runs]
    chosen, why = (engine, "") if engine != "auto" else pick_engine(own_only=own_only)
    if chosen != "own" and own_only is not None:
        raise UserError(f"{own_only} is for our own engine, not for --engine {engine}")
    if dry_run and chosen != "vllm":
        raise UserError("--dry-run needs --engine vllm")
    if chosen == "vllm":
        line = _vllm_command(runs, host, port, max_model_len, engine == "auto")
        if dry_run:
            print(shlex.join(line))
            return
        if line:
            if why:
                _say(f"served by vLLM: {why}")
            hand_over_to_vllm(line, key)
        chosen, why = "own", ""  # what was said is the reason
    limits = Limits(
        batch=max_batch,
        queue=max_queue,
        context=max_model_len,
        new_tokens=max_new_tokens,
        connections=max_connections,
        body=max_body,
        seconds=request_timeout,
        shutdown_seconds=shutdown_timeout,
    )
    bound = bind(host, port)
    address = f"http://{f'[{host}]' if ':' in host else host}:{bound.getsockname()[1]}"
    backend = None
    if chosen == "llama-cpp":
        backend = _llama_cpp(runs, limits, gguf_type, fall_back=engine == "auto")
        why = why if backend is not None else ""
    if backend is not None:
        models: Models = backend.models
    else:
        with terminal() as on_event, during("loading the models", on_event):
            models = Models(runs, base)
    if why:
        _say(f"served by {'llama.cpp' if backend is not None else 'our own engine'}: {why}")

    def ready() -> None:
        out.print(f"serving {', '.join(models.by_name)} at {address}/v1", highlight=False)
        out.file.flush()  # a pipe would buffer it

    run_server(models, limits, bound, key, ready, adapters, backend)


def _say(text: str) -> None:
    err.print(text, highlight=False, markup=False, soft_wrap=True)


def _vllm_command(
    runs: list[str], host: str, port: int, context: int | None, fall_back: bool
) -> list[str]:
    """vLLM's command line; empty where it cannot serve the runs and another engine may."""
    from luthier.api import vllm_command

    try:
        return vllm_command(runs, host, port, context)
    except UserError as error:
        if not fall_back:
            raise
        _say(f"vLLM is not used: {error}")
        return []


def _llama_cpp(
    runs: list[str], limits: "Limits", kind: GgufType, fall_back: bool
) -> "LlamaCppEngine | None":
    """llama.cpp with the runs; None where it cannot serve them and another engine may."""
    from luthier.api import LlamaCppEngine, LlamaCppModels

    try:
        with terminal() as on_event:
            models = LlamaCppModels(runs, limits, kind, on_event)
    except UserError as error:
        if not fall_back:
            raise
        _say(f"llama.cpp is not used: {error}")
        return None
    return LlamaCppEngine(models, limits)


def _check_adapters(folder: Path | None, key: str | None) -> None:
    if folder is None:
        return
    if not folder.is_dir():
        raise UserError(f"--adapters {folder}: there is no such folder")
    if key is None:
        raise UserError("--adapters lets clients load adapters, so it needs --api-key-env")


def _named(text: str, base_model: str | None, trust: bool) -> str:
    """``NAME=FOLDER`` of a run as it is, of a PEFT folder with the run that stands for it."""
    name, equals, place = text.partition("=")
    if not equals or Path(text).exists():
        name, place = Path(text).resolve().name, text
    run = open_tuned(Path(place), base_model, trust)
    return text if run.root == Path(place) else f"{name}={run.root}"


def _key(variable: str | None) -> str | None:
    if variable is None:
        return None
    key = os.environ.get(variable, "").strip()
    if not key:
        raise UserError(f"--api-key-env {variable}: this environment variable is not set")
    return key
