"""A model as it was published, for use without a run."""

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from luthier.models.dtype import pick_device, pick_dtype
from luthier.models.load import load_model, load_tokenizer
from luthier.models.source import resolve


def load_plain(source: str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The model that ``source`` names (see ``resolve``) and its tokenizer, ready to answer.

    Raises:
        UserError: there is no such model, or it cannot be loaded.
    """
    folder = resolve(source).folder
    device = pick_device()
    return load_model(folder, pick_dtype(device), device=device).eval(), load_tokenizer(folder)
