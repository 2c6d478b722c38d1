"""The group `run`."""

from pydantic import Field

from luthier.recipe.groups.group import Group


class RunGroup(Group):
    """Where the run folder goes."""

    name: str | None = Field(
        None,
        description="name of the run folder; without it a name is made from the recipe",
        examples=["first"],
    )
    dir: str = Field(
        "runs", description="folder that holds the run folders", examples=["/data/runs"]
    )
