"""Whether a model separates packed rows."""

import torch
from peft import PeftModel
from torch import Tensor
from transformers import PreTrainedModel

from luthier.kernels.attention import row_inputs
from luthier.models.adapters import inner


@torch.no_grad()
def rows_stay_apart(model: PreTrainedModel | PeftModel) -> bool:
    """Whether packed rows are hidden from each other in this model, with this attention.

    Two short rows are run as one packed batch; then a token of the first is changed. The second
    row's logits may move only by rounding, measured against what a change of its own first token
    does to them. Models that ignore ``position_ids`` or carry a state from token to token fail.
    """
    vocabulary: int = inner(model).get_input_embeddings().weight.shape[0]
    device = next(model.parameters()).device
    first = torch.arange(1, 9, device=device) % vocabulary
    second = torch.arange(11, 19, device=device) % vocabulary
    training = model.training
    model.eval()

    def second_logits(first: Tensor, second: Tensor) -> Tensor:
        positions = torch.arange(8, device=device).repeat(2)[None]
        output = model(
            input_ids=torch.cat([first, second])[None],
            position_ids=positions,
            use_cache=False,
            output_hidden_states=True,
            **row_inputs(inner(model), (8, 8)),
        )
        # Sequence classifiers have one score for all of it.
        found = output.logits if output.logits.ndim == 3 else output.hidden_states[-1]
        return found[0, 9:].float()  # behind the token that is changed

    def changed(row: Tensor) -> Tensor:
        return torch.cat([(row[:1] + 7) % vocabulary, row[1:]])

    try:
        plain = second_logits(first, second)
        leak = (second_logits(changed(first), second) - plain).norm()
        own = (second_logits(first, changed(second)) - plain).norm()
    except (TypeError, ValueError, RuntimeError):
        return False  # it cannot even be called with positions
    finally:
        model.train(training)
    return bool(leak <= 0.01 * own)
