"""What the page knows about models of the moving-shapes world: their words, their prompts, their judge."""

from __future__ import annotations

import json
import random
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from hummingbird import nano
from hummingbird.nano import world

if TYPE_CHECKING:
    from hummingbird.nano.oracle import Verdict

__all__ = [
    "EXAMPLES",
    "Check",
    "build_prompt",
    "checks",
    "note_on",
    "random_prompt",
    "seen_in",
    "speaks_world",
]

EXAMPLES = (
    "a red circle moving right on a black background",
    "a yellow star bouncing on a navy background",
    "a cyan square growing on a brown background",
    "a green cross moving left on a white background",
)

_MAX_TOKENIZER_BYTES = 64 * 1024**2

WHAT_IT_DRAWS = (
    f"This model draws one thing: a shape that moves on a plain background. {len(world.SHAPES)} shapes, "
    f"{len(world.COLORS)} colours, {len(world.MOTIONS)} motions, {len(world.BACKGROUNDS)} backgrounds; "
    f"{world.IMAGE_SIZE}×{world.IMAGE_SIZE} pixels, {world.NUM_FRAMES} frames."
)


def speaks_world(source: str) -> bool:
    """Whether all words that a model can read are the world's, whatever the model is called.

    Args:
        source: an embedded name or a folder; anything else is taken for a model of another kind.
    """
    path = (nano.resolve(source) or Path(source)) / "tokenizer" / "tokenizer.json"
    try:
        if path.stat().st_size > _MAX_TOKENIZER_BYTES:
            return False
        entries = json.loads(path.read_bytes())
        special = {token["content"] for token in entries.get("added_tokens") or ()}
        words = set(entries["model"]["vocab"]) - special - {entries["model"].get("unk_token")}
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return False
    return bool(words) and words <= set(world.vocabulary())


def build_prompt(shape: str, color: str, motion: str, background: str) -> str:
    """The canonical caption of four choices.

    Raises:
        ValueError: one of them is not of the world.
    """
    return world.Attributes(shape=shape, color=color, motion=motion, background=background).prompt


def random_prompt(rng: random.Random) -> str:
    """One of the 2,400 canonical captions."""
    return rng.choice(world.all_attributes()).prompt


def note_on(prompt: str) -> str:
    """One sentence where a prompt is not of the world; empty where it is one or there is none yet."""
    if not prompt.strip() or world.parse_caption(prompt) is not None:
        return ""
    known = set(world.vocabulary())
    words = prompt.lower().replace(",", " , ").replace(".", " ").split()
    unknown = list(dict.fromkeys(word for word in words if word not in known))
    if unknown:
        shown = ", ".join(f"“{word}”" for word in unknown[:5]) + (" …" if len(unknown) > 5 else "")
        return f"It has never seen {shown}; you will get a video, but not of that."
    return "It knows these words, but was trained on sentences like the examples; expect less."


@dataclass(frozen=True, slots=True)
class Check:
    """One attribute of a video against its prompt.

    Attributes:
        name: ``shape``, ``color``, ``motion`` or ``background``.
        asked: what the prompt says; None where the prompt is not of the world.
        seen: what the oracle sees, or ``unclear``.
    """

    name: str
    asked: str | None
    seen: str

    @property
    def is_right(self) -> bool | None:
        """None where nothing was asked for."""
        return None if self.asked is None else self.asked == self.seen


def checks(prompt: str, verdict: Verdict) -> list[Check]:
    """The four attributes, in the order of ``world.ATTRIBUTES``."""
    asked = world.parse_caption(prompt)
    return [
        Check(name, getattr(asked, name) if asked else None, getattr(verdict, name))
        for name in world.ATTRIBUTES
    ]


@lru_cache(maxsize=512)
def _judge_file(path: Path, modified_ns: int) -> Verdict:
    from hummingbird.nano.oracle import judge
    from hummingbird.video_io import read_video

    return judge(read_video(path, max_frames=512, max_bytes=512 * 1024**2).frames)


def seen_in(path: Path) -> Verdict:
    """The oracle's verdict on a video file: on what the viewer sees, compression and all.

    Raises:
        OSError: there is no such file.
        hummingbird.video_io.VideoError: it cannot be read.
    """
    return _judge_file(path, path.stat().st_mtime_ns)
