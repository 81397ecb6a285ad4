"""torchvision beside any torch."""

from __future__ import annotations

from types import ModuleType
from typing import Any

from emqdeploy.errors import EmqError, require

_TORCHVISION_SCHEMAS = {
    "nms": "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms": "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
}
_UNUSABLE = "torchvision does not load beside this torch ({reason}); install the torchvision release that belongs to it"
_declared: list[Any] = []  # a schema lives as long as its Library object


def import_torchvision() -> ModuleType:
    """Import torchvision, also where its compiled operators do not fit the installed torch.

    The usual wheel of torchvision is compiled against a CUDA build of torch. Beside a CPU-only
    torch its operators cannot be loaded, and the import stops where torchvision describes an
    operator that was never declared (``operator torchvision::nms does not exist``). Those operators
    serve detection; classification models and data sets use none of them. So the missing ones are
    declared by name only and the import is tried once more. Where torchvision is healthy,
    nothing is declared.

    Returns:
        The torchvision module.

    Raises:
        EmqError: torchvision is missing or does not load for another reason.
    """
    try:
        return require("torchvision", "train")
    except RuntimeError as error:
        if "operator torchvision::" not in str(error):
            raise EmqError(_UNUSABLE.format(reason=error)) from error
    import torch

    library = torch.library.Library("torchvision", "FRAGMENT")
    _declared.append(library)
    for name, schema in _TORCHVISION_SCHEMAS.items():
        if not hasattr(torch.ops.torchvision, name):
            library.define(schema)
    try:
        return require("torchvision", "train")
    except RuntimeError as error:
        raise EmqError(_UNUSABLE.format(reason=error)) from error
