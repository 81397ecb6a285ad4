"""What a package index shows of the project: its addresses, and the README with links that work there.

The address is that of whoever publishes: ``EMQDEPLOY_REPOSITORY=https://HOST/OWNER/emqdeploy python -m build``. Without
it there is nothing that links could lead to, so they become plain words.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from hatchling.metadata.plugin.interface import MetadataHookInterface

PAPER = "https://arxiv.org/abs/2510.20673"
_RELATIVE = re.compile(r"(?<!!)\[([^\]]+)\]\((?!https?:|#)([^)\s]+)\)")


def addresses(repository: str | None) -> dict[str, str]:
    """The project's URLs.

    Args:
        repository: where the source lies; None where that is nowhere public.
    """
    if repository is None:
        return {"Paper": PAPER}
    return {
        "Repository": repository,
        "Documentation": f"{repository}/tree/main/docs",
        "Changelog": f"{repository}/blob/main/CHANGELOG.md",
        "Issues": f"{repository}/issues",
        "Paper": PAPER,
    }


def readable(readme: str, repository: str | None) -> str:
    """The README with its relative links made absolute, or plain words where there is no address."""
    if repository is None:
        return _RELATIVE.sub(r"\1", readme)
    return _RELATIVE.sub(rf"[\1]({repository}/blob/main/\2)", readme)


class Shown(MetadataHookInterface):
    """Fills what the build leaves open."""

    def update(self, metadata: dict[str, Any]) -> None:
        """Adds the addresses and the README."""
        repository = os.environ.get("EMQDEPLOY_REPOSITORY", "").rstrip("/") or None
        readme = (Path(self.root) / "README.md").read_text(encoding="utf-8")
        metadata["urls"] = addresses(repository)
        metadata["readme"] = {"content-type": "text/markdown", "text": readable(readme, repository)}
