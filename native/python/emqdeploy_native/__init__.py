"""The compiled part of emqdeploy: ``libemq``, with plain C interfaces that the headers beside it describe."""

from __future__ import annotations

from pathlib import Path


def library_path() -> str:
    """Where the library lies: what ``SessionOptions.register_custom_ops_library`` of onnxruntime takes."""
    return str(next(Path(__file__).parent.glob("libemq.*")))
