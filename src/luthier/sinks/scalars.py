"""The figures of an event under the names that trackers know from Transformers."""

from luthier.events import Evaluation, Step


def scalars(event: Step | Evaluation) -> dict[str, float]:
    """``train/loss`` … of a training step; ``eval/loss`` … of an evaluation."""
    figures = event.line.to_dict()
    del figures["step"]
    if isinstance(event, Step):
        return {f"train/{name}": value for name, value in figures.items()}
    return {
        f"eval/{name.removeprefix('eval_')}": value
        for name, value in figures.items()
        if name.startswith("eval_")
    }
