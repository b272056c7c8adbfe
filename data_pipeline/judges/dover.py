"""DOVER and DOVER-Mobile as judges."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pydantic

from data_pipeline.clip import Clip, View
from data_pipeline.judges.base import QualityError
from hummingbird.config import config_dataclass

if TYPE_CHECKING:
    from data_pipeline.dover.model import DoverName

__all__ = ["DoverConfig", "DoverJudge"]


@config_dataclass
class DoverConfig:
    """Settings of DOVER. Published checkpoints are for non-commercial use only.

    Attributes:
        checkpoint: ``DOVER.pth`` or ``DOVER-Mobile.pth``, as the model asks.
        compatible: keep what the published sampling does to short clips and small pictures
            (``data_pipeline.dover.sampling``).
        antialias: smooth before the picture is shrunken, as torchvision does from 0.17 on.
        seed: of frames and crops; each clip has draws of its own, the same in every run.
    """

    checkpoint: Path | None = None
    compatible: bool = False
    antialias: bool = False
    seed: int = pydantic.Field(default=0, ge=0)

    @property
    def views(self) -> tuple[View, ...]:
        """None: its frames are streamed, they are too many to be held at full size."""
        return ()

    @property
    def gives(self) -> frozenset[str]:
        """Scores that thresholds can choose by."""
        return frozenset({"quality", "quality_technical", "quality_aesthetic"})

    def missing(self) -> str | None:
        """Name of a setting that it cannot do without."""
        return "checkpoint" if self.checkpoint is None else None


class DoverJudge:
    """One of the two models, on the CPU, or on a GPU where there is one.

    Raises:
        DoverError: the checkpoint cannot be used.
        OSError: it cannot be read.
    """

    def __init__(self, settings: DoverConfig, name: DoverName) -> None:
        import torch

        from data_pipeline.dover.model import load_dover
        from data_pipeline.dover.sampling import standard_views

        assert settings.checkpoint is not None  # the settings were validated
        self._settings = settings
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._model = load_dover(settings.checkpoint, name).to(self._device)
        self._views = standard_views(antialias=settings.antialias)

    def score(self, clip: Clip) -> dict[str, float]:
        """See ``Judge``."""
        import torch

        from data_pipeline.dover.sampling import draw_frames, sample_views

        seed = hashlib.sha256(f"{self._settings.seed}:{clip.spec.clip_id}".encode()).digest()
        number, compatible = int.from_bytes(seed[:8], "big"), self._settings.compatible
        rng, generator = np.random.default_rng(number), torch.Generator().manual_seed(number)
        indices = draw_frames(self._views, clip.spec.num_frames, rng, compatible=compatible)
        wanted = {index for found in indices.values() for index in found.tolist()}
        images = (
            (index, torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1).contiguous())
            for index, image in clip.stream(wanted)
        )
        try:
            views = sample_views(images, self._views, indices, generator, compatible=compatible)
        except ValueError as error:
            raise QualityError(f"{clip.spec.clip_id}: {error}") from error
        scores = self._model.score({name: view.to(self._device) for name, view in views.items()})
        return {
            "quality": scores.overall,
            "quality_technical": scores.technical,
            "quality_aesthetic": scores.aesthetic,
        }
