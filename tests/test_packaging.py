"""What a package index shows: addresses of the project, and a README whose links lead somewhere."""

from __future__ import annotations

import re
from importlib import util
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent
ADDRESS = "https://example.org/us/emqdeploy"


@pytest.fixture(scope="module")
def build() -> Any:
    """The hook of the build."""
    spec = util.spec_from_file_location("hatch_build", ROOT / "hatch_build.py")
    assert spec is not None
    assert spec.loader is not None
    module = util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("address", [ADDRESS, None])
def test_links_of_the_readme_work_elsewhere(build: Any, address: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each is absolute and names a file that is there; without an address none is left that would lead nowhere."""
    monkeypatch.setenv("EMQDEPLOY_REPOSITORY", f"{address}/" if address else "")
    metadata: dict[str, Any] = {}
    build.Shown(str(ROOT), {}).update(metadata)
    text, plain = metadata["readme"]["text"], (ROOT / "README.md").read_text()
    links = re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", text)
    assert all(link.startswith("https://") for link in links)
    ours = [link.removeprefix(f"{ADDRESS}/blob/main/") for link in links if link.startswith(ADDRESS)]
    assert all((ROOT / path).exists() for path in ours)
    assert bool(ours) == (address is not None)
    assert len(text.splitlines()) == len(plain.splitlines())
    assert metadata["urls"]["Paper"].startswith("https://arxiv.org/")
    assert metadata["urls"].get("Repository") == address


def test_there_are_authors() -> None:
    """And no field of the metadata is left to the imagination."""
    text = (ROOT / "pyproject.toml").read_text()
    for field in ("authors", "license", "keywords", "classifiers", "description"):
        assert re.search(rf"^{field} = ", text, re.MULTILINE)
