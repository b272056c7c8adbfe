"""Which frames of a video a reward looks at."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch


@dataclass(frozen=True, kw_only=True)
class FrameSelection:
    """A rule that picks frames of a video; the same ones for all videos of a batch.

    Args:
        rule: "random" draws ``count`` frames with replacement; "strided" takes every (F // count)-th frame
            from ``start``, ``count`` of them; "all" takes every frame.
        count: How many frames, at least 1.
        start: Of "strided": "random" draws the first frame below the stride, a number is it (at most the
            stride - 1).

    Raises:
        ValueError: A value out of its range.
    """

    rule: Literal["random", "strided", "all"] = "all"
    count: int = 8
    start: Literal["random"] | int = "random"

    def __post_init__(self) -> None:
        if self.rule not in ("random", "strided", "all"):
            raise ValueError(f"rule: got {self.rule!r}, expected random, strided or all")
        if self.count < 1:
            raise ValueError(f"count: got {self.count}, expected at least 1")
        if self.start != "random" and (isinstance(self.start, str) or self.start < 0):
            raise ValueError(f"start: got {self.start!r}, expected random or a number from 0")

    def indices(self, num_frames: int, generator: torch.Generator | None = None) -> list[int]:
        """Pick frames of a video.

        Args:
            num_frames: F, at least 1.
            generator: Draws what is random; torch's global one where left out.

        Raises:
            ValueError: Where the video has fewer frames than "strided" takes, or none from ``start`` on.
        """
        device = generator.device if generator is not None else None
        if self.rule == "all":
            return list(range(num_frames))
        if self.rule == "random":
            drawn = torch.randint(0, num_frames, (self.count,), generator=generator, device=device)
            return [int(index) for index in drawn]
        stride = num_frames // self.count
        if stride == 0:
            raise ValueError(
                f"frames: got a video of {num_frames} frames, expected at least the {self.count} that are "
                "picked"
            )
        if self.start == "random":
            start = int(torch.randint(0, stride, (1,), generator=generator, device=device))
        else:
            start = self.start
        if start >= stride:
            raise ValueError(f"start: got {start}, expected below the stride {stride} of {num_frames} frames")
        return list(range(start, num_frames, stride))[: self.count]


IMAGE_FRAMES = FrameSelection(rule="random", count=5)
"""What the original decodes for an image reward."""
VIDEO_FRAMES = FrameSelection(rule="strided", count=8)
"""What the original decodes for a video reward."""
