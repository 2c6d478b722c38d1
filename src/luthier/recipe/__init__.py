"""The recipe: the one object that says everything about a run."""

from luthier.recipe.groups.data import COLUMN_NAMES, DataGroup, ReplayGroup
from luthier.recipe.groups.evaluate import METRICS, EvaluateGroup
from luthier.recipe.groups.kernels import KernelsGroup
from luthier.recipe.groups.method import METHOD_DEFAULTS, MethodGroup, MethodName
from luthier.recipe.groups.model import ModelGroup
from luthier.recipe.groups.objective import OBJECTIVES, ObjectiveGroup
from luthier.recipe.groups.run import RunGroup
from luthier.recipe.groups.train import TrainGroup
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
