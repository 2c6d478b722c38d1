"""The model that answers: a run's, or a published one."""

from pathlib import Path

from transformers import PreTrainedTokenizerBase

from luthier.data.template import choose_template
from luthier.events import OnEvent, ignore
from luthier.generate.answer import Model
from luthier.models.plain import load_plain
from luthier.models.tuned import load_tuned
from luthier.run import Run, open_run


def load_answering(
    source: str, on_event: OnEvent = ignore
) -> tuple[Model, PreTrainedTokenizerBase]:
    """The tuned model of the run at ``source``, else the model that ``source`` names.

    Raises:
        UserError: the run has not finished, or there is no such model.
    """
    if Run(Path(source)).recipe_path.is_file():
        models = load_tuned(open_run(Path(source)), on_event=on_event)
        return models.tuned, models.tokenizer
    model, tokenizer = load_plain(source, on_event)
    choose_template(tokenizer, "auto")
    return model, tokenizer
