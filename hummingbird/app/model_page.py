"""Which model is loaded, where, and what its card says."""

from __future__ import annotations

import base64
import os
import re
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

from hummingbird import nano

if TYPE_CHECKING:
    from hummingbird.serving import Engine

__all__ = ["card_of", "facts_table", "memory_of_process"]

_MAX_CARD_BYTES = 200_000
_MAX_IMAGE_BYTES = 600_000


def card_of(source: str) -> str:
    """The model's README as Markdown that is safe to show: no HTML of its own, nothing from elsewhere.

    Args:
        source: an embedded name or a folder.
    """
    folder = nano.resolve(source) or Path(source)
    path = folder / "README.md"
    if not path.is_file():
        return "This model has no card: its folder has no `README.md`."
    with path.open("rb") as file:
        text = file.read(_MAX_CARD_BYTES).decode("utf-8", "replace")
    text = re.sub(r"\A---\n.*?\n---\n", "", text, flags=re.DOTALL)
    text = text.replace("<", "&lt;")
    # The page has a title already: the card's headings go one level down.
    text = re.sub(r"^(#{1,5}) ", r"#\1 ", text, flags=re.MULTILINE)
    return re.sub(r"!\[([^\]]*)\]\(([^)\s]*)[^)]*\)", lambda match: _image(folder, *match.groups()), text)


def _image(folder: Path, words: str, target: str) -> str:
    """A picture of the folder as part of the text; any other picture as its name alone."""
    path = folder / target
    plain = target == Path(target).name and path.suffix.lower() == ".png"
    if not plain or path.is_symlink() or not path.is_file() or path.stat().st_size > _MAX_IMAGE_BYTES:
        return f"*(picture: {words or 'no description'})*"
    return f"![{words}](data:image/png;base64,{base64.b64encode(path.read_bytes()).decode('ascii')})"


def facts_table(engine: Engine) -> str:
    """The loaded model as a table."""
    info = engine.model_info
    if info is None:
        rows = [("Loaded", "nothing yet: a model is loaded when the first video needs it")]
    else:
        defaults = info.facts.default_call
        rows = [
            ("Loaded", info.name),
            ("From", info.source),
            ("Kind", _kind(info.facts.has_guidance_embedding)),
            ("Parameters", f"{info.num_parameters:,}"),
            ("Weights in memory", _mebibytes(info.memory_bytes)),
            ("Device", info.device),
            ("Precision", info.dtype),
            ("Loading took", f"{info.load_seconds:.1f} s"),
            (
                "Made for",
                f"{defaults['num_frames']} frames of {defaults['width']}×{defaults['height']} at "
                f"{defaults['fps']:g} fps, {defaults['num_inference_steps']} steps, guidance "
                f"{defaults['guidance_scale']:g}",
            ),
        ]
    rows.append(("Memory of the server", _mebibytes(memory_of_process())))
    accelerator = _accelerator_bytes(info.device if info else "cpu")
    if accelerator is not None:
        rows.append(("Memory on the device", _mebibytes(accelerator)))
    body = "".join(
        f'<tr><th scope="row">{escape(name)}</th><td>{escape(value)}</td></tr>' for name, value in rows
    )
    return f'<table class="hb-table">{body}</table>'


def _kind(has_guidance_embedding: bool | None) -> str:
    if has_guidance_embedding:
        return "few steps, guidance built in"
    return "many steps, classifier-free guidance (two passes a step)"


def _mebibytes(size_bytes: int) -> str:
    if size_bytes >= 1024**3:
        return f"{size_bytes / 1024**3:.2f} GiB"
    return f"{size_bytes / 1024**2:.1f} MiB"


def memory_of_process() -> int:
    """Bytes of memory that this process holds now (Linux)."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def _accelerator_bytes(device: str) -> int | None:
    import torch

    return torch.cuda.memory_allocated(device) if device.startswith("cuda") else None
