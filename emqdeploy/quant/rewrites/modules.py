"""Makes plain modules of those that hide a layer: subclasses, reparametrized weights, attention, frozen statistics.

This happens on a copy of the model, before it is traced.
"""

from __future__ import annotations

from torch import nn
from torch.nn.utils import parametrize
from torch.nn.utils.prune import BasePruningMethod
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from emqdeploy.quant.attention import SelfAttention

PLAIN: tuple[type[nn.Module], ...] = (nn.Conv2d, nn.Linear, nn.BatchNorm2d, nn.BatchNorm1d)


def make_plain(model: nn.Module, notes: list[str]) -> nn.Module:
    """Rewrites the modules of a model, in place; returns it, or what takes its place.

    Args:
        model: in evaluation mode.
        notes: receives what the user should know.
    """
    for name, module in list(model.named_modules()):
        fold_weights(name, module, notes)
        if isinstance(module, nn.MultiheadAttention):
            attention = SelfAttention(name, module)
            if not name:
                return attention
            model.set_submodule(name, attention)
        elif type(module).__name__ == "FrozenBatchNorm2d":
            model.set_submodule(name, _thawed(name, module, notes))
        else:
            _without_subclass(module)
    return model


def fold_weights(name: str, module: nn.Module, notes: list[str]) -> None:
    """Computes the weights that hooks and parametrizations compute from others, once and for all."""
    folded = []
    if parametrize.is_parametrized(module):
        # torch gives such a module a class of its own, which its copies share, and changes that class.
        kind = type(module)
        own = {key: value for key, value in vars(kind).items() if key not in ("__dict__", "__weakref__")}
        module.__class__ = type(kind.__name__, kind.__bases__, own)
    for tensor in list(getattr(module, "parametrizations", {})):
        parametrize.remove_parametrizations(module, tensor, leave_parametrized=True)
        folded.append(tensor)
    for key, hook in list(module._forward_pre_hooks.items()):
        if isinstance(hook, (WeightNorm, SpectralNorm, BasePruningMethod)):
            hook.remove(module)
            del module._forward_pre_hooks[key]
            folded.append(hook._tensor_name if isinstance(hook, BasePruningMethod) else hook.name)
    if folded:
        notes.append(
            f"{name!r} computes its {' and '.join(folded)} from other parameters: computed once, and trained as plain"
            " weights where training follows"
        )


def _without_subclass(module: nn.Module) -> None:
    """Takes off a subclass that computes what its base class computes."""
    kind = type(module)
    if kind in PLAIN:
        return
    # timm's Linear only casts its parameters while it is scripted; a synchronized norm is a plain one in evaluation.
    if isinstance(module, nn.Linear) and kind.__name__ == "Linear":
        module.__class__ = nn.Linear
    elif kind is nn.SyncBatchNorm:
        module.__class__ = nn.BatchNorm2d
    for plain in PLAIN:
        inherits = issubclass(kind, plain) and kind.forward is plain.forward
        if inherits and getattr(kind, "_conv_forward", None) is getattr(plain, "_conv_forward", None):
            module.__class__ = plain


def _thawed(name: str, module: nn.Module, notes: list[str]) -> nn.BatchNorm2d:
    """A normalization of torchvision's with fixed statistics, as the one that layers absorb."""
    state = module.state_dict()
    norm = nn.BatchNorm2d(len(state["weight"]), getattr(module, "eps", 1e-5)).eval()
    norm.load_state_dict(state, strict=False)
    notes.append(
        f"the frozen normalization {name!r} is deployed as it is, and learns like others where training follows"
    )
    return norm
