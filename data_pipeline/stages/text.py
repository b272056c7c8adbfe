"""Text in the picture: captions that were burnt in, titles, watermarks. Off by default.

A few frames are read by an OCR model (``rapidocr``, whose models come with it; nothing is downloaded). What
counts is the share of the picture that text covers. A place is text when it was found *and* read: detection
alone takes grass and grilles for writing. A watermark is text that is in the same place in all of the frames.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import cv2
import numpy as np
import pydantic

from data_pipeline.clip import Clip, Drop, Keep, View
from hummingbird.config import config_dataclass

if TYPE_CHECKING:
    from rapidocr import RapidOCR

__all__ = ["TextConfig", "TextError", "text_mask"]

_LONG_SIDE = 960
"""Larger pictures are shrunken to it for detection; text that is smaller than about 8 pixels is then lost."""
_SHORT_SIDE = 480


class TextError(RuntimeError):
    """The OCR model cannot be used; the message is one line that says why."""


@config_dataclass
class TextConfig:
    """Settings of the text stage.

    Attributes:
        model: ``rapidocr`` reads; ``none`` switches the stage off.
        num_frames: frames at the centres of equal parts of the clip.
        max_area: clips whose frames are covered by more text on average are dropped, as a share of the
            picture; null drops none.
        max_watermark: the same for text that is in one place in all frames.
        min_confidence: of the reading; below it is no text.
        min_characters: shorter readings are no text; single characters are read into all sorts of things.
    """

    model: Literal["rapidocr", "none"] = "none"
    num_frames: int = pydantic.Field(default=3, ge=1, le=64)
    max_area: float | None = pydantic.Field(default=0.03, ge=0, le=1)
    max_watermark: float | None = pydantic.Field(default=None, ge=0, le=1)
    min_confidence: float = pydantic.Field(default=0.7, ge=0, le=1)
    min_characters: int = pydantic.Field(default=2, ge=1)

    @property
    def name(self) -> str:
        """Name of the stage."""
        return "text"

    @property
    def views(self) -> tuple[View, ...]:
        """Frames that are read."""
        return (View(num_frames=self.num_frames, short_side=_SHORT_SIDE),) if self.model != "none" else ()

    def setup(self) -> None:
        """Load the model, once per process.

        Raises:
            ImportError: it is not installed.
            TextError: its files are not there.
        """
        if self.model != "none":
            _reader()

    def process(self, clip: Clip) -> Keep | Drop:
        """Measure how much text there is.

        Raises:
            VideoError: the clip can no longer be decoded.
        """
        if self.model == "none":
            return Keep()
        images = clip.frames(self.views[0]).images
        masks = [text_mask(image, self.min_confidence, self.min_characters) for image in images]
        scores = {
            "text_area": float(np.mean(masks)),
            "text_watermark": float(np.logical_and.reduce(masks).mean()),
        }
        for reason, name, limit in (
            ("text: too much", "text_area", self.max_area),
            ("text: watermark", "text_watermark", self.max_watermark),
        ):
            if limit is not None and scores[name] > limit:
                detail = f"{name} {scores[name]:.4f} is above {limit:g}"
                return Drop(reason=reason, detail=detail, scores=scores)
        return Keep(scores=scores)


def text_mask(image: np.ndarray, min_confidence: float, min_characters: int) -> np.ndarray:
    """Where text is: ``(H, W)`` bool of ``(H, W, 3)`` uint8 RGB."""
    found: Any = _reader()(np.ascontiguousarray(image[..., ::-1]))
    mask = np.zeros(image.shape[:2], np.uint8)
    if found.boxes is not None:
        for box, text, confidence in zip(found.boxes, found.txts, found.scores, strict=True):
            if confidence >= min_confidence and _num_characters(text) >= min_characters:
                cv2.fillPoly(mask, [np.round(box).astype(np.int32)], 1)
    return mask.astype(bool)


def _num_characters(text: str) -> int:
    return sum(character.isalnum() for character in text)


@functools.cache
def _reader() -> RapidOCR:
    """The model, from the files that were installed with it."""
    try:
        import rapidocr
    except ImportError as error:
        raise ImportError(
            "text.model rapidocr needs rapidocr and onnxruntime; pip install 'hummingbird-t2v[ocr]'"
        ) from error
    folder = Path(rapidocr.__file__).parent / "models"
    params: dict[str, Any] = {
        "Global.log_level": "critical",
        "Global.use_cls": False,
        "Det.limit_type": "max",
        "Det.limit_side_len": _LONG_SIDE,
        "EngineConfig.onnxruntime.intra_op_num_threads": 1,
        "EngineConfig.onnxruntime.inter_op_num_threads": 1,
    }
    # Named explicitly: without a file rapidocr would fetch one.
    for part in ("Det", "Rec"):
        params[f"{part}.model_path"] = str(_only(folder, f"*_{part.lower()}_*.onnx"))
    return rapidocr.RapidOCR(params=params)


def _only(folder: Path, pattern: str) -> Path:
    found: Sequence[Path] = sorted(folder.glob(pattern))
    if len(found) != 1:
        raise TextError(
            f"{folder}: has {len(found)} files {pattern}, expected one; pip install 'rapidocr>=3.10,<4'"
        )
    return found[0]
