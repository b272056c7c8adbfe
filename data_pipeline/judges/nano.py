"""The embedded judge."""

from __future__ import annotations

from data_pipeline.clip import Clip, View
from data_pipeline.vqa.features import NUM_FRAMES, NUM_TEMPORAL_FRAMES, TEMPORAL_SHORT_SIDE, clip_features

__all__ = ["VIEWS", "NanoVqaJudge"]

VIEWS = (
    View(num_frames=NUM_FRAMES),
    View(short_side=TEMPORAL_SHORT_SIDE, max_frames=NUM_TEMPORAL_FRAMES),
)
"""Eight full-size frames for the picture, consecutive small ones for the motion."""


class NanoVqaJudge:
    """``nano-vqa``.

    Raises:
        VqaError: its weights cannot be used.
    """

    def __init__(self) -> None:
        from data_pipeline.vqa.model import load_nano_vqa

        self._model = load_nano_vqa()

    def score(self, clip: Clip) -> dict[str, float]:
        """See ``Judge``."""
        full, small = (clip.frames(view) for view in VIEWS)
        quality = self._model.score(clip_features(full.images, small.images, small.times_s))
        return {"quality": quality, "quality_nano_vqa": quality}
