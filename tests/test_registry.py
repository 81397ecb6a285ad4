"""Names are found, listed and corrected."""

from __future__ import annotations

import pytest

from emqdeploy.errors import UsageError
from emqdeploy.registry import Registry


@pytest.fixture
def shapes() -> Registry[int]:
    """A small registry, filled out of order."""
    registry: Registry[int] = Registry("shape")
    registry.register("square")(4)
    registry.register("disc")(0)
    registry.register("triangle")(3)
    return registry


def test_decorator_leaves_what_it_decorates() -> None:
    """A registered function can still be called under its own name."""
    registry: Registry[object] = Registry("function")

    @registry.register("one")
    def one() -> int:
        return 1

    assert registry["one"] is one
    assert one() == 1


def test_names_are_sorted(shapes: Registry[int]) -> None:
    """Help texts do not depend on the order of imports."""
    assert list(shapes) == ["disc", "square", "triangle"]
    assert len(shapes) == 3


def test_unknown_name_lists_the_known_and_guesses(shapes: Registry[int]) -> None:
    """A slip of the finger is answered with the right name, in one sentence without quotes."""
    with pytest.raises(UsageError) as caught:
        shapes["Squares"]
    assert str(caught.value) == ("unknown shape 'Squares'; known: disc, square, triangle (did you mean 'square'?)")


def test_no_guess_where_nothing_is_near(shapes: Registry[int]) -> None:
    """A far-fetched guess would be worse than none."""
    with pytest.raises(UsageError, match=r"known: disc, square, triangle$"):
        shapes["qqqqqq"]


def test_it_behaves_as_a_mapping(shapes: Registry[int]) -> None:
    """`in` and `get` answer instead of raising: mappings owe that to their callers."""
    assert "disc" in shapes
    assert "oval" not in shapes
    assert shapes.get("oval", 7) == 7
    assert dict(shapes) == {"disc": 0, "square": 4, "triangle": 3}


def test_a_name_is_taken_once(shapes: Registry[int]) -> None:
    """Two modules with one name must fail at import, not replace one another."""
    with pytest.raises(ValueError, match="'disc' is registered twice"):
        shapes.register("disc")(1)
