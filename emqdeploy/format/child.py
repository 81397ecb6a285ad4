"""A child: the network at one precision setting, and how people write it.

==================  ===========================================================================================
``4``               4-bit weights; 8-bit activations, or what the file's 4-bit child has
``W4A8``, ``4a8``   weight width and activation width
``8,4,2a2``         a list
``2-8``, ``2-8a4``  a range of weight widths
``all``             every child of a file
``NAME``            a child by its name, which is all that one with widths per layer has
==================  ===========================================================================================

A tensor has one width at a child, whoever reads it: the largest activation width among the layers that read it, looking
through operators that only move values; where only sums read it, that of the sum. `emqdeploy.quant.readers` finds them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from numbers import Integral
from typing import Any

from emqdeploy.errors import UsageError

WEIGHT_BITS = range(1, 9)
ACTIVATION_BITS = range(2, 9)
MASTER_BITS = 8
FLOAT_BITS = 32
"""Both widths of the float child, which training knows and no file holds."""

SAME = "same"
"""As activation bits: what the weights have, at least 2."""

ALL = "all"
"""As a list of children: all that there are."""

DEFAULT = "*"
"""In a map of layers to widths: the width of the layers that the map does not name."""

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+-]{0,63}")
_SHORT = re.compile(r"w?(\d+)(?:-(\d+))?(?:a(\d+))?", re.IGNORECASE)
_EXAMPLE = "for example 8,4,2a4 or 2-8"


@dataclass(frozen=True)
class Widths:
    """Bits of every layer.

    Attributes:
        default: of the layers that are not named.
        layers: name and bits of those that are, sorted by name.
    """

    default: int
    layers: tuple[tuple[str, int], ...] = ()

    @classmethod
    def read(cls, value: int | Mapping[str, int] | Widths) -> Widths:
        """Makes widths of a number, or of a map of layers to numbers whose ``*`` (8 without it) stands for the rest."""
        if isinstance(value, Widths):
            return value
        if isinstance(value, int):
            return cls(value)
        rest = value.get(DEFAULT, MASTER_BITS)
        named = sorted((name, bits) for name, bits in value.items() if name != DEFAULT)
        return cls(rest, tuple(named))

    @cached_property
    def _by_layer(self) -> dict[str, int]:
        return dict(self.layers)

    def of(self, layer: str) -> int:
        """Bits of one layer."""
        return self._by_layer.get(layer, self.default)

    def names(self, layer: str) -> bool:
        """Whether a layer is named."""
        return layer in self._by_layer

    @property
    def uniform(self) -> bool:
        """Whether every layer has the same."""
        return not self.layers

    @property
    def all(self) -> tuple[int, ...]:
        """Every width that occurs."""
        return (self.default, *(bits for _, bits in self.layers))

    def plain(self) -> int | dict[str, int]:
        """The number or the map that `read` takes."""
        return self.default if self.uniform else {DEFAULT: self.default, **self._by_layer}


@dataclass(frozen=True, init=False, repr=False)
class Child:
    """The network at one precision setting; hashable, so that it is a key wherever a setting is one.

    Attributes:
        name: unique in its network; letters, digits, ``_ . + -``.
        weights: bits of every layer's weights, 1..8: a number, or a map of layers to numbers (see `Widths.read`).
        activations: bits of what every layer reads, 2..8, likewise.

    Raises:
        UsageError: a width is out of range, or the name cannot be one.

    Example:
        >>> Child("mixed", weights={"*": 4, "conv1": 8}, activations=4).weights.of("conv1")
        8
        >>> Child.of(2, 4).name
        '2a4'
    """

    name: str
    weights: Widths
    activations: Widths

    def __init__(
        self, name: str, weights: int | Mapping[str, int] | Widths, activations: int | Mapping[str, int] | Widths = 8
    ) -> None:
        object.__setattr__(self, "name", name)
        object.__setattr__(self, "weights", Widths.read(weights))
        object.__setattr__(self, "activations", Widths.read(activations))
        if name == "all":
            raise UsageError("'all' cannot name a child, it stands for every child; choose another name")
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            raise UsageError(f"{name!r} cannot name a child; use up to 64 letters, digits, '_', '.', '+' and '-'")
        if name == "float" and self.weights == self.activations == Widths(FLOAT_BITS):
            return
        for what, widths, allowed in (
            ("weight", self.weights, WEIGHT_BITS),
            ("activation", self.activations, ACTIVATION_BITS),
        ):
            for layer, bits in (("every other layer" if widths.layers else "", widths.default), *widths.layers):
                if type(bits) is not int or bits not in allowed:
                    where = f" of {layer}" if layer else ""
                    raise UsageError(
                        f"child {name!r} has {what} width {bits!r}{where}; allowed: {allowed[0]}..{allowed[-1]}"
                    )
        self._check_meaning()

    def _check_meaning(self) -> None:
        """Raises for a name that people would read as other widths."""
        short = _SHORT.fullmatch(self.name)
        meant = short is None or (
            short[2] is None and (Widths(int(short[1])), Widths(int(short[3] or MASTER_BITS))) == self._widths
        )
        if not meant or self.name.lower() == "float":
            raise UsageError(f"{self.name!r} reads as other widths than the child has; choose another name")

    @property
    def _widths(self) -> tuple[Widths, Widths]:
        return self.weights, self.activations

    def __hash__(self) -> int:
        return hash(self.name)

    @classmethod
    def of(cls, weights: int, activations: int | str = 8) -> Child:
        """The child with one weight width and one activation width, under its usual name: ``4``, or ``4a2``."""
        bits = FLOAT_BITS if weights == FLOAT_BITS else activation_width(activations, weights)
        if bits == weights == FLOAT_BITS:
            return FLOAT
        return cls(f"{weights}" if bits == MASTER_BITS else f"{weights}a{bits}", weights, bits)

    @property
    def bits(self) -> int:
        """Weight width of the layers that the child does not name: a number to sort and to plot by."""
        return self.weights.default

    @property
    def uniform(self) -> bool:
        """Whether every layer has the same widths."""
        return self.weights.uniform and self.activations.uniform

    def __repr__(self) -> str:
        return f"Child({self.name!r}, {self.weights.plain()}, {self.activations.plain()})"

    def __str__(self) -> str:
        """The name, see `in_words`."""
        return in_words(self.name)

    def to_dict(self) -> dict[str, Any]:
        """Returns plain values."""
        return {"name": self.name, "weights": self.weights.plain(), "activations": self.activations.plain()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Child:
        """The inverse of `to_dict`."""
        return cls(values["name"], values["weights"], values["activations"])


def in_words(name: str) -> str:
    """A child's name for people: ``4 bits`` where it is a number, as it is elsewhere."""
    return "1 bit" if name == "1" else f"{name} bits" if name.isdecimal() else name


FLOAT = Child("float", FLOAT_BITS, FLOAT_BITS)
"""The network with nothing quantized."""

ChildLike = Child | int | str
"""What names a child: itself, a weight width, or one of the short forms."""


def activation_width(setting: int | str, weights: int) -> int:
    """Activation bits under a setting: a number stays, ``same`` follows the weight width (at least 2)."""
    return max(weights, ACTIVATION_BITS[0]) if setting == SAME else int(setting)


def parse_children(text: str, activations: int | str = 8, option: str = "--bits") -> tuple[Child, ...]:
    """Reads uniform children: ``8,4,2a4``, ``2-8``, ``W4A8``.

    Args:
        text: as in the module's table, without ``all`` and names.
        activations: bits where none are written, or ``same``.
        option: for the sentence of an error.

    Raises:
        UsageError: it cannot be read, a width is out of range, or a child is named twice.
    """
    children: list[Child] = []
    for part in (part.strip() for part in text.split(",")):
        match = _SHORT.fullmatch(part)
        if match is None:
            raise UsageError(f"{option} has {part!r}; give weight widths 1..8, {_EXAMPLE}")
        first, last, narrow = (None if group is None else int(group) for group in match.groups())
        assert first is not None
        if last is not None and last < first:
            raise UsageError(f"{option} has the range {part!r}; write the smaller width first, {_EXAMPLE}")
        if first == FLOAT_BITS and narrow not in (None, FLOAT_BITS):
            raise UsageError(f"{option} has {part!r}; the float network is 32 in weights and activations, write 32")
        children += [Child.of(bits, narrow or activations) for bits in range(first, (last or first) + 1)]
    return check_unique(children, option)


def check_unique(children: Iterable[Child], option: str = "--bits") -> tuple[Child, ...]:
    """Returns the children; raises where two have one name, or there are none."""
    found = tuple(children)
    # Names become file names, and there are file systems that take no notice of case.
    names = [child.name.lower() for child in found]
    twice = next((child.name for child in found if names.count(child.name.lower()) > 1), None)
    if twice is not None:
        raise UsageError(f"{option} names child {twice!r} twice; name each once")
    if not found:
        raise UsageError(f"{option} is empty; name at least one child, {_EXAMPLE}")
    return found


def find_child(children: Sequence[Child], wanted: ChildLike) -> Child:
    """Returns the child that is meant.

    A weight width alone means the child of that width with 8-bit activations, else the only one of that width.

    Raises:
        UsageError: there is none, or several may be meant; the sentence lists those there are.
    """
    if isinstance(wanted, Child):
        if wanted in children:
            return wanted
        other = " of these widths" if any(child.name == wanted.name for child in children) else ""
        raise UsageError(f"no child {wanted.name!r}{other} here; {_available(children)}")
    # numpy's whole numbers are welcome; True, 8.0 and lists are somebody's mistake.
    if not isinstance(wanted, (Integral, str)) or isinstance(wanted, bool):
        raise UsageError(f"{wanted!r} names no child; {_available(children)}")
    text = str(wanted)
    named = [child for child in children if child.name == text]
    if named:
        return named[0]
    match = _SHORT.fullmatch(text)
    alike: list[Child] = []
    if match is not None and match[2] is None:
        alike = [child for child in children if child.uniform and child.bits == int(match[1])]
        bits = int(match[3] or MASTER_BITS)
        exact = [child for child in alike if child.activations.default == bits]
        alike = exact if exact or match[3] else alike
    return _found(alike, children, text)


def select_children(children: Sequence[Child], text: str | Iterable[ChildLike]) -> tuple[Child, ...]:
    """Reads which children of a file are meant: ``all``, or a list of names, widths and ranges of widths.

    A program may give the children themselves, or what names them.
    """
    if not isinstance(text, str):
        return check_unique([find_child(children, one) for one in text])
    if text.strip().lower() == ALL:
        return tuple(children)
    wanted: list[ChildLike] = []
    for part in (part.strip() for part in text.split(",")):
        named = any(child.name == part for child in children)
        match = None if named else _SHORT.fullmatch(part)
        if match is None or match[2] is None:
            wanted.append(part)
        else:
            suffix = f"a{match[3]}" if match[3] else ""
            wanted += [f"{bits}{suffix}" for bits in range(int(match[1]), int(match[2]) + 1)]
    return check_unique([find_child(children, one) for one in wanted])


def children_between(trained: Sequence[Child], activations: int | str) -> tuple[Child, ...]:
    """The unseen children that trained ones give for free: uniform widths between theirs, at the same activations.

    Args:
        trained: what was trained; only children whose activations follow the setting count.
        activations: the setting, a number or ``same``.
    """
    like = [child for child in trained if child.uniform and child == Child.of(child.bits, activations)]
    if not like:
        return ()
    widths = [child.bits for child in like]
    return tuple(Child.of(bits, activations) for bits in range(min(widths), max(widths) + 1) if bits not in widths)


def in_order(children: Iterable[Child]) -> tuple[Child, ...]:
    """Children by weight width, then activation width, then name; ascending."""
    return tuple(sorted(children, key=lambda child: (child.bits, child.activations.default, child.name)))


def _found(found: Sequence[Child], children: Sequence[Child], text: str) -> Child:
    if len(found) == 1:
        return found[0]
    if found:
        names = ", ".join(child.name for child in found)
        raise UsageError(f"{text!r} may mean {names} here; name one of them")
    raise UsageError(f"no child {text!r} here; {_available(children)}")


def _available(children: Sequence[Child]) -> str:
    return f"available: {', '.join(child.name for child in children) or 'none'}; name one of these"
