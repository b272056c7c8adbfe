"""The embedded default: a small model trained on the moving-shapes world and shipped inside the package."""

from __future__ import annotations

from pathlib import Path

EMBEDDED_MODELS = ("nano", "nano-teacher", "nano-stage1")
"""Names a user types; each is a folder under ``hummingbird/nano/weights``."""

EMBEDDED_DECODERS = {"nano": "nano-decoder"}
"""Name of a small decoder -> its folder; it is made for the latents of the models of that name."""


def resolve_decoder(name: str) -> Path | None:
    """Return the package folder of an embedded small decoder; None where ``name`` is not one.

    Args:
        name: What the user gave as a decoder: an embedded name, a folder or a hub id.
    """
    folder = EMBEDDED_DECODERS.get(name)
    return None if folder is None else Path(__file__).parent / "weights" / folder


def resolve(name: str) -> Path | None:
    """Return the package folder of an embedded model; None where ``name`` is not one. Never touches a
    network.

    Args:
        name: What the user gave as a model: an embedded name, a folder or a hub id.
    """
    return Path(__file__).parent / "weights" / name if name in EMBEDDED_MODELS else None
