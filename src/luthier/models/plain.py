"""A model as it was published, for use without a run."""

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from luthier.events import OnEvent, ignore
from luthier.models.dtype import pick_device, pick_dtype
from luthier.models.load import load_model, load_tokenizer
from luthier.models.source import resolve


def load_plain(
    source: str, on_event: OnEvent = ignore
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The model that ``source`` names (see ``resolve``) and its tokenizer, ready to answer.

    Raises:
        UserError: there is no such model, or it cannot be loaded.
    """
    folder = resolve(source, on_event=on_event).folder
    device = pick_device()
    model = load_model(folder, pick_dtype(device), device=device, on_event=on_event)
    return model.eval(), load_tokenizer(folder)
