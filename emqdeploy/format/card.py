"""The card: what a file says about its network, spelled once, and the typed reading of everything that files hold."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, TypeVar

import msgspec
from msgspec import Meta

from emqdeploy.errors import EmqError, UsageError
from emqdeploy.format.child import FLOAT_BITS, Child, check_unique
from emqdeploy.format.levels import HALF, Levels

MOST_CLASSES = 1_000_000
MOST_CHILDREN = 256
LARGEST_SIDE = 1 << 16

POST_TRAINING = "post-training"
"""The `Card.method` of what was quantized without training."""

Text = Annotated[str, Meta(max_length=1024, pattern=r"^[^\x00-\x1f\x7f-\x9f]*\Z")]
"""Printable, of one line."""

Name = Annotated[str, Meta(min_length=1, max_length=512, pattern=r"^[^\x00-\x1f\x7f-\x9f]+\Z")]
Side = Annotated[int, Meta(ge=1, le=LARGEST_SIDE)]
Percent = Annotated[float, Meta(ge=0, le=100)]
Size = Annotated[int, Meta(ge=0, lt=1 << 62)]
Digest = Annotated[str, Meta(pattern=r"^[0-9a-f]{32,64}\Z")]
Finite = Annotated[float, Meta(ge=-1e30, le=1e30)]
Positive = Annotated[float, Meta(gt=0, le=1e30)]
WidthsRecord = int | dict[Name, int]

MOST_DECIBELS = 200.0
"""Signal to noise of equal answers, which would be infinite."""

Decibels = Annotated[float, Meta(ge=-MOST_DECIBELS, le=MOST_DECIBELS)]


class Record(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a file holds, with the types and bounds that reading checks."""


class ChildRecord(Record, frozen=True):
    """A child as files write it, see `Child.to_dict`."""

    name: Name
    weights: WidthsRecord
    activations: WidthsRecord


WHOLE_UP_TO = 64
"""Pixels of a side up to which a network sees whole pictures by default: small ones are all subject, without border."""

_SHOWN, _RESIZED = 224, 256  # the usual ImageNet evaluation: resize the shorter side to 256, take the middle 224


def usual_resize(height: int, width: int) -> tuple[str, tuple[int, int]]:
    """How pictures come to a size where nobody says: `Pixels.resize` and `Pixels.resized`."""
    if max(height, width) <= WHOLE_UP_TO:
        return "stretch", (height, width)
    return "cover", (round(height * _RESIZED / _SHOWN), round(width * _RESIZED / _SHOWN))


class Pixels(Record, frozen=True):
    """How a picture becomes an input, complete: a program in any language does the same without guessing.

    A picture that is not ``height`` x ``width`` already is resized, its middle is taken, and a pixel of 0..255 becomes
    ``(pixel / 255 - mean) / std`` of its channel.

    Attributes:
        channels: 1 or 3.
        height: of the input.
        width: of the input.
        mean: per channel, in the network's order, of pixels from 0 to 1.
        std: per channel, in the network's order, of pixels from 0 to 1.
        channel_order: of the input: ``rgb``, ``bgr`` or ``grey`` (0.299 red + 0.587 green + 0.114 blue).
        resize: ``cover`` keeps the picture's shape and makes it just large enough to cover ``resized``; ``stretch``
            makes it ``resized``, whatever its shape.
        resized: rows and columns.
        interpolation: of the resizing: ``nearest``, ``box``, ``bilinear``, ``bicubic`` or ``lanczos``.
        antialias: that a picture made smaller is averaged over all of its pixels, as Pillow does.
        crop: the part of the resized picture that is taken.
        value_range: of a pixel before mean and std.
        layout: of the input.
        dtype: of the input.
    """

    channels: Side
    height: Side
    width: Side
    mean: tuple[Finite, ...]
    std: tuple[Positive, ...]
    channel_order: Literal["rgb", "bgr", "grey"] | None = None
    resize: Literal["cover", "stretch"] | None = None
    resized: tuple[Side, Side] | None = None
    interpolation: Literal["nearest", "box", "bilinear", "bicubic", "lanczos"] = "bilinear"
    antialias: Literal[True] = True
    crop: Literal["center"] = "center"
    value_range: tuple[Literal[0], Literal[1]] = (0, 1)
    layout: Literal["NCHW"] = "NCHW"
    dtype: Literal["float32"] = "float32"

    def __post_init__(self) -> None:
        """Fills in what files of earlier versions leave to the size."""
        if self.channel_order is None:
            msgspec.structs.force_setattr(self, "channel_order", "grey" if self.channels == 1 else "rgb")
        if self.resize is None or self.resized is None:
            resize, resized = usual_resize(self.height, self.width)
            msgspec.structs.force_setattr(self, "resize", resize)
            msgspec.structs.force_setattr(self, "resized", resized)


class DataSource(Record, frozen=True):
    """The data set that a network was made with.

    Attributes:
        name: as `emqdeploy.data.load_dataset` takes it.
        image_size: what it was asked for.
        labelled: whether its labels are the classes of the network.
    """

    name: Text
    image_size: Side | None = None
    labelled: bool = True


class FidelityRecord(Record, frozen=True):
    """How a child's logits differ from those of the network that it was made from, over a few hundred images.

    Attributes:
        against: that network: ``float model``, untouched, or ``trained network``, fake-quantized at the child.
        snr_db: signal to noise in decibels, see `emqdeploy.graph.fidelity`.
        agreement: percent of the images decided alike, of those that are no ties.
        decided: how many those are.
        images: images compared.
    """

    against: Text
    snr_db: Decibels
    agreement: Percent
    decided: Size
    images: Size

    def to_dict(self) -> dict[str, Any]:
        """Returns plain values."""
        return msgspec.structs.asdict(self)


class Card(Record, frozen=True, kw_only=True):
    """What a checkpoint, an exported file and a bundle say about their network.

    Attributes:
        model: name of the network.
        task: a name in `emqdeploy.format.tasks.TASKS`.
        classes: their names, by index.
        preprocessing: how pixels become the network's input; its size is the input's.
        data: the data set that it was trained on.
        accuracy: percent of the test set per child by name, measured in torch after training.
        fidelity: per child by name, how its answers differ from those of the network that it was made from.
        trained: names of the children that training visited; the others are unseen.
        levels: what of int8 and uint8 its codes use, and so which kernels are exact; see `emqdeploy.format.levels`.
        structure: what torch rebuilds the network from; empty in exported files.
        recipe: the options that made it.
        provenance: versions, seconds, passes.
    """

    model: Name
    classes: Annotated[tuple[Text, ...], Meta(min_length=1, max_length=MOST_CLASSES)]
    preprocessing: Pixels
    data: DataSource
    task: Name = "classification"
    accuracy: dict[Name, Percent] = msgspec.field(default_factory=dict)
    fidelity: dict[Name, FidelityRecord] = msgspec.field(default_factory=dict)
    trained: Annotated[tuple[Name, ...], Meta(max_length=MOST_CHILDREN)] = ()
    levels: Levels = HALF
    structure: dict[str, Any] = msgspec.field(default_factory=dict)
    recipe: dict[str, Any] = msgspec.field(default_factory=dict)
    provenance: dict[str, Any] = msgspec.field(default_factory=dict)

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """``(C, H, W)`` of one image."""
        return (self.preprocessing.channels, self.preprocessing.height, self.preprocessing.width)

    @property
    def method(self) -> str:
        """What made the network: `POST_TRAINING`, or the training method's name."""
        method = self.recipe.get("method", "training")
        return str(method.get("name", "training") if isinstance(method, Mapping) else method)

    def is_trained(self, child: Child) -> bool:
        """Whether training visited a child."""
        return child.name in self.trained

    def only(self, children: Sequence[Child]) -> Card:
        """The card of a file that holds these children and no others."""
        names = {child.name for child in children}
        accuracy = {name: percent for name, percent in self.accuracy.items() if name in names}
        fidelity = {name: found for name, found in self.fidelity.items() if name in names}
        trained = tuple(name for name in self.trained if name in names)
        return msgspec.structs.replace(self, accuracy=accuracy, fidelity=fidelity, trained=trained)

    def exported(self) -> Card:
        """The card of an exported file: without what only torch needs."""
        return msgspec.structs.replace(self, structure={}, recipe={"method": self.method}, provenance={})

    def to_dict(self) -> dict[str, Any]:
        """Returns plain values."""
        values: dict[str, Any] = msgspec.to_builtins(self)
        return values


R = TypeVar("R")


def decode(kind: type[R], data: bytes | str) -> R:
    """Reads JSON into a record.

    Raises:
        ValueError: it is not JSON, or a value has the wrong type or lies out of bounds; the message says where.
    """
    try:
        return msgspec.json.decode(data, type=kind, strict=True)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(str(error)) from error


def convert(kind: type[R], values: Any) -> R:
    """Reads plain values into a record; raises as `decode`."""
    try:
        return msgspec.convert(values, kind, strict=True)
    except (msgspec.ValidationError, RecursionError) as error:
        raise ValueError(str(error)) from error


def encode(record: Any) -> bytes:
    """Writes a record as JSON."""
    return msgspec.json.encode(record)


def record_children(children: Sequence[Child]) -> tuple[ChildRecord, ...]:
    """Children as files write them."""
    return tuple(ChildRecord(**child.to_dict()) for child in children)


def read_children(records: Sequence[ChildRecord]) -> tuple[Child, ...]:
    """Children as files hold them.

    Raises:
        ValueError: a width is out of range, or a name is there twice.
    """
    try:
        children = check_unique(Child(record.name, record.weights, record.activations) for record in records)
    except UsageError as error:
        raise ValueError(str(error)) from error
    if any(FLOAT_BITS in (child.weights.default, child.activations.default) for child in children):
        raise ValueError("no file holds a child in float")
    return children


def check_card(card: Card, children: Sequence[Child]) -> None:
    """Raises `ValueError` for a card that does not fit its children."""
    names = {child.name for child in children}
    for what, given in (("accuracy", card.accuracy), ("fidelity", card.fidelity), ("trained", card.trained)):
        strange = sorted(set(given) - names)
        if strange:
            raise ValueError(f"{what} names child {strange[0]!r}, which the file does not have")
    pixels = card.preprocessing
    if not len(pixels.mean) == len(pixels.std) == pixels.channels:
        raise ValueError("preprocessing needs one mean and one std per channel")
    if (pixels.channel_order == "grey") != (pixels.channels == 1):
        raise ValueError(f"{pixels.channels} channels are not {pixels.channel_order}")
    if pixels.resized is not None and not (pixels.resized[0] >= pixels.height and pixels.resized[1] >= pixels.width):
        raise ValueError("its pictures are resized to less than the network's input")


def damaged(path: Any, error: Exception, remedy: str) -> EmqError:
    """The sentence for a file whose content is not what it should be."""
    return EmqError(f"{path} is damaged ({str(error)[:300]}); {remedy}")
