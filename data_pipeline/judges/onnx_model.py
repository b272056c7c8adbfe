"""Any exported scorer as a judge: frames in, scores out, through onnxruntime.

Nothing about the input is guessed. Layout, size and normalisation are settings, and are compared with what
the model declares before the first clip. No library of custom operators is loaded, and weights outside the
file are not read from outside its folder.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
import pydantic

from data_pipeline.clip import Clip, View
from data_pipeline.judges.base import QualityError, to_unit
from hummingbird.config import config_dataclass

__all__ = ["OnnxConfig", "OnnxJudge"]

_TYPES = {
    "tensor(float)": np.dtype(np.float32),
    "tensor(float16)": np.dtype(np.float16),
    "tensor(double)": np.dtype(np.float64),
    "tensor(uint8)": np.dtype(np.uint8),
}
_AXES = {"NTHWC": "BTHWC", "NTCHW": "BTCHW", "NCTHW": "BCTHW", "NCHW": "TCHW", "NHWC": "THWC"}
"""Axes of the input by layout; with four, the frames are the batch. B batch, T frames, C colours."""
_QUIET = 4

Triple = tuple[float, float, float]


@config_dataclass
class OnnxConfig:
    """Settings of an exported scorer.

    Attributes:
        file: the ``.onnx`` file.
        layout: axes of its input; with ``NCHW`` and ``NHWC`` the frames are the batch, and the mean of their
            scores is the clip's.
        num_frames: frames at the centres of equal parts of the clip; a shorter clip gives some repeatedly.
        height, width: frames are squashed to this size, by areas where they shrink, else bilinearly.
        scale: pixels 0 to 255 are divided by it; then ``mean`` is taken off, and divided by ``std``. Models
            whose input is uint8 get the pixels as they are.
        mean, std: of red, green, blue.
        bgr: blue first.
        output: name of the output with the quality; null takes the only one.
        technical_output, aesthetic_output: names of outputs with these two, where there are any.
        activation: applied to the outputs.
        low, high: range of the outputs, after the activation; it is mapped onto 0 to 1.
        providers: of onnxruntime, by preference; each must be there.
        num_threads: of one worker.
    """

    file: Path | None = None
    layout: Literal["NTHWC", "NTCHW", "NCTHW", "NCHW", "NHWC"] = "NCTHW"
    num_frames: int = pydantic.Field(default=8, ge=1, le=256)
    height: int = pydantic.Field(default=224, ge=1, le=4096)
    width: int = pydantic.Field(default=224, ge=1, le=4096)
    scale: float = pydantic.Field(default=255.0, gt=0)
    mean: Triple = (0.485, 0.456, 0.406)
    std: Triple = (0.229, 0.224, 0.225)
    bgr: bool = False
    output: str | None = None
    technical_output: str | None = None
    aesthetic_output: str | None = None
    activation: Literal["none", "sigmoid"] = "none"
    low: float = 0.0
    high: float = 1.0
    providers: tuple[str, ...] = ("CPUExecutionProvider",)
    num_threads: int = pydantic.Field(default=1, ge=1, le=256)

    @pydantic.model_validator(mode="after")
    def _ranges(self) -> OnnxConfig:
        if not self.low < self.high:
            raise ValueError(f"low {self.low:g} and high {self.high:g}: low must be below high")
        if min(self.std) <= 0:
            raise ValueError(f"std: got {self.std}, expected three numbers above 0")
        return self

    @property
    def views(self) -> tuple[View, ...]:
        """Frames that the model looks at."""
        return (View(num_frames=self.num_frames),)

    @property
    def gives(self) -> frozenset[str]:
        """Scores that thresholds can choose by."""
        named = {"quality_technical": self.technical_output, "quality_aesthetic": self.aesthetic_output}
        return frozenset({"quality", *(score for score, output in named.items() if output is not None)})

    def missing(self) -> str | None:
        """Name of a setting that it cannot do without."""
        return "file" if self.file is None else None


class OnnxJudge:
    """A session, checked against the settings.

    Raises:
        QualityError: the file is no model, or the settings do not fit it.
        ImportError: onnxruntime is not installed.
        OSError: the file cannot be read.
    """

    def __init__(self, settings: OnnxConfig) -> None:
        assert settings.file is not None  # the settings were validated
        self._settings = settings
        self._session = _session(settings.file, settings)
        self._input = self._checked_input()
        self._dtype = _TYPES[self._input.type]
        self._outputs = self._checked_outputs()

    def score(self, clip: Clip) -> dict[str, float]:
        """See ``Judge``."""
        settings = self._settings
        pixels = self._pixels(clip.frames(settings.views[0]).images)
        try:
            found = self._session.run(list(self._outputs.values()), {self._input.name: pixels})
        except _ort_errors() as error:
            raise QualityError(f"{settings.file}: does not run on this clip: {_line(error)}") from error
        scores: dict[str, float] = {}
        for (name, output), values in zip(self._outputs.items(), found, strict=True):
            raw = self._reduced(output, values)
            scores[name] = to_unit(raw, settings.low, settings.high, f"{settings.file}: output {output!r}")
            if name == "quality":
                scores["quality_onnx"] = raw
        return scores

    def _pixels(self, images: np.ndarray) -> np.ndarray:
        """``(n, H, W, 3)`` uint8 RGB frames as the model's input."""
        settings = self._settings
        size = (settings.width, settings.height)
        shrinks = images.shape[1] >= settings.height and images.shape[2] >= settings.width
        method = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
        chosen = np.arange(settings.num_frames) * len(images) // settings.num_frames
        frames = np.stack([cv2.resize(images[index], size, interpolation=method) for index in chosen])
        if self._dtype != np.uint8:
            mean, std = np.array(settings.mean), np.array(settings.std)
            frames = ((frames / settings.scale - mean) / std).astype(self._dtype)
        if settings.bgr:
            frames = frames[..., ::-1]
        axes = _AXES[settings.layout]
        if "B" in axes:
            frames = frames[None]
        order = (
            ["BTHWC".index(axis) for axis in axes] if "B" in axes else ["THWC".index(axis) for axis in axes]
        )
        return np.ascontiguousarray(frames.transpose(order))

    def _reduced(self, output: str, values: Any) -> float:
        """One number of an output: it must have one, or one per frame where the frames are the batch."""
        values = np.asarray(values)
        per_frame = "B" not in _AXES[self._settings.layout]
        if values.dtype.kind not in "fiu" or values.size != (self._settings.num_frames if per_frame else 1):
            raise QualityError(
                f"{self._settings.file}: output {output!r} is {values.dtype} {values.shape}, expected one "
                f"number{' per frame' if per_frame else ''}"
            )
        values = values.astype(np.float64)
        if self._settings.activation == "sigmoid":
            values = 0.5 * (1.0 + np.tanh(0.5 * values))
        return float(values.mean())

    def _checked_input(self) -> Any:
        settings, inputs = self._settings, self._session.get_inputs()
        if len(inputs) != 1:
            names = ", ".join(found.name for found in inputs)
            raise QualityError(
                f"{settings.file}: has {len(inputs)} inputs ({names}), expected one, the frames"
            )
        found = inputs[0]
        if found.type not in _TYPES:
            raise QualityError(f"{settings.file}: input is {found.type}, expected one of {', '.join(_TYPES)}")
        lengths = {"B": 1, "T": settings.num_frames, "C": 3, "H": settings.height, "W": settings.width}
        expected = [lengths[axis] for axis in _AXES[settings.layout]]
        fits = len(found.shape) == len(expected) and all(
            not isinstance(declared, int) or declared == ours
            for declared, ours in zip(found.shape, expected, strict=True)
        )
        if not fits:
            raise QualityError(
                f"{settings.file}: declares input {found.shape}, the settings make {expected} "
                f"({settings.layout}); set layout, num_frames, height and width to the model's"
            )
        return found

    def _checked_outputs(self) -> dict[str, str]:
        """Name of the output by name of the score."""
        settings, names = self._settings, [found.name for found in self._session.get_outputs()]
        chosen = settings.output
        if chosen is None:
            if len(names) != 1:
                raise QualityError(
                    f"{settings.file}: has outputs {', '.join(names)}; set output to one of them"
                )
            chosen = names[0]
        wanted = {
            "quality": chosen,
            "quality_technical": settings.technical_output,
            "quality_aesthetic": settings.aesthetic_output,
        }
        outputs = {score: name for score, name in wanted.items() if name is not None}
        for name in outputs.values():
            if name not in names:
                raise QualityError(f"{settings.file}: has no output {name!r}, only {', '.join(names)}")
        return outputs


def _session(path: Path, settings: OnnxConfig) -> Any:
    """Raises as ``OnnxJudge`` does."""
    try:
        import onnxruntime
    except ImportError as error:
        raise ImportError(
            "quality.model onnx needs onnxruntime; pip install 'hummingbird-t2v[onnx]'"
        ) from error
    with path.open("rb"):
        pass  # a missing or forbidden file is an OSError, and not onnxruntime's
    there = onnxruntime.get_available_providers()
    absent = [provider for provider in settings.providers if provider not in there]
    if absent or not settings.providers:
        raise QualityError(f"providers: got {absent or 'none'}, this onnxruntime has {', '.join(there)}")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = settings.num_threads
    options.inter_op_num_threads = 1
    options.log_severity_level = _QUIET
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=list(settings.providers))
    except _ort_errors() as error:
        raise QualityError(f"{path}: cannot be loaded: {_line(error)}") from error


def _ort_errors() -> tuple[type[Exception], ...]:
    """Everything that onnxruntime raises of its own; its classes share no base but ``Exception``."""
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    own = [item for item in vars(state).values() if isinstance(item, type) and issubclass(item, Exception)]
    return (*own, RuntimeError, ValueError)


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]
