"""What MkDocs builds beside docs/*.md: pages made of the code, of notebooks and of files at the root.

MkDocs calls the functions whose names begin with ``on_`` (``hooks`` in mkdocs.yml). The pages of docs/ are
written so that their links also work in the repository; here links that lead out of docs/ go to the copy
that the site has of that file.
"""

import json
import posixpath
import re
from collections.abc import Iterator
from html import unescape
from pathlib import Path
from typing import Any

from latex2mathml.converter import convert as to_mathml
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
# Pages of the site that are files elsewhere in the repository.
ELSEWHERE = {
    "results.md": ROOT / "benchmarks/RESULTS.md",
    "security.md": ROOT / "SECURITY.md",
    "contributing.md": ROOT / "CONTRIBUTING.md",
    "changelog.md": ROOT / "CHANGELOG.md",
    "notebooks/train-and-prove.md": ROOT / "notebooks/train-and-prove.ipynb",
    "notebooks/data-and-plan.md": ROOT / "notebooks/data-and-plan.ipynb",
}
_LINK = re.compile(r"\]\((?!\w+:|#)([^)#\s]+)(#[^)\s]*)?\)")
_MADE = re.compile(r"<!-- made by tools/docs_site.py: (\w+) -->")
_FENCED = re.compile(r"^(```.*?^```$)", re.M | re.S)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that are made here, and the files that pages link to."""
    for uri, path in ELSEWHERE.items():
        files.append(File.generated(config, uri, content=text_of(path)))
    linked = {
        target
        for page in list(files.documentation_pages())
        for target in outside(page.src_uri, page.content_string)
    }
    for path in sorted(linked):
        uri = site_uri(path)
        if files.get_file_from_path(uri) is None:
            files.append(File.generated(config, uri, abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Let each link lead to a page or file of the site."""
    uri = page.file.src_uri

    def moved(link: re.Match[str]) -> str:
        target = site_uri(_target(uri, link[1]))
        near = posixpath.relpath(target, posixpath.dirname(uri) or ".")
        return f"]({near}{link[2] or ''})"

    whole = _MADE.sub(lambda found: made(found[1]), markdown)
    parts = _FENCED.split(whole)
    return "".join(p if p.startswith("```") else _LINK.sub(moved, p) for p in parts)


def on_page_content(html: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Formulas as MathML, which browsers draw themselves."""

    def drawn(found: re.Match[str]) -> str:
        text = unescape(found[2])
        if found[1] == "span":
            return to_mathml(text)
        return to_mathml(text, display="block").replace("<math", '<math tabindex="0"', 1)

    return re.sub(
        r'<(div|span) class="arithmatex">\\[\[(](.*?)\\[\])]</\1>', drawn, html, flags=re.S
    )


def on_post_page(output: str, page: Page, config: MkDocsConfig) -> str:
    """Name the dialog of the search, which the theme does not."""
    return output.replace('role="dialog"', 'role="dialog" aria-label="Search"')


def outside(uri: str, markdown: str) -> Iterator[Path]:
    """The files to which a page links that are neither pages nor in docs/."""
    for part in _FENCED.split(markdown):
        if not part.startswith("```"):
            for link in _LINK.finditer(part):
                path = _target(uri, link[1])
                if not path.is_relative_to(DOCS) and path not in ELSEWHERE.values():
                    yield path


def _target(uri: str, link: str) -> Path:
    """The file of the repository, or the page made here, that a link of a page means."""
    origin = ELSEWHERE.get(uri, DOCS / uri)
    path = Path(posixpath.normpath((origin.parent / link).as_posix()))
    if path.is_file() or path.is_relative_to(DOCS):  # MkDocs checks links within docs/
        return path
    raise PluginError(f"{origin.relative_to(ROOT)}: the link {link} leads to no file")


def site_uri(path: Path) -> str:
    for uri, elsewhere in ELSEWHERE.items():
        if path == elsewhere:
            return uri
    if path.is_relative_to(DOCS):
        return path.relative_to(DOCS).as_posix()
    return f"files/{path.relative_to(ROOT).as_posix()}"


def text_of(path: Path) -> str:
    """A file outside docs/ as Markdown."""
    return notebook_page(path) if path.suffix == ".ipynb" else path.read_text("utf-8")


def notebook_page(path: Path) -> str:
    """The cells of a notebook with what they printed, and a link to the notebook itself."""
    parts = []
    for cell in json.loads(path.read_text("utf-8"))["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            parts.append(source)
            continue
        parts.append(f"```python\n{source}\n```")
        for output in cell["outputs"]:
            data: dict[str, Any] = output.get("data", {})
            if "text/html" in data:
                parts.append("".join(data["text/html"]))
            elif text := "".join(output.get("text", data.get("text/plain", ""))):
                parts.append(f"```text\n{text.rstrip()}\n```")
    place = f"The notebook is `{path.relative_to(ROOT).as_posix()}` in the repository."
    return "\n\n".join([parts[0], place, *parts[1:]]) + "\n"


def made(what: str) -> str:
    """The part of a page that is made of the code."""
    return {"commands": commands, "functions": functions}[what]()


def commands() -> str:
    """Every command with its help, from the command line's own definitions."""
    import typer

    from luthier.cli import main
    from luthier.cli.app import app

    assert main  # its import registers the commands
    text = []
    for name, command in sorted(leaves(typer.main.get_command(app), "luthier")):
        text += [f"## {name}", "", *_described(name, command), ""]
    return "\n".join(text)


def leaves(command: Any, name: str) -> Iterator[tuple[str, Any]]:
    """The commands that do something, by what one types."""
    if not hasattr(command, "commands"):
        yield name, command
    else:
        for part, inner in command.commands.items():
            yield from leaves(inner, f"{name} {part}")


def _described(name: str, command: Any) -> list[str]:
    shown = [p for p in command.params if not getattr(p, "hidden", False)]
    arguments = [p for p in shown if p.param_type_name == "argument"]
    usage = " ".join([name, "[OPTIONS]", *(_argument(p) for p in arguments)])
    lines = [_cell(command.help or "", breaks=True), "", "```text", usage, "```", ""]
    lines += ["| option | meaning | default |", "|---|---|---|"]
    for param in [*arguments, *(p for p in shown if p not in arguments)]:
        if param in arguments:
            names = [f"`{_argument(param)}`"]
        else:
            names = [f"`{one}`" for one in (*param.opts, *param.secondary_opts)]
            value = "" if param.is_flag else param.metavar or param.bare_type().strip("<>")
            names[-1] += f" {_cell(value)}" if value else ""
        default = param.default if not callable(param.default) else None
        empty = default in (None, False, "", ()) or param.required
        lines.append(
            f"| {', '.join(names)} | {_cell(param.help or '')} | {'' if empty else f'`{default}`'} |"
        )
    return lines


def _argument(param: Any) -> str:
    return str(param.get_usage_pieces(None)[0])


def _cell(text: str, breaks: bool = False) -> str:
    """Text of the command line in a page: words in angle brackets are no HTML."""
    safe = text.replace("<", "&lt;").replace("|", "\\|")
    return safe if breaks else " ".join(safe.split())


def functions() -> str:
    """The door, its events and records, by mkdocstrings from their docstrings."""
    import luthier

    text = []
    for name, module in sorted(
        luthier._DOOR.items(), key=lambda one: (one[0][0].isupper(), one[0])
    ):
        text += [f"::: {module}.{name}"]
        if name[0].isupper() and name != "Run":  # a recipe's keys have a page of their own
            text += ["    options:", "      members: false"]
        text.append("")
    for module, title in (("events", "Events"), ("records", "Records")):
        text += [f"## {title}", "", f"::: luthier.{module}"]
        text += ["    options:", "      show_root_heading: false", "      heading_level: 3", ""]
    return "\n".join(text)
