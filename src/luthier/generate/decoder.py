"""The forward pass of the Llama-like families for generation, in as few operations as can be.

It reads tokens of many rows at once, laid end to end: pieces of prompts, next tokens, guesses. Only
the logits that are asked for are computed. Families that are not known here, and layers that are not
plain (4-bit, DoRA), run by Transformers.
"""

import logging
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain, groupby
from typing import Any, TypeAlias

import torch
import torch.nn.functional as F
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from transformers import PreTrainedModel

from luthier.generate.cache import Cache, Piece, Sight, free_memory
from luthier.generate.products import Active, Product, Unknown, can_pack, hooked, packed, product
from luthier.models.adapters import inner

log = logging.getLogger(__name__)
Model: TypeAlias = PreTrainedModel | PeftModel

FAMILIES = ("llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3_text", "phi3")
_Norm: TypeAlias = nn.Module | partial[Tensor]
_ROWS = 64  # of a step, in whose order weights are packed
_ROTARY = {"default", "linear", "llama3", "yarn"}  # the others depend on the length of the row


@dataclass(frozen=True)
class _Layer:
    norms: tuple[_Norm, _Norm, _Norm | None, _Norm | None]  # before and after attention and MLP
    qkv: Product
    heads: tuple[_Norm, _Norm] | None  # of queries and keys
    out: Product
    gate_up: Product
    down: Product
    activation: nn.Module
    rotary: str | None  # which, where there are several
    scale: float
    softcap: float | None


class Decoder:
    """A model that reads and continues rows.

    Attributes:
        adapters: names of those that it knows.

    Raises:
        Unknown: the model is of another family, or some layer of it is not a plain one.
    """

    def __init__(self, model: Model) -> None:
        base = inner(model)
        config = base.config
        if config.model_type not in FAMILIES or not type(base).__module__.startswith(
            "transformers."
        ):
            raise Unknown(f"{config.model_type} is not a family that is computed here")
        if getattr(config, "use_bidirectional_attention", False):
            raise Unknown("its tokens see those after them")
        body = base.model
        self._rotary = body.rotary_emb
        kinds = getattr(self._rotary, "rope_type", "default")
        if not set(kinds.values() if isinstance(kinds, dict) else [kinds]) <= _ROTARY:
            raise Unknown("its rotary embedding depends on the length of the row")
        self._embed = body.embed_tokens
        if not isinstance(self._embed, nn.Embedding) or hooked(self._embed):
            raise Unknown("its embedding is not a plain one")
        self._layers = [_layer(block) for block in body.layers]
        self._norm = _norm(body.norm)
        self._head = product(base.get_output_embeddings())
        self._cap = getattr(config, "final_logit_softcapping", None)
        attention = body.layers[0].self_attn
        self._width = int(attention.head_dim)
        self._heads = int(config.num_key_value_heads)
        self._groups = int(config.num_attention_heads) // self._heads
        self._windows = [_window(block.self_attn, config) for block in body.layers]
        self.adapters = set(model.peft_config) if isinstance(model, PeftModel) else set()
        self.device: torch.device = base.device
        self.dtype: torch.dtype = self._embed.weight.dtype

    def cache(self, slots: int, room: int) -> Cache:
        return Cache(
            len(self._layers), self._heads, self._width, slots, room, self.dtype, self.device
        )

    def pack(self, earlier: "Decoder | None" = None) -> None:
        """Let products read the weights from a copy in their own order, where that is faster.

        The copy takes a third of free memory at most. Later changes of the weights are not seen.

        Args:
            earlier: a decoder of the same weights, whose copy is taken over.
        """
        products = self._products()
        if earlier is not None:
            for product, other in zip(products, earlier._products(), strict=True):
                product.packed = other.packed
            return
        size = sum(product.weight.nbytes for product in products)
        if can_pack(self.dtype, self.device) and size <= free_memory(self.device) / 3:
            for product in products:
                product.packed = packed(product.weight, _ROWS)

    def _products(self) -> list[Product]:
        blocks = [(layer.qkv, layer.out, layer.gate_up, layer.down) for layer in self._layers]
        return [*chain.from_iterable(blocks), self._head]

    @torch.no_grad()
    def read(self, pieces: Sequence[Piece], wanted: Sequence[int] | None = None) -> Tensor:
        """Read the tokens of ``pieces`` into their caches.

        Args:
            wanted: of all tokens, in the order of the pieces, those whose logits are returned; None
                for the last of each piece.

        Returns:
            Logits (wanted, V).
        """
        pieces = list(pieces)
        ids = torch.tensor([t for piece in pieces for t in piece.tokens], device=self.device)
        at = [range(piece.start, piece.end) for piece in pieces]
        positions = torch.tensor([[p for each in at for p in each]], device=self.device)
        if wanted is None:
            ends, last = [], -1
            for piece in pieces:
                last += len(piece.tokens)
                ends.append(last)
            wanted = ends
        names = [piece.adapter for piece in pieces for _ in piece.tokens]
        active = _runs(names)
        sight = Sight(pieces, self._windows, self._groups)
        x = self._embed(ids)
        turns = {kind: self._turn(x, positions, kind) for kind in {b.rotary for b in self._layers}}
        for index, layer in enumerate(self._layers):
            seen = self._look(x, index, layer, turns[layer.rotary], sight, active)
            if layer is self._layers[-1] and len(wanted) != len(x):
                # Of the others, what they say is not wanted, and what they remember is in the cache.
                chosen = torch.tensor(wanted, dtype=torch.long, device=self.device)
                x, seen = x[chosen], seen[chosen]
                active = _runs([names[place] for place in wanted])
            x = self._feed(x, seen, layer, active)
        logits = self._head(self._norm(x), active)
        return logits if self._cap is None else torch.tanh(logits / self._cap) * self._cap

    def _turn(self, x: Tensor, positions: Tensor, kind: str | None) -> tuple[Tensor, Tensor]:
        """Cosines and sines (N, 1, d), the sines of the first half negated: see ``_rotate``."""
        extra = () if kind is None else (kind,)
        cos, sin = self._rotary(x[None], positions, *extra)
        half = sin.shape[-1] // 2
        sin = torch.cat([-sin[..., :half], sin[..., half:]], dim=-1)
        return cos[0][:, None], sin[0][:, None]

    def _look(
        self,
        x: Tensor,
        index: int,
        layer: _Layer,
        turn: tuple[Tensor, Tensor],
        sight: Sight,
        active: Active,
    ) -> Tensor:
        """What each token sees of its row (N, heads x d); its keys and values are remembered."""
        count = self._heads * self._groups
        mixed = layer.qkv(layer.norms[0](x), active).view(len(x), -1, self._width)
        asked = mixed[:, : count + self._heads]
        if layer.heads is not None:
            asked = torch.cat(
                [layer.heads[0](asked[:, :count]), layer.heads[1](asked[:, count:])], dim=1
            )
        mixed[:, : count + self._heads] = _rotate(asked, *turn)
        return sight.attend(index, mixed, layer.scale, layer.softcap)

    def _feed(self, x: Tensor, seen: Tensor, layer: _Layer, active: Active) -> Tensor:
        """``x`` (N, H) after the rest of the layer."""
        _, middle, after_attention, after_mlp = layer.norms
        seen = layer.out(seen, active)
        x = x + (seen if after_attention is None else after_attention(seen))
        gate, up = layer.gate_up(middle(x), active).chunk(2, dim=-1)
        made = layer.down(layer.activation(gate).mul_(up), active)
        return x + (made if after_mlp is None else after_mlp(made))


def _runs(names: Sequence[str | None]) -> Active:
    """The adapters that are on, by those of all tokens; each as often as it begins anew."""
    active, start = [], 0
    for name, run in groupby(names):
        end = start + sum(1 for _ in run)
        if name is not None:
            active.append((name, slice(start, end)))
        start = end
    return active


_checked: "weakref.WeakKeyDictionary[nn.Module, bool]" = weakref.WeakKeyDictionary()


def find_decoder(model: Model) -> Decoder | None:
    """The decoder of ``model`` with the adapters that it has now; None where there is none for it.

    The first time, its logits are held against those of Transformers.
    """
    try:
        decoder = Decoder(model)
        adapter = standing_adapter(model)
    except (Unknown, AttributeError):
        return None
    base = inner(model)
    if base not in _checked:
        try:
            _checked[base] = _agrees(decoder, base, adapter)
        except (TypeError, ValueError, RuntimeError) as error:  # parts on several devices, say
            log.debug("the decoder cannot run this model: %s", error)
            _checked[base] = False
    return decoder if _checked[base] else None


def standing_adapter(model: Model) -> str | None:
    """The adapter that is on in ``model`` as it stands; None where none is.

    Raises:
        Unknown: several are on.
    """
    layers = [module for module in model.modules() if isinstance(module, LoraLayer)]
    names = {
        name for layer in layers if not layer.disable_adapters for name in layer.active_adapters
    }
    if len(names) > 1:
        raise Unknown("several adapters at once")
    return next(iter(names), None)


@torch.no_grad()
def _agrees(decoder: Decoder, base: Any, adapter: str | None) -> bool:
    """Whether the logits of a short row, read in two pieces, are those of Transformers."""
    draw = torch.Generator().manual_seed(0)
    tokens = torch.randint(base.config.vocab_size, (12,), generator=draw).tolist()
    expected = base(input_ids=torch.tensor([tokens], device=decoder.device), use_cache=False)
    cache = decoder.cache(1, len(tokens))
    decoder.read([Piece(cache, 0, 0, tokens[:7], adapter)])
    got = decoder.read([Piece(cache, 0, 7, tokens[7:], adapter)], range(5)).float()
    wanted = expected.logits[0, 7:].float()
    tolerance = 1e-3 if decoder.dtype == torch.float32 else 0.1
    return bool((got - wanted).abs().max() <= tolerance * wanted.std())


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """x cos + rotate_half(x) sin: the halves change places, and the sign is in ``sin``.

    Where only the first numbers of a head turn, cosines and sines are fewer.
    """
    if cos.shape[-1] < x.shape[-1]:
        turning, still = x.split([cos.shape[-1], x.shape[-1] - cos.shape[-1]], dim=-1)
        return torch.cat([_rotate(turning, cos, sin), still], dim=-1)
    return (x * cos).add_(x.roll(x.shape[-1] // 2, -1) * sin)


def _layer(block: Any) -> _Layer:
    attention, mlp = block.self_attn, block.mlp
    gemma = hasattr(block, "pre_feedforward_layernorm")
    middle = block.pre_feedforward_layernorm if gemma else block.post_attention_layernorm
    heads = None
    if hasattr(attention, "q_norm"):
        heads = _norm(attention.q_norm), _norm(attention.k_norm)
    return _Layer(
        norms=(
            _norm(block.input_layernorm),
            _norm(middle),
            _norm(block.post_attention_layernorm) if gemma else None,
            _norm(block.post_feedforward_layernorm) if gemma else None,
        ),
        qkv=_whole(attention, "qkv_proj")
        or product(attention.q_proj, attention.k_proj, attention.v_proj),
        heads=heads,
        out=product(attention.o_proj),
        gate_up=_whole(mlp, "gate_up_proj") or product(mlp.gate_proj, mlp.up_proj),
        down=product(mlp.down_proj),
        activation=mlp.activation_fn if hasattr(mlp, "activation_fn") else mlp.act_fn,
        rotary=attention.layer_type if attention.config.model_type == "gemma3_text" else None,
        scale=float(attention.scaling),
        softcap=getattr(attention, "attn_logit_softcapping", None),
    )


def _whole(module: nn.Module, name: str) -> Product | None:
    """Of a family whose weights are one piece already (Phi-3)."""
    whole = getattr(module, name, None)
    return None if whole is None else product(whole)


def _norm(module: Any) -> _Norm:
    """In float32 one operation; else as Transformers rounds it."""
    if not type(module).__name__.endswith("RMSNorm") or hooked(module):
        raise Unknown(f"{type(module).__name__} is not a plain norm")
    weight = module.weight
    if weight.dtype != torch.float32:
        checked: nn.Module = module
        return checked
    eps = float(getattr(module, "variance_epsilon", getattr(module, "eps", 0.0)))
    if type(module).__name__.startswith("Gemma"):  # kept less one
        weight = 1.0 + weight
    return partial(F.rms_norm, normalized_shape=weight.shape, weight=weight, eps=eps)


def _window(attention: Any, config: Any) -> int | None:
    of_model = config.sliding_window if config.model_type in ("mistral", "phi3") else None
    found: int | None = getattr(attention, "sliding_window", of_model)
    return found
