"""Recipes made from the configurations of LLaMA-Factory, Axolotl and TRL."""

from luthier.recipe.convert.conversion import Entry
from luthier.recipe.convert.convert import TOOLS, Converted, convert_recipe

__all__ = ["TOOLS", "Converted", "Entry", "convert_recipe"]
