"""The recipe: the one object that says everything about a run."""

from luthier.recipe.groups import (
    COLUMN_NAMES,
    METHOD_DEFAULTS,
    METRICS,
    OBJECTIVES,
    DataGroup,
    EvaluateGroup,
    KernelsGroup,
    MethodGroup,
    MethodName,
    ModelGroup,
    ObjectiveGroup,
    ReplayGroup,
    RunGroup,
    TrainGroup,
)
from luthier.recipe.reading import (
    as_recipe,
    load_recipe,
    model_recipe,
    parse_overrides,
    parse_recipe,
    stored_recipe,
)
from luthier.recipe.schema import Recipe, known_keys
from luthier.recipe.sources import hub_dataset

__all__ = [
    "COLUMN_NAMES",
    "METHOD_DEFAULTS",
    "METRICS",
    "OBJECTIVES",
    "DataGroup",
    "EvaluateGroup",
    "KernelsGroup",
    "MethodGroup",
    "MethodName",
    "ModelGroup",
    "ObjectiveGroup",
    "Recipe",
    "ReplayGroup",
    "RunGroup",
    "TrainGroup",
    "as_recipe",
    "hub_dataset",
    "known_keys",
    "load_recipe",
    "model_recipe",
    "parse_overrides",
    "parse_recipe",
    "stored_recipe",
]
