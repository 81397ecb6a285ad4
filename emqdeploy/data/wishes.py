"""What a user, or the weights, ask of preprocessing: any of its numbers, over those that the data come with."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace
from typing import Any, TypeVar

from emqdeploy.data.preprocessing import Preprocessing
from emqdeploy.data.resampling import INTERPOLATIONS
from emqdeploy.errors import UsageError
from emqdeploy.format.card import WHOLE_UP_TO, usual_resize
from emqdeploy.options import option

WHOLE = "whole"
"""The crop that takes all of a picture, stretched to the network's input."""

CHANNELS = {"rgb": 3, "bgr": 3, "grey": 1}

_LARGEST_MEAN, _LARGEST_STD = 1.0, 2.0
"""Of pixels from 0 to 1; numbers beyond are of pixels from 0 to 255."""


def _values(flag: str) -> Any:
    def read(value: object) -> tuple[float, ...]:
        parts: Any = value.split(",") if isinstance(value, str) else value
        parts = parts if isinstance(parts, (list, tuple)) else [parts]
        try:
            found = tuple(float(part) for part in parts)
        except (TypeError, ValueError):
            found = ()
        if len(found) not in (1, 3) or not all(map(math.isfinite, found)) or (flag == "std" and min(found) <= 0):
            raise UsageError(f"--{flag} is {value!r}; give one number, or three as in 0.485,0.456,0.406")
        return found

    return read


def _crop(value: object) -> float | str:
    if value == WHOLE:
        return WHOLE
    try:
        share = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        share = 0.0
    if not 0.1 <= share <= 1:
        raise UsageError(
            f"--crop is {value!r}; give the network's share of the resized side, 0.1 to 1 (0.875: the middle 224 of"
            f" 256), or {WHOLE} to stretch whole pictures"
        )
    return share


def _one_of(flag: str, *allowed: str) -> Any:
    def read(value: object) -> str:
        if value not in allowed:
            raise UsageError(f"--{flag} is {value!r}; allowed: {', '.join(allowed)}")
        return str(value)

    return read


@dataclass(frozen=True, kw_only=True)
class PixelOptions:
    """Preprocessing as far as somebody says it; None leaves it to the weights, then to the data.

    Attributes:
        image_size: H = W of the input.
        mean: one for all channels, or one for each in the network's order.
        std: likewise.
        crop: the network's share of the resized picture's side, or `WHOLE`.
        interpolation: of the resizing.
        channel_order: of the input.
    """

    image_size: int | None = option(None, "Height and width of the network's input.", panel="Pictures", least=1)
    mean: tuple[float, ...] | None = option(
        None, "Mean per channel, of pixels from 0 to 1 (or from 0 to 255).", panel="Pictures", parse=_values("mean")
    )
    std: tuple[float, ...] | None = option(
        None, "Standard deviation per channel, in the same units.", panel="Pictures", parse=_values("std")
    )
    crop: float | str | None = option(
        None,
        "Part of the picture to use: 0.875 (the middle 224 of 256), 1, or whole (stretched to fit).",
        panel="Pictures",
        parse=_crop,
    )
    interpolation: str | None = option(
        None,
        f"How to resize: {', '.join(INTERPOLATIONS)}.",
        panel="Pictures",
        parse=_one_of("interpolation", *INTERPOLATIONS),
    )
    channel_order: str | None = option(
        None,
        "Channel order of the input: rgb, bgr or grey.",
        panel="Pictures",
        parse=_one_of("channel-order", *CHANNELS),
    )


@dataclass(frozen=True)
class Expected:
    """What weights that are trained already expect of their pictures.

    Attributes:
        pixels: as far as it is known.
        source: who says so, in words.
        certain: whether mean and standard deviation are of these very weights, and not of their kind.
    """

    pixels: PixelOptions = PixelOptions()
    source: str = ""
    certain: bool = False


PIXELS = tuple(one.name for one in fields(PixelOptions))

P = TypeVar("P", bound=PixelOptions)


def wishes_of(config: PixelOptions) -> PixelOptions:
    """The part of a configuration that is about pixels."""
    return PixelOptions(**{name: getattr(config, name) for name in PIXELS})


def over(wishes: P, below: PixelOptions) -> P:
    """Wishes, with others where they say nothing."""
    if wishes.image_size is not None and wishes.image_size <= WHOLE_UP_TO:
        below = replace(below, crop=None)  # which was said of large pictures
    said = {name: getattr(below, name) for name in PIXELS if getattr(wishes, name) is None}
    return replace(wishes, **said)


def wished(wishes: PixelOptions, data: Preprocessing) -> Preprocessing:
    """Preprocessing as wished; what is left open is that of the data.

    Raises:
        UsageError: A mean or standard deviation for another number of channels.
    """
    order = wishes.channel_order or data.channel_order
    channels = CHANNELS[order]
    size = (wishes.image_size,) * 2 if wishes.image_size is not None else data.size
    if wishes.crop == WHOLE:
        resize, resized = "stretch", size
    elif wishes.crop is not None:
        share = float(wishes.crop)
        resize, resized = "cover", (int(size[0] / share + 1e-6), int(size[1] / share + 1e-6))
    else:
        resize, resized = (data.resize, data.resized) if size == data.size else usual_resize(*size)
    mean, std = _in_unit_range(wishes.mean, wishes.std)
    return Preprocessing(
        channels,
        *size,
        _per_channel("mean", mean, data.mean, channels),
        _per_channel("std", std, data.std, channels),
        order,
        resize,
        resized,
        wishes.interpolation or data.interpolation,
    )


def _in_unit_range(
    mean: tuple[float, ...] | None, std: tuple[float, ...] | None
) -> tuple[tuple[float, ...] | None, tuple[float, ...] | None]:
    """Mean and deviation of pixels from 0 to 1, also where they were given for 0 to 255."""
    bytes_ = (mean is not None and max(mean) > _LARGEST_MEAN) or (std is not None and max(std) > _LARGEST_STD)
    if not bytes_:
        return mean, std
    scaled = [None if values is None else tuple(value / 255 for value in values) for values in (mean, std)]
    return scaled[0], scaled[1]


def _per_channel(
    flag: str, given: tuple[float, ...] | None, data: tuple[float, ...], channels: int
) -> tuple[float, ...]:
    if given is None:
        if len(data) == channels:
            return data
        return data * channels if len(data) == 1 else (round(sum(data) / len(data), 6),) * channels
    if len(given) == channels:
        return given
    if len(given) == 1:
        return given * channels
    raise UsageError(
        f"--{flag} has {len(given)} values and the network's images have 1 channel, grey; give one value, or"
        " --channel-order rgb where the network takes colour"
    )
