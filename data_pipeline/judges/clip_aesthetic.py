"""A linear or multi-layer head on CLIP's picture features as a judge: the LAION aesthetic predictor.

The picture tower is open_clip's, from a file or folder of the user's. The head is a chain of linear layers in
the layout of the public predictors: ``weight`` and ``bias`` (one layer), or ``layers.N.weight`` and
``layers.N.bias`` in the order of N, without anything between them but dropout. Features have length 1.

Reference: https://github.com/LAION-AI/aesthetic-predictor (MIT) and
https://github.com/christophschuhmann/improved-aesthetic-predictor (Apache-2.0).
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pydantic

from data_pipeline.clip import Clip, View
from data_pipeline.judges.base import QualityError, to_unit
from data_pipeline.judges.tensors import read_tensors
from hummingbird.config import config_dataclass

if TYPE_CHECKING:
    import torch

__all__ = ["ClipAestheticConfig", "ClipAestheticJudge", "linear_head"]

_CONFIG = "open_clip_config.json"
_WEIGHTS = (
    "open_clip_model.safetensors",
    "open_clip_pytorch_model.bin",
    "open_clip_pytorch_model.safetensors",
)
_MAX_CONFIG_BYTES, _MAX_TOWER_BYTES, _MAX_HEAD_BYTES = 2**20, 2**34, 2**26


@config_dataclass
class ClipAestheticConfig:
    """Settings of a head on CLIP.

    Attributes:
        checkpoint: weights of open_clip's model, or a folder of it (``open_clip_config.json`` and weights).
        model: open_clip's name of the architecture, for a file; a folder says so itself. OpenAI's weights
            need a name that ends in ``-quickgelu``.
        head: the head's file.
        num_frames: frames at the centres of equal parts of the clip; the clip's score is their mean.
        low, high: range of the head; it is mapped onto 0 to 1.
    """

    checkpoint: Path | None = None
    model: str = "ViT-L-14-quickgelu"
    head: Path | None = None
    num_frames: int = pydantic.Field(default=4, ge=1, le=64)
    low: float = 0.0
    high: float = 10.0

    @pydantic.model_validator(mode="after")
    def _range(self) -> ClipAestheticConfig:
        if not self.low < self.high:
            raise ValueError(f"low {self.low:g} and high {self.high:g}: low must be below high")
        return self

    @property
    def views(self) -> tuple[View, ...]:
        """Frames that it looks at."""
        return (View(num_frames=self.num_frames),)

    @property
    def gives(self) -> frozenset[str]:
        """Scores that thresholds can choose by."""
        return frozenset({"quality", "quality_aesthetic"})

    def missing(self) -> str | None:
        """Name of a setting that it cannot do without."""
        return next((name for name in ("checkpoint", "head") if getattr(self, name) is None), None)


class ClipAestheticJudge:
    """Tower and head, on the CPU, or on a GPU where there is one.

    Raises:
        QualityError: a file does not hold what it should.
        OSError: it cannot be read.
    """

    def __init__(self, settings: ClipAestheticConfig) -> None:
        import torch

        assert settings.checkpoint is not None  # the settings were validated
        assert settings.head is not None
        self._settings = settings
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        tower, self._transform = _tower(settings.checkpoint, settings.model)
        head = linear_head(_tensors(settings.head, _MAX_HEAD_BYTES), str(settings.head))
        self._tower, self._head = (
            part.eval().requires_grad_(False).to(self._device) for part in (tower, head)
        )
        width = self._features([torch.zeros(3, *_image_size(tower))]).shape[-1]
        if width != head[0].in_features:
            raise QualityError(
                f"{settings.head}: takes {head[0].in_features} features, {settings.checkpoint} makes "
                f"{width}; give the head that was trained on this model"
            )

    def score(self, clip: Clip) -> dict[str, float]:
        """See ``Judge``."""
        import PIL.Image
        import torch

        images = clip.frames(self._settings.views[0]).images
        with torch.inference_mode():
            features = self._features([self._transform(PIL.Image.fromarray(image)) for image in images])
            raw = float(self._head(features).mean())
        quality = to_unit(raw, self._settings.low, self._settings.high, f"{self._settings.head}: score")
        return {"quality": quality, "quality_aesthetic": quality, "quality_clip_aesthetic": raw}

    def _features(self, pixels: list[torch.Tensor]) -> torch.Tensor:
        """``(n, D)`` of length 1."""
        import torch

        found = self._tower(torch.stack(pixels).to(self._device))
        # Some towers also return their tokens.
        found = found[0] if isinstance(found, tuple) else found
        return torch.nn.functional.normalize(found.float(), dim=-1)


def linear_head(tensors: Mapping[str, torch.Tensor], who: str) -> torch.nn.Sequential:
    """A chain of linear layers that ends in one number.

    Args:
        tensors: see the module.
        who: where they come from, for messages.

    Raises:
        QualityError: they are no such chain.
    """
    import torch

    layers: dict[int, dict[str, torch.Tensor]] = {}
    for name, tensor in tensors.items():
        match = re.fullmatch(r"(?:layers\.(\d{1,4})\.)?(weight|bias)", name)
        if match is None or not tensor.is_floating_point() or not torch.isfinite(tensor).all():
            raise QualityError(
                f"{who}: holds {name[:80]!r}, expected finite weight and bias, or "
                "layers.N.weight and layers.N.bias"
            )
        layers.setdefault(int(match[1] or 0), {})[match[2]] = tensor.float()
    chain: list[torch.nn.Linear] = []
    for number in sorted(layers):
        weight, bias = layers[number].get("weight"), layers[number].get("bias")
        if weight is None or bias is None or weight.ndim != 2 or bias.shape != weight.shape[:1]:
            raise QualityError(
                f"{who}: layer {number} is no linear layer; expected weight (M, N) and bias (M)"
            )
        if chain and chain[-1].out_features != weight.shape[1]:
            raise QualityError(
                f"{who}: layer {number} takes {weight.shape[1]} numbers, the one before makes "
                f"{chain[-1].out_features}; the file is no chain of layers"
            )
        layer = torch.nn.Linear(weight.shape[1], weight.shape[0])
        layer.load_state_dict({"weight": weight, "bias": bias})
        chain.append(layer)
    if not chain or chain[-1].out_features != 1:
        raise QualityError(f"{who}: does not end in one number; give the file of an aesthetic predictor")
    return torch.nn.Sequential(*chain)


def _tensors(path: Path, max_bytes: int) -> dict[str, torch.Tensor]:
    try:
        return read_tensors(path, max_bytes=max_bytes)
    except ValueError as error:
        raise QualityError(str(error)) from error


def _tower(checkpoint: Path, model: str) -> tuple[torch.nn.Module, Any]:
    """The picture tower, and what makes its input from a picture."""
    import open_clip
    from open_clip.transform import PreprocessCfg, image_transform_v2

    weights = checkpoint
    name = model
    if checkpoint.is_dir():
        config, name = _folder_config(checkpoint), f"local-dir:{checkpoint}"
        weights = next((checkpoint / file for file in _WEIGHTS if (checkpoint / file).is_file()), checkpoint)
    else:
        config = open_clip.get_model_config(model)
        if config is None:
            raise QualityError(
                f"model: got {model!r}, which open_clip does not know; see open_clip.list_models()"
            )
    if weights.is_dir():
        raise QualityError(f"{checkpoint}: has none of {', '.join(_WEIGHTS)}")
    if "hf_model_name" in config.get("text_cfg", {}):
        raise QualityError(
            f"{checkpoint}: its text tower would be downloaded; use a model with open_clip's own"
        )
    with _without_warning("No pretrained weights loaded"):  # they are, below
        whole = open_clip.create_model(name, load_weights=False, pretrained_text=False)
    tensors = {
        key.removeprefix("module."): value for key, value in _tensors(weights, _MAX_TOWER_BYTES).items()
    }
    own = whole.visual.state_dict()
    found = {
        key.removeprefix("visual."): value for key, value in tensors.items() if key.startswith("visual.")
    }
    odd = sorted(own.keys() ^ found.keys())
    odd += [key for key in own if key in found and own[key].shape != found[key].shape]
    if odd:
        raise QualityError(
            f"{weights}: is not {model if name == model else 'the model of its config'}: {len(odd)} names or "
            f"shapes of the picture tower differ, e.g. visual.{odd[0]}"
        )
    whole.visual.load_state_dict(found)
    return whole.visual, image_transform_v2(PreprocessCfg(**whole.visual.preprocess_cfg), is_train=False)


@contextmanager
def _without_warning(beginning: str) -> Iterator[None]:
    """Keep one message of open_clip's out of the log; it goes to the root logger."""

    def passes(record: logging.LogRecord) -> bool:
        return not record.getMessage().startswith(beginning)

    root = logging.getLogger()
    root.addFilter(passes)
    try:
        yield
    finally:
        root.removeFilter(passes)


def _folder_config(folder: Path) -> dict[str, Any]:
    path = folder / _CONFIG
    with path.open("rb") as file:
        data = file.read(_MAX_CONFIG_BYTES + 1)
    try:
        config = json.loads(data) if len(data) <= _MAX_CONFIG_BYTES else None
    except (ValueError, RecursionError):
        config = None
    model = config.get("model_cfg") if isinstance(config, dict) else None
    if not isinstance(model, dict) or not all(
        isinstance(model.get(k), dict) for k in ("text_cfg", "vision_cfg")
    ):
        raise QualityError(
            f"{path}: is no configuration of open_clip; expected model_cfg in up to 1 MiB of JSON"
        )
    return model


def _image_size(tower: Any) -> tuple[int, int]:
    size = tower.image_size
    return (size, size) if isinstance(size, int) else (size[0], size[1])
