"""Whether a model keeps packed rows apart is found out, not assumed."""

from typing import Any

from families import make_model
from torch import Tensor, nn

from luthier.kernels.separation import rows_stay_apart


class Leaky(nn.Module):
    """Takes positions and ignores them: packed rows see each other."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = make_model("llama", 96)

    def get_input_embeddings(self) -> nn.Module:
        return self.inner.get_input_embeddings()

    def forward(self, input_ids: Tensor, position_ids: Tensor, use_cache: bool) -> Any:
        return self.inner(input_ids=input_ids, use_cache=use_cache)


def test_a_leak_between_packed_rows_is_seen() -> None:
    assert not rows_stay_apart(Leaky())  # type: ignore[arg-type]
