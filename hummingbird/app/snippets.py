"""A finished video as text that makes it again: a Python script and a shell command."""

from __future__ import annotations

import shlex
from dataclasses import dataclass

__all__ = ["Recipe", "as_command", "as_python"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Recipe:
    """All that a video depends on; what ``hummingbird generate`` calls by the same names.

    Attributes:
        model: an embedded name, folder, file or hub id, as ``hummingbird.runtime.load_pipeline`` takes it.
        device: as given to ``load_pipeline``; ``auto`` is left out of the texts.
        dtype: the same.
        seed: of the CPU's generator.
    """

    model: str
    prompt: str
    seed: int
    num_inference_steps: int
    guidance_scale: float
    num_frames: int
    height: int
    width: int
    fps: float
    negative_prompt: str | None = None
    device: str = "auto"
    dtype: str = "auto"


def _number(value: float) -> str:
    """A whole number without its ``.0``; anything else with all of its digits."""
    return str(int(value)) if float(value).is_integer() else repr(float(value))


def as_command(recipe: Recipe, out: str = "video.mp4") -> str:
    """A command for a POSIX shell.

    Args:
        recipe: the video.
        out: file to write; its suffix chooses the format.
    """
    flags = {
        "--model": recipe.model,
        "--device": "" if recipe.device == "auto" else recipe.device,
        "--dtype": "" if recipe.dtype == "auto" else recipe.dtype,
        "--steps": str(recipe.num_inference_steps),
        "--guidance-scale": _number(recipe.guidance_scale),
        "--frames": str(recipe.num_frames),
        "--height": str(recipe.height),
        "--width": str(recipe.width),
        "--fps": _number(recipe.fps),
        "--seed": str(recipe.seed),
        "--negative-prompt": recipe.negative_prompt or "",
        "--out": out,
    }
    # One word, --flag=value: a value that begins with a dash would be taken for a flag.
    words = [
        f"{flag}={shlex.quote(value)}" if value.startswith("-") else f"{flag} {shlex.quote(value)}"
        for flag, value in flags.items()
        if value
    ]
    # After "--" nothing is a flag, so a prompt may begin with a dash as well.
    return " \\\n  ".join(["hummingbird generate", *words, f"-- {shlex.quote(recipe.prompt)}"])


def as_python(recipe: Recipe, out: str = "video.mp4") -> str:
    """A script; ``repr`` quotes every text, so that a prompt cannot become code.

    Args:
        recipe: the video.
        out: file to write; its suffix chooses the format.
    """
    where = [repr(recipe.model)]
    if recipe.device != "auto":
        where.append(f"device={recipe.device!r}")
    if recipe.dtype != "auto":
        where.append(f"dtype={recipe.dtype!r}")
    negative = f"    negative_prompt={recipe.negative_prompt!r},\n" if recipe.negative_prompt else ""
    return f"""\
import torch

from hummingbird.runtime import load_pipeline
from hummingbird.video_io import to_uint8, write_video

pipe = load_pipeline({", ".join(where)})
out = pipe(
    {recipe.prompt!r},
{negative}    num_inference_steps={recipe.num_inference_steps},
    guidance_scale={_number(recipe.guidance_scale)},
    num_frames={recipe.num_frames},
    height={recipe.height},
    width={recipe.width},
    fps={_number(recipe.fps)},
    generator=torch.Generator("cpu").manual_seed({recipe.seed}),
    output_type="np",
)
write_video(to_uint8(out.frames[0]), {out!r}, fps={_number(recipe.fps)})
"""
