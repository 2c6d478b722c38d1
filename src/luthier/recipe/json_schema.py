"""The JSON Schema of recipes: made from the classes, shipped as a file, named by recipes."""

import json
from importlib.resources import files
from pathlib import Path
from typing import Any

from pydantic.json_schema import GenerateJsonSchema

from luthier.recipe.groups.method import METHOD_DEFAULTS
from luthier.recipe.schema import Recipe

SCHEMA_PATH = Path(str(files("luthier.recipe"))).absolute() / "recipe.schema.json"


class _Generator(GenerateJsonSchema):
    # What editors complete YAML by; nothing of ours needs a later draft.
    schema_dialect = "http://json-schema.org/draft-07/schema#"

    def field_title_should_be_set(self, schema: Any) -> bool:
        return False  # 'Lora R' says nothing that lora_r does not

    def generate(self, schema: Any, mode: Any = "validation") -> dict[str, Any]:
        return {"$schema": self.schema_dialect, **super().generate(schema, mode)}


def json_schema() -> dict[str, Any]:
    """The JSON Schema of a recipe: type, bounds, default and description of each key."""
    schema = Recipe.model_json_schema(schema_generator=_Generator)
    for key in METHOD_DEFAULTS["full"]:
        field = schema["$defs"]["TrainGroup"]["properties"][key]
        by_method = (f"{values[key]} for {name}" for name, values in METHOD_DEFAULTS.items())
        field["description"] += f"; default: {', '.join(by_method)}"
    return schema


def json_schema_text() -> str:
    """The file ``recipe.schema.json``, to the byte."""
    return json.dumps(json_schema(), indent=2, ensure_ascii=False) + "\n"


def schema_comment() -> str:
    """The first line of a recipe that we write: it tells an editor where the installed schema is.

    A URI and not a path: editors end the name at the first space.
    """
    return f"# yaml-language-server: $schema={SCHEMA_PATH.as_uri()}"
