"""The recipe as a form: a control for each key, made from the schema, with its documentation."""

from collections.abc import Callable, Iterable
from typing import Any

from nicegui import ui

from luthier.recipe import Recipe, parse_recipe
from luthier.recipe.keys import Key, all_keys, group_purpose, yaml_value

# What most people change; the rest is folded away.
_USUAL = {
    "method.name",
    "method.lora_r",
    "method.lora_alpha",
    "data.max_length",
    "data.validation_fraction",
    "train.num_train_epochs",
    "train.max_steps",
    "train.per_device_train_batch_size",
    "train.gradient_accumulation_steps",
    "train.learning_rate",
    "train.gradient_checkpointing",
    "train.early_stopping_patience",
    "evaluate.metrics",
    "evaluate.probe",
    "run.name",
}
# Asked before, or the board's own.
_ELSEWHERE = {"model.source", "data.train", "run.dir"}


class Form:
    """The keys of a recipe as people fill them in: empty is the default.

    Attributes:
        values: what differs from the default, as YAML, by key.
    """

    def __init__(self, on_change: Callable[[], None]) -> None:
        self.values: dict[str, str] = {}
        self._keys = {key.path: key for key in all_keys()}
        self._controls: dict[str, Any] = {}
        self._on_change = on_change

    def build(self) -> None:
        """All groups: the usual keys open, the rest folded."""
        groups = list(dict.fromkeys(key.group for key in self._keys.values()))
        shown = [key for key in self._keys.values() if key.path not in _ELSEWHERE]
        with ui.element("div").classes("fields"):
            for key in shown:
                if key.path in _USUAL:
                    self._field(key)
        for group in groups:
            rest = [key for key in shown if key.group == group and key.path not in _USUAL]
            if rest:
                with ui.element("details"):
                    with ui.element("summary"):
                        ui.label(f"More of {group}").classes("as-text")
                    ui.label(group_purpose(group)).classes("soft small")
                    with ui.element("div").classes("fields"):
                        for key in rest:
                            self._field(key)

    def _field(self, key: Key) -> None:
        with ui.element("div"):
            control: Any
            given = self.values.get(key.path)
            if key.type == "true or false":
                on = bool(key.default) if given is None else given == "true"
                control = ui.switch(key.path, value=on)
                control.on_value_change(lambda e: self._set(key, "true" if e.value else "false"))
            elif key.type == "string" and key.allowed and not key.allowed.startswith("keys"):
                value: str = given or key.default
                names = key.allowed.split(", ")
                if value not in names:  # a plugin's, for instance
                    names.append(value)
                control = ui.select(names, label=key.path, value=value)
                control.props("dense outlined options-dense")
                control.on_value_change(lambda e: self._set(key, str(e.value)))
            else:
                control = ui.input(key.path, value=given or "", placeholder=key.usual)
                control.props("dense outlined stack-label debounce=300")
                control.on_value_change(lambda e: self._set(key, e.value or ""))
            self._controls[key.path] = control
            about = key.description
            if key.allowed and key.type != "string":
                about += f" ({key.type}, {key.allowed})"
            ui.label(about).classes("field-doc")

    def _set(self, key: Key, text: str) -> None:
        text = text.strip()
        usual = None if key.default is None else yaml_value(key.default)
        if not text or text == usual:
            self.values.pop(key.path, None)
        else:
            self.values[key.path] = text
        self._on_change()

    def fill(self, recipe: Recipe) -> None:
        """What ``recipe`` sets; call before ``build``."""
        for path, key in self._keys.items():
            value = getattr(getattr(recipe, key.group), key.name)
            usual = (key.by_method or {}).get(recipe.method.name, key.default)
            if path in _ELSEWHERE or value == usual:
                continue
            plain = value.model_dump() if hasattr(value, "model_dump") else value
            as_typed = isinstance(plain, str) and _is_text(key)
            self.values[path] = plain if as_typed else yaml_value(plain)

    def put(self, settings: Iterable[str]) -> None:
        """``group.key=value`` settings, shown where they are asked."""
        for setting in settings:
            path, _, value = setting.partition("=")
            self.values[path] = value
            control = self._controls[path]
            control.set_value(value == "true" if isinstance(control, ui.switch) else value)

    def recipe(self, model: str, data: list[str]) -> Recipe:
        """The recipe that is filled in.

        Raises:
            UserError: a key or value is wrong.
        """
        settings = [f"model.source={yaml_value(model)}", f"data.train={yaml_value(data)}"]
        for path, text in self.values.items():
            # A text is a text, though it looks like a number.
            quoted = _is_text(self._keys[path]) and text != "null"
            settings.append(f"{path}={yaml_value(text) if quoted else text}")
        return parse_recipe("", settings, origin="the form")


def _is_text(key: Key) -> bool:
    """Whether what is typed for ``key`` is taken as it stands, and not as YAML."""
    return key.type in ("string", "string or null")
