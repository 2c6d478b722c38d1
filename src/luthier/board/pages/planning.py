"""The plan of a recipe that is being written: memory against the device, time, money."""

from collections.abc import Callable
from typing import TYPE_CHECKING

from nicegui import ui

from luthier.board.colours import Palette
from luthier.board.form import Form
from luthier.board.look import duration, failure, gigabytes
from luthier.board.work import work
from luthier.errors import UserError
from luthier.recipe import Recipe

if TYPE_CHECKING:
    from luthier.api import Planned

_HERE = "this machine"
_PARTS = {
    "weights": "weights",
    "adapter": "adapter",
    "gradients": "gradients",
    "optimizer": "optimiser states",
    "activations": "activations",
    "logits_and_loss": "logits and loss",
    "temporary": "temporary",
}


class PlanView:
    """Bars of memory, and what would make a run fit."""

    def __init__(self, colours: Palette, form: Form) -> None:
        self.colours = colours
        self.form = form
        self.wanted: Recipe | None = None
        self.busy = False

    def build(self) -> None:
        with ui.element("div").classes("line"):
            self.device = ui.select({_HERE: _HERE}, value=_HERE, label="Device")
            self.device.props("dense outlined options-dense").classes("grow")
            self.device.on_value_change(self._again)
        self.place = ui.column().classes("content-part").props("aria-live=polite")

        ui.timer(0.1, self._offer, once=True)

    async def _offer(self) -> None:
        """The devices of the catalogue, once the libraries that it needs are loaded."""
        names = await work(_devices)
        self.device.set_options({_HERE: _HERE} | names)

    def say(self, text: str) -> None:
        """A sentence in place of the plan."""
        self.wanted = None
        self.place.clear()
        with self.place:
            ui.label(text).classes("soft wrap")

    async def _again(self) -> None:
        if self.wanted is not None:
            await self.show(self.wanted)

    async def show(self, recipe: Recipe) -> None:
        """Plan ``recipe``; where it is changed meanwhile, the last one is planned next."""
        self.wanted = recipe
        if self.busy:
            return
        self.busy = True
        try:
            while True:
                asked = (self.wanted, self.device.value)
                with self.place:
                    waiting = ui.label("Planning …").classes("soft")
                found: Planned | UserError
                try:
                    found = await work(_plan, *asked)
                except UserError as error:
                    found = error
                if not waiting.is_deleted:
                    waiting.delete()
                if self.wanted is None:
                    return
                if (self.wanted, self.device.value) == asked:
                    break
        finally:
            self.busy = False
        self.place.clear()
        with self.place:
            if isinstance(found, UserError):
                failure(found)
            else:
                self._draw(found)

    def _draw(self, found: "Planned") -> None:
        plan = found.plans[0]
        memory = plan.memory
        parts = {_PARTS[name]: size for name, size in memory.parts.items() if size}
        parts["framework"] = memory.framework
        # Not all of them are there at once, so the bar is of their shares of the peak.
        total = sum(parts.values())
        most = max(memory.peak, plan.device_bytes)
        with ui.element("div").classes("line"):
            word = "fits" if plan.fits else "does not fit"
            ui.label(
                f"{gigabytes(memory.peak)} of {gigabytes(plan.device_bytes)}: it {word}"
            ).classes("pill " + ("better" if plan.fits else "worse"))
            ui.label(
                f"{plan.trainable_parameters:,} of {plan.total_parameters:,} parameters train"
            ).classes("small num")
        said = f"{gigabytes(memory.peak)} at the peak, of {gigabytes(plan.device_bytes)}"
        with ui.element("div").classes("stack").props(f'role=img aria-label="{said}"'):
            for number, size in enumerate(parts.values()):
                width = 100 * (size / total) * memory.peak / most
                colour = self.colours.runs[number % len(self.colours.runs)]
                ui.element("div").style(f"width:{width:.2f}%;background:{colour}")
            ui.element("div").classes("limit").style(
                f"left:calc({100 * plan.device_bytes / most:.2f}% - 3px)"
            )
        with ui.element("div").classes("legend"):
            for number, (name, size) in enumerate(parts.items()):
                with ui.element("span"):
                    colour = self.colours.runs[number % len(self.colours.runs)]
                    ui.element("span").classes("swatch").style(f"background:{colour}")
                    ui.label(f"{name} {gigabytes(size)}").classes("as-text num")
        facts = {
            "steps": f"{plan.work.steps:,}",
            "tokens": f"{plan.work.tokens:,}",
            "time": _between(plan.seconds, duration),
            "cost": _between(plan.cost, lambda dollars: f"${dollars:,.2f}"),
        }
        with ui.element("div").classes("facts"):
            for name, value in facts.items():
                with ui.element("div").classes("fact"):
                    ui.label(name).classes("soft small")
                    ui.label(value).classes("value")
        ui.label(f"times are {plan.basis}").classes("soft small")
        changes = found.changes.get(plan.method, [])
        if changes and changes[-1].fits:
            for change in changes:
                ui.label(f"{change.what}: {gigabytes(change.peak)}").classes("small num")
            settings = [s for change in changes for s in change.setting.split() if "=" in s]
            if settings and "GPUs" not in changes[-1].setting:
                ui.button(
                    "Make it fit", icon="compress", on_click=lambda: self.form.put(settings)
                ).props("no-caps unelevated color=filled")


def _devices() -> dict[str, str]:
    from luthier.api import accelerators

    return {key: device.name for key, device in accelerators().items()}


def _plan(recipe: Recipe, device: str) -> "Planned":
    from luthier.api import plan

    return plan(recipe, gpu=None if device == _HERE else device, capacity=False)


def _between(bounds: "tuple[float, float] | None", form: Callable[[float], str]) -> str:
    if bounds is None:
        return "–"
    low, high = form(bounds[0]), form(bounds[1])
    return low if low == high else f"{low} – {high}"
