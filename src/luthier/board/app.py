"""The board as an ASGI application: its pages, its files, and the guard around them."""

import threading
from collections.abc import Callable
from pathlib import Path

from fastapi import FastAPI
from nicegui import ui
from starlette.responses import FileResponse, JSONResponse, PlainTextResponse, Response
from starlette.types import ASGIApp

from luthier.board import look
from luthier.board.folders import Folders
from luthier.board.guard import Guard
from luthier.board.listing import MOST, page_of
from luthier.board.pages import advise, chat, compare, new, run, runs, sweep
from luthier.board.state import Board
from luthier.errors import UserError

# A report is a page of its own, and may be a stranger's: it gets no scripts and no origin.
_REPORT = {
    "Content-Security-Policy": "sandbox; default-src 'none'; style-src 'unsafe-inline'; img-src data:"
}
_ICON = (
    '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 32 32"><rect width="32" height="32" rx="7" '
    'fill="#2f6db3"/><path d="M10 6v20h13" fill="none" stroke="#fff" stroke-width="4"/></svg>'
)


def create_app(folders: Folders, token: str, port: int) -> ASGIApp:
    """The board over ``folders``; one in a process, as the component library has its pages.

    Args:
        token: what the first request has to hold.
    """
    board = Board(folders)
    app = FastAPI(title="Luthier", docs_url=None, redoc_url=None, openapi_url=None)

    def report(name: str) -> Response:
        def find() -> Path:
            found = folders.run(name)
            return folders.file(found, found.report_path.name)

        return _sent(find, "text/html; charset=utf-8", _REPORT)

    def file(name: str, path: str) -> Response:
        # Shown as text, never as a page.
        return _sent(
            lambda: folders.file(folders.run(name), path),
            "text/plain; charset=utf-8"
            if Path(path).suffix in _TEXT
            else "application/octet-stream",
            {} if Path(path).suffix in _TEXT else {"Content-Disposition": "attachment"},
        )

    def preferences() -> Response:
        return _sent(
            lambda: folders.preferences,
            "application/jsonl",
            {"Content-Disposition": "attachment; filename=preferences.jsonl"},
        )

    def rows(
        start: int = 0, end: int = MOST, sort: str = "", order: str = "", text: str = ""
    ) -> Response:
        return JSONResponse(page_of(board.index, start, end, sort, order, text))

    for path, handler in (
        ("/rows", rows),
        ("/report/{name}", report),
        ("/file/{name}/{path:path}", file),
        ("/preferences", preferences),
    ):
        app.add_api_route(path, handler, methods=["GET"], response_model=None)
    look.prepare()
    for page in (runs, run, new, compare, sweep, advise, chat):
        page.add(board)
    ui.run_with(
        app,
        title="Luthier",
        language="en-US",
        favicon=_ICON,
        tailwind=False,
        gzip_middleware_factory=None,  # nothing to save on this machine
        show_welcome_message=False,
        reconnect_timeout=10,
    )
    threading.Thread(target=board.index.read_all, name="board-index", daemon=True).start()
    return Guard(app, token, port)


_TEXT = {".json", ".jsonl", ".yaml", ".txt", ".md", ".jinja", ".html"}


def _sent(find: Callable[[], Path], kind: str, headers: dict[str, str]) -> Response:
    try:
        path = find()
    except UserError as error:
        return PlainTextResponse(f"{error}\n", status_code=404)
    if not path.is_file():
        return PlainTextResponse("there is no such file yet\n", status_code=404)
    return FileResponse(path, media_type=kind, headers=headers)
