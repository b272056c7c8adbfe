"""The embedded default: a small model trained on the moving-shapes world and shipped inside the package."""

from __future__ import annotations

from pathlib import Path

EMBEDDED_MODELS = {"nano": "nano-teacher", "nano-teacher": "nano-teacher"}
"""Name a user types -> folder under ``hummingbird/nano/weights``."""


def resolve(name: str) -> Path | None:
    """Return the package folder of an embedded model; None where ``name`` is not one. Never touches a
    network.

    Args:
        name: What the user gave as a model: an embedded name, a folder or a hub id.
    """
    folder = EMBEDDED_MODELS.get(name)
    return None if folder is None else Path(__file__).parent / "weights" / folder
