"""Float weights from a file into a model: the right group of tensors, whatever stands before their names."""

from __future__ import annotations

import re
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from emqdeploy.errors import EmqError, UsageError
from emqdeploy.training.weights_file import State, read_states

QUANTIZER = "quantizer"
"""Submodule of a layer, see `emqdeploy.quant.layers.QuantLayer`."""

COUNTER = "num_batches_tracked"
"""What a normalization counts, and nobody needs."""

_WRAPPERS = frozenset(("module", "_orig_mod"))
"""What parallel and compiled models put before every name: it says nothing about which weights these are."""

_PLAIN = frozenset(("", "state_dict", "model_state_dict", "model_state", "model", "network", "net"))
"""Where weights lie that were trained, not averaged or of another network."""


@dataclass(frozen=True)
class _Entry:
    """Tensors in a file that have the names of a model, behind a prefix.

    Attributes:
        name: where they lie, as a person writes it; empty for what needs no word.
        group: the keys that lead to their dictionary.
        prefix: before every name, with its dot.
        matched: how many names of the model are among them.
    """

    name: str
    group: tuple[str, ...]
    prefix: str
    matched: int

    @property
    def plain(self) -> bool:
        """Whether these are the weights that anybody would take."""
        return set(self.name.split(".")) <= _PLAIN

    def about(self) -> str:
        """The name, and what it means."""
        averaged = re.search(r"ema|swa|averag", self.name, re.IGNORECASE)
        return (repr(self.name) if self.name else "those in no entry") + (" (averaged weights)" if averaged else "")


@dataclass(frozen=True)
class Pretrained:
    """Float weights in a file, as a model wants them.

    Attributes:
        path: of the file.
        tensors: by the names of the model.
        where: which of the file's weights they are, as notes say it; empty for what needs no word.
        notes: what the user should know about the choice.
    """

    path: Path
    tensors: State
    where: str
    notes: tuple[str, ...]

    @classmethod
    def find(cls, model: nn.Module, path: Path, entry: str | None = None) -> Pretrained:
        """Finds the weights of a model in a file.

        Wrapping (``state_dict``, ``model``, ...) and whatever stands before all names (``module.``, ``backbone.``, ...)
        is taken off. A last layer by another name is taken for the model's. Where no name is known at all, tensors of
        the model's shapes in the model's order are taken for its own, and a note says so.

        Args:
            model: freshly created.
            path: ``.safetensors``, ``.pth`` or ``.pt``; or a run directory, whose latent weights are taken.
            entry: which weights to take of a file that holds several, ``model_ema`` for example; None takes those that
                are not averaged.

        Raises:
            EmqError: the file cannot be read, holds no tensor by a name of the model, or several weights of which none
                is the usual one.
        """
        wanted = model.state_dict()
        states = read_states(path)
        entries = _entries(states, wanted)
        if not entries:
            return _in_order(states, model, path)
        chosen = _choose(entries, entry, path)
        others = [one for one in entries if one is not chosen]
        state = states[chosen.group]
        behind = tuple(one.prefix for one in others if one.group == chosen.group)
        inside = tuple(prefix for prefix in behind if prefix.startswith(chosen.prefix))
        left_out = [name for name in state if not name.startswith(chosen.prefix) or name.startswith(inside)]
        found = {
            name.removeprefix(chosen.prefix): tensor for name, tensor in state.items() if name not in set(left_out)
        }
        # What a run's quantizers learned is of no use to a float model.
        found = {name: _plain(tensor, name, path) for name, tensor in found.items() if f".{QUANTIZER}." not in name}
        unused = {name: state[name] for name in left_out if not name.startswith(behind)}
        notes = _rename_head(model, found, unused)
        if unused:
            verb = "do" if len(unused) > 1 else "does"
            notes.append(f"left out {_some(list(unused))}, which {verb} not belong to the model")
        where = "" if chosen.plain and not others else f", {chosen.about()}"
        if others:
            where += f"; it also holds {', '.join(one.about() for one in others)}, see --weights-entry"
        return cls(path, found, where, tuple(notes))

    def classes(self, model: nn.Module) -> int | None:
        """How many classes the last layer has; None where the file has none by the model's name."""
        stored = self.tensors.get(next(iter(_head(model)), ""))
        return None if stored is None else len(stored)

    def load(self, model: nn.Module, fresh_head: bool) -> list[str]:
        """Loads the weights into a model, in place.

        Args:
            model: the one that they were found for, or one with another number of classes.
            fresh_head: whether the last layer may stay fresh; False where no training follows.

        Returns:
            What happened, a sentence each.

        Raises:
            EmqError: a name or shape does not match; nothing was loaded then.
        """
        wanted, found, path = model.state_dict(), self.tensors, self.path
        head = _head(model)
        fresh = [name for name in head if name not in found or _other_classes(found[name], wanted[name])]
        _check(found, {name: tensor for name, tensor in wanted.items() if name not in fresh}, head, path, model)
        if fresh and not fresh_head:
            raise EmqError(_describe_head(fresh, found, wanted, path) + "; train it with: emqdeploy train --pretrained")
        loaded = [name for name in wanted if name in found and name not in fresh]
        with torch.no_grad():
            for name in loaded:
                wanted[name].copy_(found[name])
        notes = [f"loaded {len(loaded)} of {len(wanted)} tensors from {path}{self.where}", *self.notes]
        if fresh:
            notes.append(_describe_head(fresh, found, wanted, path) + ": it starts from fresh weights")
        return notes


def load_pretrained(model: nn.Module, path: Path, fresh_head: bool = True, entry: str | None = None) -> list[str]:
    """Loads float weights into a model, in place, see `Pretrained`.

    A last layer of another number of classes, or none, keeps the model's fresh weights. Anything else must match by
    name and shape.

    Args:
        model: freshly created.
        path: ``.safetensors``, ``.pth`` or ``.pt``; or a run directory, whose latent weights are taken.
        fresh_head: whether the last layer may stay fresh; False where no training follows.
        entry: which weights to take of a file that holds several.

    Returns:
        What happened, a sentence each.

    Raises:
        EmqError: the file cannot be read, does not belong to this model, or holds several weights of which none is the
            usual one; nothing was loaded then.
    """
    return Pretrained.find(model, path, entry).load(model, fresh_head)


def _rename_head(model: nn.Module, found: State, unused: State) -> list[str]:
    """Takes the one linear layer that the model does not know for its last one, where it lacks that; says so."""
    wanted = model.state_dict()
    head = [name for name in _head(model) if name in wanted]
    if not head or any(name in found for name in head):
        return []
    features = wanted[head[0]].shape[1]
    candidates = [
        (source, name.removesuffix(".weight"))
        for source in (found, unused)
        for name, tensor in source.items()
        if name.endswith(".weight") and name not in wanted and tensor.dim() == 2 and tensor.shape[1] == features
    ]
    if len(candidates) != 1:
        return []
    source, layer = candidates[0]
    mine = head[0].rpartition(".")[0]
    for name in [name for name in source if name.startswith(f"{layer}.")]:
        found[mine + name.removeprefix(layer)] = source.pop(name)
    return [f"the last layer is {layer!r} there and {mine!r} here"]


def _in_order(states: dict[tuple[str, ...], State], model: nn.Module, path: Path) -> Pretrained:
    """The weights of the same network under other names: every tensor of the right shape, one after the other."""
    wanted, head, kind = model.state_dict(), _head(model), type(model).__name__
    mine = [name for name in wanted if not name.endswith(COUNTER)]
    for state in states.values():
        theirs = [name for name in state if not name.endswith(COUNTER)]
        pairs = [(name, state[other]) for name, other in zip(mine, theirs, strict=False)]
        if len(mine) == len(theirs) and all(
            tensor.shape == wanted[name].shape or (name in head and _other_classes(tensor, wanted[name]))
            for name, tensor in pairs
        ):
            found = {name: _plain(tensor, name, path) for name, tensor in pairs}
            note = (
                f"none of the names in {path} is one of {kind}, but its {len(mine)} tensors have the shapes of"
                f" {kind}'s in the same order and were taken so, {theirs[0]!r} as {mine[0]!r}: see that the float"
                " accuracy is what you know"
            )
            return Pretrained(path, found, "", (note,))
    first = next(iter(next(iter(states.values()))))
    raise EmqError(
        f"{path} holds no tensor by a name of {kind}: its first is {first!r}, and {kind} begins with"
        f" {next(iter(wanted))!r}; choose the --model that the weights were trained for"
    )


def _entries(states: dict[tuple[str, ...], State], wanted: State) -> list[_Entry]:
    """All that a file holds of tensors by a model's names, but for prefixes that match by accident."""
    entries: list[_Entry] = []
    for group, state in states.items():
        behind: dict[str, set[str]] = defaultdict(set)
        for name in state:
            for start in (0, *(dot.end() for dot in re.finditer(r"\.", name))):
                if name[start:] in wanted:
                    behind[name[:start]].add(name)
        for prefix, names in sorted(behind.items(), key=lambda item: (-len(item[1]), len(item[0]))):
            if all(names.isdisjoint(behind[one.prefix]) for one in entries if one.group == group):
                parts = [part for part in (*group, *prefix.split(".")) if part and part not in _WRAPPERS]
                entries.append(_Entry(".".join(parts), group, prefix, len(names)))
    most = max((one.matched for one in entries), default=0)
    return [one for one in entries if 2 * one.matched > most]


def _choose(entries: list[_Entry], asked: str | None, path: Path) -> _Entry:
    """The one that was asked for, or the only one that is plain, or the only one."""
    names = ", ".join(one.about() for one in entries)
    if asked is not None:
        found = [one for one in entries if one.name == asked] or [
            one for one in entries if f".{asked}." in f".{one.name}."
        ]
        if len(found) != 1:
            few = "several" if found else "no"
            raise UsageError(f"{path} holds {few} weights by --weights-entry {asked}; allowed: {names}")
        return found[0]
    found = [one for one in entries if one.plain] or entries
    if len(found) != 1:
        raise UsageError(f"{path} holds several weights that fit; choose with --weights-entry: {names}")
    return found[0]


def _other_classes(stored: torch.Tensor, tensor: torch.Tensor) -> bool:
    return stored.shape != tensor.shape and stored.shape[1:] == tensor.shape[1:]


def _describe_head(fresh: list[str], found: State, wanted: State, path: Path) -> str:
    stored = len(found[fresh[0]]) if fresh[0] in found else "none"
    layer = fresh[0].rpartition(".")[0]
    return f"the last layer {layer!r} has {len(wanted[fresh[0]])} classes here and {stored} in {path}"


def _check(found: State, wanted: State, head: list[str], path: Path, model: nn.Module) -> None:
    """Raises for the first tensor that does not fit."""
    kind = type(model).__name__
    advice = "choose the --model that the weights were trained for"
    for name, tensor in wanted.items():
        stored = found.get(name)
        if stored is None:
            if name.endswith(COUNTER):  # old files lack it, and nothing needs it
                continue
            raise EmqError(f"{path} lacks {name!r}, which {kind} needs; {advice}")
        if stored.shape != tensor.shape:
            raise EmqError(
                f"{name!r} has shape {tuple(stored.shape)} in {path} and {tuple(tensor.shape)} in {kind}; {advice}, and"
                " data of as many channels and pixels"
            )
        # Of some types torch cannot tell; and what was finite may not be in the model's type.
        if not bool(torch.isfinite(stored.to(tensor.dtype if tensor.is_floating_point() else torch.float64)).all()):
            raise EmqError(f"{name!r} in {path} holds values that are not finite; take an earlier checkpoint")
    strange = [name for name in found if name not in wanted and name not in head]
    if strange:
        raise EmqError(f"{path} holds {_some(strange)}, which {kind} does not have; {advice}")


def _plain(tensor: torch.Tensor, name: str, path: Path) -> torch.Tensor:
    """Raises for a tensor that is not simply numbers in memory, of which torch knows a dozen kinds."""
    odd = tensor.is_nested or tensor.is_quantized or tensor.is_meta or tensor.is_complex()
    if odd or tensor.layout is not torch.strided:
        raise EmqError(f"{name!r} in {path} is sparse, quantized, complex or without numbers; save float weights")
    return tensor


def _some(names: list[str]) -> str:
    return repr(names[0]) + (f" and {len(names) - 1} more" if len(names) > 1 else "")


def _head(model: nn.Module) -> list[str]:
    """Names of the tensors of the last linear layer, the one that data of other classes replace."""
    linear = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    return [f"{linear[-1]}.{name}" for name, _ in model.get_submodule(linear[-1]).named_parameters()] if linear else []
