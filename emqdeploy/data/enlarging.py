"""Small pictures keep their size: a network of the usual size sees nothing more in them, only slower."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from emqdeploy.data.pictures import Images, Pictures
from emqdeploy.data.preprocessing import Preprocessing
from emqdeploy.data.wishes import Expected, PixelOptions, over
from emqdeploy.errors import UsageError
from emqdeploy.format.card import WHOLE_UP_TO

_LOOKED_AT = 16
"""Pictures whose sizes are read, evenly over the data set."""

_MUCH = 2
"""How many times pictures are enlarged before somebody is asked."""


def unenlarged(
    name: str, images: Images, usual: Preprocessing, wishes: PixelOptions, expected: Expected
) -> tuple[PixelOptions, tuple[str, ...]]:
    """What is wished, over what weights expect, such that small pictures keep their size unless somebody says other.

    Args:
        name: Of the data set.
        images: Its pictures.
        usual: How they are seen where nobody says.
        wishes: What the user says.
        expected: What the weights expect.

    Returns:
        The wishes, and a sentence where pictures keep a size that the weights do not expect, or are a little enlarged.

    Raises:
        UsageError: The pictures are small and of several sizes; the sentence says which sizes can be chosen.
    """
    merged = over(wishes, expected.pixels)
    if wishes.image_size is not None:
        return merged, ()
    wanted = merged.image_size or usual.height
    if not isinstance(images, Pictures):
        own = images.shape[2]
        note = f"the pictures of {name} keep their {own} pixels ({expected.source}: {wanted})"
        kept = over(replace(wishes, image_size=own), expected.pixels)
        return kept, (f"{note}; --image-size {wanted} resizes them",) if own != wanted else ()
    sizes = [images.size_of(index) for index in np.linspace(0, len(images) - 1, _LOOKED_AT).astype(int)]
    known = [size for size in sizes if size is not None]
    side = int(np.median([min(size) for size in known])) if known else wanted
    if side >= wanted:
        return merged, ()
    if side * _MUCH > wanted:
        note = f"the pictures of {name} have {side} pixels and are enlarged to {wanted}; --image-size {side} keeps them"
        return merged, (note,)
    if len(set(known)) == 1 and known[0][0] == known[0][1] <= WHOLE_UP_TO:
        kept = over(replace(wishes, image_size=side), expected.pixels)
        return kept, (f"the pictures of {name} keep their {side} pixels; --image-size {wanted} enlarges them",)
    raise UsageError(
        f"the pictures of {name} have {side} pixels and the network would see them at {wanted}; --image-size {wanted}"
        f" enlarges them, --image-size {side} runs the network at their size"
    )
