"""Names of a recipe held against those that a model has."""

import re
from collections.abc import Collection, Iterable, Sequence
from fnmatch import fnmatchcase

from peft import LoraConfig
from peft.tuners.lora import LoraLayer
from torch import nn
from transformers.pytorch_utils import Conv1D

from luthier.errors import UserError
from luthier.recipe import MethodGroup

_SHOWN = 12


def is_called(name: str, wanted: str) -> bool:
    """Whether ``wanted`` is a full name or the end of one, in whole parts."""
    return name == wanted or name.endswith(f".{wanted}")


def linear_leaves(model: nn.Module) -> list[str]:
    """The last parts of the names of all linear layers but the output layer, or that of a score."""
    head = getattr(model, "get_output_embeddings", lambda: None)() or getattr(model, "score", None)
    return sorted(
        {
            name.rpartition(".")[2]
            for name, module in model.named_modules()
            if isinstance(module, nn.Linear | Conv1D) and module is not head
        }
    )


def refuse_missing_layers(
    wanted: Iterable[str], names: Collection[str], leaves: Sequence[str]
) -> None:
    """Raise where a name in ``method.target_modules`` is that of no layer.

    Args:
        names: of all modules.
        leaves: what linear layers are called.
    """
    missing = _missing(wanted, names)
    if missing:
        raise UserError(
            f"method.target_modules: this model has no layer called {listed(missing)}; its linear "
            f"layers are {', '.join(leaves)}. Name those, or write all-linear"
        )


def check_method(method: MethodGroup, model: nn.Module) -> None:
    """Hold all names but those of ``target_modules`` against a model that has no adapter yet.

    Raises:
        UserError: one fits nothing in the model.
    """
    for key in ("rank_pattern", "alpha_pattern"):
        for pattern in getattr(method, key):
            _form(key, pattern)
    modules = [name for name, _ in model.named_modules() if name]
    missing = _missing(method.modules_to_save, modules)
    if missing:
        owners = dict.fromkeys(
            name.rpartition(".")[0].rpartition(".")[2] for name, _ in model.named_parameters()
        )
        raise UserError(
            f"method.modules_to_save: this model has no module called {listed(missing)}; modules "
            f"with weights are called {listed(list(owners))}"
        )
    for name, module in model.named_modules():
        if not any(is_called(name, wanted) for wanted in method.modules_to_save):
            continue
        if any(not parameter.is_floating_point() for parameter in module.parameters()):
            raise UserError(
                f"method.modules_to_save names {name}, which qlora keeps in 4 bits, so it cannot "
                "train completely; name modules such as embed_tokens, lm_head or norm"
            )
    targets = method.target_modules if isinstance(method.target_modules, list) else []
    twice = sorted({*targets} & {*method.modules_to_save})
    if twice:
        raise UserError(
            f"{listed(twice)} cannot both get an adapter (method.target_modules) and train completely "
            "(method.modules_to_save); choose one"
        )
    parameters = [name for name, _ in model.named_parameters()]
    missing = _missing(method.target_parameters, parameters)
    if missing:
        layers = {n for n, m in model.named_modules() if isinstance(m, nn.Linear | nn.Embedding)}
        others = dict.fromkeys(
            re.sub(r"^.*\.\d+\.", "", name)
            for name, parameter in model.named_parameters()
            if parameter.ndim > 1 and name.rpartition(".")[0] not in layers
        )
        known = f"those outside of layers are {listed(list(others))}" if others else (
            "it has none outside of layers, so use method.target_modules"
        )  # fmt: skip
        raise UserError(
            f"method.target_parameters: this model has no parameter called {listed(missing)}; {known}"
        )
    if method.layers_to_transform is not None:
        count = _layer_count(modules)
        beyond = [str(number) for number in method.layers_to_transform if number >= count]
        if beyond:
            raise UserError(
                f"method.layers_to_transform: there is no layer {listed(beyond)}; this model has "
                f"{count} layers, 0 to {count - 1}"
            )


def check_patterns(method: MethodGroup, model: nn.Module) -> None:
    """See that each pattern of ranks and alphas fits an adapted layer of ``model``.

    Raises:
        UserError: one does not.
    """
    adapted = [name for name, module in model.named_modules() if isinstance(module, LoraLayer)]
    for key in ("rank_pattern", "alpha_pattern"):
        for pattern in getattr(method, key):
            form = _form(key, pattern)
            if not any(form.match(name) for name in adapted):
                leaves = dict.fromkeys(name.rpartition(".")[2] for name in adapted)
                raise UserError(
                    f"method.{key}: '{pattern}' fits no layer with an adapter; those are "
                    f"{listed(list(leaves))}"
                )


def _form(key: str, pattern: str) -> re.Pattern[str]:
    """A pattern as PEFT reads it."""
    try:
        return re.compile(rf"(.*\.)?({pattern})$")
    except re.error as error:
        raise UserError(f"method.{key}: '{pattern}' is not a regular expression: {error}") from None


def exact_modules(config: LoraConfig, model: nn.Module) -> None:
    """Write full names for those of ``modules_to_save`` that PEFT would take for others as well.

    PEFT looks at the end of a name, letter by letter: ``norm`` is ``input_layernorm`` to it.
    """
    names = [name for name, _ in model.named_modules(remove_duplicate=False)]
    exact: list[str] = []
    for wanted in config.modules_to_save or []:
        meant = [name for name in names if is_called(name, wanted)]
        taken = [name for name in names if name.endswith(wanted)]
        exact += [wanted] if meant == taken else meant
    config.modules_to_save = exact or None


def choose_trained(model: nn.Module, method: MethodGroup) -> None:
    """Freeze what ``train_modules`` does not name and ``freeze_modules`` does.

    A pattern is a run of whole parts of a parameter's name, ``*`` standing for any letters of one:
    ``layers.1`` is not ``layers.10``. A weight with two names (a tied one) has both.

    Raises:
        UserError: a pattern fits nothing, or nothing is left to train.
    """
    if not method.train_modules and not method.freeze_modules:
        return
    found: set[str] = set()
    names: dict[int, list[str]] = {}
    parameters = dict(model.named_parameters(remove_duplicate=False))
    for name, parameter in parameters.items():
        names.setdefault(id(parameter), []).append(name)

    def named(parameter: nn.Parameter, patterns: Sequence[str]) -> bool:
        fit = [p for p in patterns if any(_fits(name, p) for name in names[id(parameter)])]
        found.update(fit)
        return bool(fit)

    for parameter in model.parameters():
        wanted = named(parameter, method.train_modules) or not method.train_modules
        parameter.requires_grad_(wanted and not named(parameter, method.freeze_modules))
    for key in ("train_modules", "freeze_modules"):
        unused = [pattern for pattern in getattr(method, key) if pattern not in found]
        if unused:
            raise UserError(
                f"method.{key}: nothing in this model is called {listed(unused)}; its parameters "
                f"have names like {listed(list(parameters), 4)}"
            )
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise UserError(
            "method.train_modules and method.freeze_modules leave nothing to train; freeze less"
        )


def _fits(name: str, pattern: str) -> bool:
    parts, wanted = name.split("."), pattern.split(".")
    count = len(wanted)
    return any(
        all(map(fnmatchcase, parts[start : start + count], wanted))
        for start in range(len(parts) - count + 1)
    )


def _missing(wanted: Iterable[str], names: Collection[str]) -> list[str]:
    return sorted(w for w in wanted if not any(is_called(name, w) for name in names))


def _layer_count(modules: Iterable[str]) -> int:
    """How many layers, as PEFT numbers them: by the first number in a module's name."""
    numbers = [[part for part in name.split(".") if part.isdigit()] for name in modules]
    return 1 + max((int(found[0]) for found in numbers if found), default=-1)


def listed(names: Sequence[str], shown: int = _SHOWN) -> str:
    """Names in a row, the first ones of many."""
    more = f" and {len(names) - shown:,} more" if len(names) > shown else ""
    return ", ".join(names[:shown]) + more
