"""What a model takes and answers: one tensor of images, and logits, wherever in its answer they are."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from torch import Tensor, fx, nn

from emqdeploy.errors import EmqError

_TENSORS = (Tensor, fx.Proxy)


def check_takes_images(model: nn.Module) -> None:
    """Raises for a model that needs more than one tensor of images."""
    kind = type(model)
    parameters = list(inspect.signature(kind.forward).parameters.values())[1:]
    optional = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    needed = [one.name for one in parameters if one.default is one.empty and one.kind not in optional]
    if len(needed) > 1:
        raise EmqError(
            f"{kind.__name__} takes {len(needed)} inputs ({', '.join(needed)}), and only networks of one image tensor"
            " can be quantized; wrap it in a module that supplies the others"
        )


def answering_with_logits(model: nn.Module, name: str) -> nn.Module:
    """Makes a model answer with its logits alone, in place; further arguments of its forward keep their defaults."""
    kind = type(model)

    class Logits(kind):  # type: ignore[misc, valid-type]
        def forward(self, images: Any) -> Any:
            return logits_of(kind.forward(self, images), name)

    Logits.__name__ = Logits.__qualname__ = kind.__name__
    model.__class__ = Logits
    return model


def logits_of(answer: Any, name: str) -> Any:
    """The logits in what a model answers in evaluation: the tensor, the only one of several, or what is called logits.

    Args:
        answer: of the model ``name``; while it is traced, proxies stand for tensors.
        name: of the model, for messages.

    Raises:
        EmqError: it cannot be told which tensor is the logits.
    """
    if isinstance(answer, _TENSORS):
        return answer
    if isinstance(answer, Mapping) and "logits" in answer:
        return answer["logits"]
    if hasattr(answer, "logits"):
        return answer.logits
    several = answer.values() if isinstance(answer, Mapping) else answer
    parts = list(several) if isinstance(answer, (Mapping, tuple, list)) else []
    tensors = [part for part in parts if isinstance(part, _TENSORS)]
    if len(tensors) == 1 and len(parts) == 1:
        return tensors[0]
    what = f"{len(tensors)} tensors" if tensors else f"a {type(answer).__name__}"
    raise EmqError(
        f"{name} answers with {what} in evaluation, not with logits alone; return only them, or name them 'logits'"
    )
