"""A sweep as one self-contained HTML file."""

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined

from luthier.compare.tables import duration
from luthier.files import write_text
from luthier.records.sweep import Sweep
from luthier.sweep import drawing
from luthier.sweep.folder import SweepFolder
from luthier.sweep.space import shown
from luthier.sweep.tables import VERDICT_NOTE, short, trials_table, verdict_text


def write_page(sweep: Sweep, folder: SweepFolder) -> None:
    """Write ``sweep.html``: the verdict, what mattered, every trial.

    Raises:
        UserError: it cannot be written.
    """
    loader = ChoiceLoader(
        [PackageLoader("luthier.sweep", "."), PackageLoader("luthier.compare", ".")]
    )
    # Every text of a recipe is escaped.
    environment = Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    best = folder.best_path.read_text("utf-8") if sweep.recipe else None
    page = environment.get_template("sweep.html.j2")
    write_text(
        folder.page_path,
        page.render(
            sweep=sweep,
            verdict=verdict_text(sweep),
            note=VERDICT_NOTE,
            trials=trials_table(sweep),
            figures=[f for f in (drawing.by_trial(sweep), drawing.curves(sweep)) if f],
            slices=drawing.slices(sweep),
            space=[(dimension.key, shown(dimension)) for dimension in sweep.space],
            best_recipe=best,
            short=short,
            duration=duration,
        ),
    )
