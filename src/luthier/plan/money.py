"""What training costs, and when a model of one's own is cheaper than an API."""

from dataclasses import dataclass

from luthier.plan.catalogues import Accelerator
from luthier.records.plan import Range

# Decoding reads all weights for each token of a batch; with so many requests at once and this share
# of the memory bandwidth: rows × share × bandwidth / bytes of weights tokens per second.
_ROWS, _SHARE = 8, 0.6


@dataclass(frozen=True)
class BreakEven:
    """After how many tokens a tuned model breaks even.

    Attributes:
        own_price: US dollars per million tokens on the rented device, kept busy.
        tokens: least and most, until the saving has paid for training; None where it never does.
    """

    api_price: float
    own_price: float
    tokens: Range | None


def break_even(
    training: Range, api_price: float, accelerator: Accelerator, weight_bytes: int
) -> BreakEven | None:
    """The break-even point in tokens; None where the device's price is unknown.

    Args:
        training: US dollars.
        api_price: US dollars per million tokens.
        weight_bytes: of the weights that serve.
    """
    if accelerator.bandwidth is None or accelerator.price_per_hour is None:
        return None
    per_second = _ROWS * _SHARE * accelerator.bandwidth * 1e9 / weight_bytes
    own = accelerator.price_per_hour / 3600 / per_second * 1e6
    saving = api_price - own
    if saving <= 0:
        return BreakEven(api_price, own, None)
    return BreakEven(api_price, own, (training[0] / saving * 1e6, training[1] / saving * 1e6))
