"""What a client asks for, and how much of it a server takes."""

from __future__ import annotations

import dataclasses
import json
import math
from typing import Annotated, Any

import pydantic

from hummingbird.config import config_dataclass

__all__ = ["Limits", "RequestError", "VideoRequest"]

_Count = Annotated[int, pydantic.Field(ge=1, le=2**20, strict=True)]


class RequestError(ValueError):
    """A request that cannot be taken; the message is one line for whoever sent it.

    Attributes:
        field: name of the offending field of ``VideoRequest``; None where it is not one alone.
    """

    def __init__(self, message: str, field: str | None = None) -> None:
        super().__init__(message)
        self.field = field


@config_dataclass
class VideoRequest:
    """One video to make, with nothing left open: the same request makes the same video on the same machine.

    Attributes:
        prompt: what to show.
        model: name that the server knows a model by.
        num_frames: frames of the video.
        height: pixels.
        width: pixels.
        fps: frames per second, in (0, 1000].
        num_inference_steps: denoising steps.
        guidance_scale: how strictly the prompt is followed.
        seed: of the noise, drawn by a CPU generator as ``hummingbird generate`` does.
        negative_prompt: what to keep out; only for models with classifier-free guidance.
    """

    prompt: str
    model: str
    num_frames: _Count
    height: _Count
    width: _Count
    fps: Annotated[float, pydantic.Field(gt=0, le=1000, allow_inf_nan=False)]
    num_inference_steps: _Count
    guidance_scale: Annotated[float, pydantic.Field(ge=-1000, le=1000, allow_inf_nan=False)]
    seed: Annotated[int, pydantic.Field(ge=0, lt=2**63, strict=True)]
    negative_prompt: str | None = None

    @classmethod
    def of(cls, **fields: Any) -> VideoRequest:
        """Make a request of values from outside.

        Raises:
            RequestError: the first field that is missing, unknown or out of range, and what it may be.
        """
        try:
            request = cls(**fields)
        except pydantic.ValidationError as error:
            first = error.errors(include_url=False)[0]
            field = str(first["loc"][-1])
            got = "" if "missing" in first["type"] else f"got {str(first['input'])[:80]!r}, "
            message = first["msg"][:1].lower() + first["msg"][1:]
            raise RequestError(f"{field}: {got}{message}", field) from error
        for field in ("prompt", "negative_prompt"):
            _check_text(field, getattr(request, field))
        if not request.prompt.strip():
            raise RequestError("prompt: got an empty text, expected a description of the video", "prompt")
        return request

    @property
    def work(self) -> int:
        """What the video costs: pixels x frames x steps."""
        return self.height * self.width * self.num_frames * self.num_inference_steps

    @property
    def duration_s(self) -> float:
        """Length of the video."""
        return self.num_frames / self.fps

    @property
    def batch_key(self) -> tuple[Any, ...]:
        """Requests with equal keys can be made in one call of the pipeline."""
        return (
            self.model,
            self.num_frames,
            self.height,
            self.width,
            self.fps,
            self.num_inference_steps,
            self.guidance_scale,
            self.negative_prompt is None,
        )

    def to_json(self) -> str:
        """Text that ``from_json`` reads back to an equal request."""
        return json.dumps(dataclasses.asdict(self), allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> VideoRequest:
        """Read what ``to_json`` wrote."""
        return cls.of(**json.loads(text))


def _check_text(field: str, text: str | None) -> None:
    """Refuse what no database, log or tokenizer can hold: halves of UTF-16 pairs and control characters."""
    for index, character in enumerate(text or ""):
        if "\ud800" <= character <= "\udfff" or (character < " " and character not in "\t\n\r"):
            raise RequestError(
                f"{field}: character {index} is U+{ord(character):04X}, expected text without control "
                "characters or lone surrogates",
                field,
            )


@config_dataclass
class Limits:
    """How much a server takes and keeps.

    Attributes:
        max_prompt_chars: characters of a prompt, and of a negative prompt.
        max_frames: frames of one video.
        max_steps: denoising steps of one video.
        max_work: pixels x frames x steps of one video. The default is 16 frames of 320x512 in 50 steps.
        max_queued: videos that wait, of all clients together.
        max_queued_per_client: videos of one client that wait, so that nobody can fill the queue alone.
        max_output_age_s: seconds after which a finished video is deleted.
        max_output_bytes: bytes of all finished videos; above it the oldest are deleted.
        max_record_age_s: seconds after which the record of a finished job is deleted too.
        min_free_bytes: with less free space than this on the disk nothing more is taken.
    """

    max_prompt_chars: pydantic.PositiveInt = 2000
    max_frames: pydantic.PositiveInt = 256
    max_steps: pydantic.PositiveInt = 100
    max_work: pydantic.PositiveInt = 320 * 512 * 16 * 50
    max_queued: pydantic.PositiveInt = 256
    max_queued_per_client: pydantic.PositiveInt = 32
    max_output_age_s: pydantic.PositiveFloat = 24 * 3600.0
    max_output_bytes: pydantic.PositiveInt = 10 * 1024**3
    max_record_age_s: pydantic.PositiveFloat = 30 * 24 * 3600.0
    min_free_bytes: pydantic.NonNegativeInt = 64 * 1024**2

    def check(self, request: VideoRequest) -> None:
        """Refuse a request that is larger than this server takes.

        Raises:
            RequestError: what is too large, and how large it may be.
        """
        for field in ("prompt", "negative_prompt"):
            length = len(getattr(request, field) or "")
            if length > self.max_prompt_chars:
                raise RequestError(
                    f"{field}: got {length} characters, expected at most {self.max_prompt_chars}", field
                )
        for field, most in (("num_frames", self.max_frames), ("num_inference_steps", self.max_steps)):
            value = getattr(request, field)
            if value > most:
                raise RequestError(f"{field}: got {value}, expected at most {most} on this server", field)
        if request.work > self.max_work:
            most_frames = self.max_work // (request.work // request.num_frames)
            raise RequestError(
                f"{request.width}x{request.height} pixels x {request.num_frames} frames x "
                f"{request.num_inference_steps} steps: got {request.work}, expected at most {self.max_work}; "
                + (
                    f"at this size and these steps at most {most_frames} frames"
                    if most_frames
                    else "ask for a smaller size"
                )
            )

    def retry_after_s(self, seconds: float) -> int:
        """Round a guess of when there is room again to what a client may be told: 1 to 600 seconds."""
        return max(1, min(600, math.ceil(seconds)))
