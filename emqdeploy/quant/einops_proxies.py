"""Lets the functions of einops run on tensors that are being traced; its layers do so by themselves."""

from __future__ import annotations

import functools
import sys
from typing import Any

from torch import fx


def teach_einops() -> None:
    """Makes a backend known to einops, where the model has imported it: einops looks for one by the kind of tensor."""
    if "einops" in sys.modules:
        _backend()


@functools.cache
def _backend() -> type | None:
    """The backend, which exists as long as it is remembered here; None with another layout of the package."""
    try:
        from einops._backends import TorchBackend
    except ImportError:
        return None

    class Proxies(TorchBackend):
        framework_name = "torch.fx"

        def is_appropriate_type(self, tensor: Any) -> bool:
            return isinstance(tensor, fx.Proxy)

        def shape(self, x: Any) -> list[Any]:
            # No tuple, which einops would remember by its hash: sizes may be nodes of this very graph.
            return list(x.shape)

    return Proxies
