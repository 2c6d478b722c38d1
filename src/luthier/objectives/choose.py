"""The objective that a recipe names."""

from luthier import plugins
from luthier.kernels.head import HeadLoss
from luthier.objectives.distill import Distill
from luthier.objectives.objective import Objective
from luthier.objectives.preference import KTO, Preference
from luthier.objectives.reference import Reference
from luthier.objectives.reward import Reward
from luthier.objectives.sft import SFT
from luthier.objectives.teacher import Lessons
from luthier.recipe import ObjectiveGroup


def choose(
    settings: ObjectiveGroup,
    packed: bool,
    head: HeadLoss | None,
    reference: Reference | None = None,
    lessons: Lessons | None = None,
) -> Objective:
    """The objective of ``settings``.

    Args:
        packed, head: as of ``SFT``.
        reference: where ``settings.has_reference``.
        lessons: of distillation, as of ``Distill``.

    Raises:
        UserError: a plugin of that name cannot be used.
    """
    if settings.name == "sft":
        return SFT(packed, head)
    if settings.name == "distill":
        return Distill(settings, lessons, packed, head)
    if settings.name == "kto":
        assert reference is not None
        return KTO(settings, reference, packed, head)
    if settings.name == "reward":
        return Reward(settings, packed)
    if settings.learns_from == "pairs":
        return Preference(settings, reference if settings.has_reference else None, packed, head)
    made: Objective = plugins.load("luthier.objectives", settings.name)()
    return made
