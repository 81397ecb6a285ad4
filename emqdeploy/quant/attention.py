"""`nn.MultiheadAttention` taken apart, so that its projections are linear layers like any other."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from emqdeploy.errors import EmqError

IN_PROJECTION = "in_projection"
"""Module name of the joint projection; `torch` keeps it as bare parameters ``in_proj_weight`` and ``in_proj_bias``."""


def attention_weights(q: Tensor, k: Tensor, mask: Tensor | None, scale: float | None = None) -> Tensor:
    """``softmax(scale q k^T + mask)`` over the keys, for ``(..., T, C)``."""
    scores = (q @ k.transpose(-2, -1)) * (q.shape[-1] ** -0.5 if scale is None else scale)
    return (scores if mask is None else scores + mask).softmax(-1)


def plain_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """`F.scaled_dot_product_attention` in operators that runtimes fuse; takes its arguments, without dropout."""
    if is_causal or enable_gqa or (attn_mask is not None and attn_mask.dtype == torch.bool):
        return F.scaled_dot_product_attention(
            query, key, value, attn_mask, 0.0, is_causal, scale=scale, enable_gqa=enable_gqa
        )
    return attention_weights(query, key, attn_mask, scale) @ value


class SelfAttention(nn.Module):
    """Computes what an `nn.MultiheadAttention` computes when a tensor attends to itself.

    Args:
        name: of the module, for messages.
        source: the attention whose parameters are shared.

    Raises:
        EmqError: the attention is of a form that is not supported.
    """

    def __init__(self, name: str, source: nn.MultiheadAttention) -> None:
        super().__init__()
        self.name = name
        if not source._qkv_same_embed_dim or source.bias_k is not None or source.add_zero_attn:
            raise self._refuse("has keys or values of their own")
        width = source.embed_dim
        self.heads = source.num_heads
        self.batch_first = source.batch_first
        projection = nn.Linear(width, 3 * width, bias=source.in_proj_bias is not None)
        assert source.in_proj_weight is not None
        projection.weight, projection.bias = source.in_proj_weight, source.in_proj_bias
        self.add_module(IN_PROJECTION, projection)
        source.out_proj.__class__ = nn.Linear  # type: ignore[assignment]
        self.out_proj = source.out_proj
        self.dropout = nn.Dropout(source.dropout)
        self.train(source.training)

    def _refuse(self, what: str) -> EmqError:
        return EmqError(f"attention {self.name!r} {what}; only self-attention without key masks can be quantized")

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Any]:
        """Maps tokens ``(N, T, C)``, or ``(T, N, C)`` without ``batch_first``, to tokens; returns no weights."""
        if query is not key or query is not value:
            raise self._refuse("reads more than one tensor")
        if key_padding_mask is not None:
            raise self._refuse("masks keys")
        tokens = query if self.batch_first else query.transpose(0, 1)
        projected = getattr(self, IN_PROJECTION)(tokens)
        q, k, v = projected.unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        if self.dropout.p:
            attended = self.dropout(attention_weights(q, k, attn_mask)) @ v
        else:
            attended = F.scaled_dot_product_attention(q, k, v, attn_mask=attn_mask)
        result = self.out_proj(attended.transpose(1, 2).flatten(2))
        return (result if self.batch_first else result.transpose(0, 1)), None
