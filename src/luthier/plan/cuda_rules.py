"""What PyTorch does on CUDA and not here, for tensors that stand for those of a GPU.

*Autocast.* The processor's casts products to 16 bits as CUDA's does. But CUDA's has norms, powers,
exponentials, sums and losses computed in float32, which the processor's leaves in 16 bits; and the "meta"
device has none at all. The lists are PyTorch's own (``ATen/autocast_mode.h``).

*Attention* of models that ``kernels/attention.py`` does not know: FlashAttention, or where there is a mask the
memory-efficient kernel, which wants the mask as numbers and in multiples of 16 (``sdp_utils_cpp.h``,
``attention.cpp``). The "meta" device would keep all scores, and a processor's kernel takes the mask as it is.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Variable
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map_only


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


IN_16_BITS = _names(
    "addbmm addmm addmv addr baddbmm bmm chain_matmul conv1d conv2d conv3d einsum linalg_multi_dot "
    "linalg_vecdot linear matmul mm mv prelu scaled_dot_product_attention"
)
IN_FLOAT32 = _names(
    "acos asin binary_cross_entropy_with_logits cdist cosh cosine_embedding_loss cosine_similarity dist "
    "erfinv exp expm1 group_norm hinge_embedding_loss huber_loss kl_div l1_loss layer_norm log log10 log1p "
    "log2 logsumexp margin_ranking_loss mse_loss multi_margin_loss multilabel_margin_loss "
    "native_layer_norm nll_loss pdist poisson_nll_loss pow reciprocal renorm rms_norm rsqrt sinh "
    "smooth_l1_loss soft_margin_loss softplus tan triplet_margin_loss"
)
# Their results are in float32, which needs no copy of what they are given.
INTO_FLOAT32 = _names(
    "cumprod cumsum linalg_matrix_norm linalg_vector_norm log_softmax prod softmax sum"
)
# Other names, and functions of Python that are made of those.
_SAME = {"__matmul__": "matmul", "__rmatmul__": "matmul", "__rpow__": "pow", "norm": "layer_norm",
         "cross_entropy": "layer_norm"}  # fmt: skip
_MASK = 16  # keys in whose multiples a mask lies in memory


class CudaRules(TorchFunctionMode):
    """In its scope fake tensors of the processor, and those of "meta", are computed with as on CUDA.

    Args:
        on_read: called where the host would wait for a number of the device, which is taken to be 0.
    """

    def __init__(self, on_read: Callable[[], None]) -> None:
        super().__init__()
        self.on_read = on_read

    def __torch_function__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        name = _SAME.get(name, name)
        if name == "backward":  # of the loss; layers are computed again in there, by these rules
            slope = torch.ones_like(args[0])
            with self:
                Variable._execution_engine.run_backward(
                    args[:1],
                    (slope,),
                    False,
                    False,
                    (),
                    allow_unreachable=True,
                    accumulate_grad=True,
                )
            return None
        if name == "__bool__" and args[0].is_meta:
            self.on_read()
            return False
        if torch.is_autocast_enabled("cpu"):
            args, kwargs = _autocast(name, args, kwargs)
        if name == "scaled_dot_product_attention":
            return _attend(*args, **kwargs)
        return func(*args, **kwargs)


def _autocast(
    name: str, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments as CUDA's autocast gives them to the function ``name``."""
    if name in IN_FLOAT32:
        return _cast((args, kwargs), torch.float32)
    if name in INTO_FLOAT32 and kwargs.get("dtype") is None and _is_16_bits(args[0]):
        return args, {**kwargs, "dtype": torch.float32}
    if (
        name in IN_16_BITS
    ):  # of the processor's tensors PyTorch casts them, and keeps weights that it cast
        return _cast((args, kwargs), torch.get_autocast_dtype("cpu"), "meta")
    return args, kwargs


def _is_16_bits(tensor: Any) -> bool:
    return isinstance(tensor, Tensor) and tensor.dtype in (torch.bfloat16, torch.float16)


def _cast(tree: Any, dtype: torch.dtype, only: str | None = None) -> Any:
    """The floating-point tensors of ``tree`` in ``dtype``, or those of the device ``only``."""

    def cast(tensor: Tensor) -> Tensor:
        casts = tensor.is_floating_point() and tensor.dtype != torch.float64
        return tensor.to(dtype) if casts and only in (None, tensor.device.type) else tensor

    return tree_map_only(Tensor, cast, tree)


def _attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """``scaled_dot_product_attention`` (batch, heads, T, d), by the kernel that CUDA takes."""
    dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else query.dtype
    query, key, value = (t.to(dtype) for t in (query, key, value))
    if attn_mask is None and _is_16_bits(query):
        output: Tensor
        output, *_ = torch.ops.aten._scaled_dot_product_flash_attention(
            query, key, value, dropout_p, is_causal, scale=scale
        )
        return output
    if enable_gqa:
        shared = query.shape[1] // key.shape[1]
        key, value = (t.repeat_interleave(shared, 1) for t in (key, value))
    if attn_mask is not None:
        if attn_mask.dtype == torch.bool:
            blank = torch.zeros_like(attn_mask, dtype=dtype)
            attn_mask = blank.masked_fill_(attn_mask.logical_not(), float("-inf"))
        keys = attn_mask.shape[-1]
        if keys % _MASK:
            attn_mask = F.pad(attn_mask, (0, -keys % _MASK))[..., :keys]
        attn_mask = attn_mask.to(dtype).expand(*query.shape[:3], keys)
    output, *_ = torch.ops.aten._scaled_dot_product_efficient_attention(
        query, key, value, attn_mask, torch.is_grad_enabled(), dropout_p, is_causal, scale=scale
    )
    return output
