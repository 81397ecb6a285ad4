"""What files and artefacts are called."""

from __future__ import annotations

from emqdeploy.exporters.products import tag
from emqdeploy.format.child import Child


def test_every_child_has_a_tag_of_its_own() -> None:
    """Widths read as before, other names as they are, and none of them twice."""
    children = [Child.of(4), Child.of(2, 4), *(Child(name, 4) for name in ("mixed", "w4", "ww4", "3x"))]
    tags = [tag(child) for child in children]
    assert tags == ["w4", "w2a4", "mixed", "ww4", "www4", "w3x"]
