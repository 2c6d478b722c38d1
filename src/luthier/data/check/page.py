"""The report of `luthier data check` as one HTML file that needs nothing else."""

from importlib.resources import files
from typing import Any

from jinja2 import Environment, StrictUndefined


def render_page(report: dict[str, Any]) -> str:
    """The page; every text of the data is escaped."""
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    template = environment.from_string(
        files("luthier.data.check").joinpath("page.html.j2").read_text("utf-8")
    )
    return template.render(report=report)
