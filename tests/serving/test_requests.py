"""Requests: complete, bounded, and the same after a trip through the store."""

from __future__ import annotations

import math
from typing import Any

import pytest

from hummingbird.serving import Limits, RequestError, VideoRequest

GOOD: dict[str, Any] = {
    "prompt": "a red circle",
    "model": "nano",
    "num_frames": 16,
    "height": 64,
    "width": 32,
    "fps": 8,
    "num_inference_steps": 4,
    "guidance_scale": 2.5,
    "seed": 7,
}


def test_a_request_survives_its_text() -> None:
    request = VideoRequest.of(
        **{**GOOD, "prompt": "Zürich \U0001f426 '; DROP TABLE jobs; --\n", "seed": 2**63 - 1}
    )
    assert VideoRequest.from_json(request.to_json()) == request
    assert request.work == 64 * 32 * 16 * 4
    assert request.duration_s == 2.0


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("prompt", "  "),
        ("prompt", "a\x00b"),
        ("prompt", "lone \ud800 surrogate"),
        ("negative_prompt", "\x1b[31m"),
        ("num_frames", 0),
        ("num_frames", 2.5),
        ("height", True),
        ("width", "64"),
        ("fps", math.inf),
        ("fps", 0),
        ("guidance_scale", math.nan),
        ("seed", -1),
        ("seed", 2**63),
    ],
)
def test_what_cannot_be_is_refused_by_name(field: str, value: object) -> None:
    with pytest.raises(RequestError, match=f"^{field}: ") as caught:
        VideoRequest.of(**{**GOOD, field: value})
    assert caught.value.field == field
    assert "\n" not in str(caught.value)


def test_unknown_and_missing_fields_are_refused() -> None:
    with pytest.raises(RequestError, match="loop"):
        VideoRequest.of(**GOOD, loop=True)
    with pytest.raises(RequestError, match="seed"):
        VideoRequest.of(**{name: value for name, value in GOOD.items() if name != "seed"})


@pytest.mark.parametrize(
    ("limits", "field"),
    [
        ({"max_prompt_chars": 11}, "prompt"),
        ({"max_frames": 15}, "num_frames"),
        ({"max_steps": 3}, "num_inference_steps"),
        ({"max_work": 64 * 32 * 16 * 4 - 1}, None),
    ],
)
def test_limits_hold_to_the_last_unit(limits: dict[str, int], field: str | None) -> None:
    request = VideoRequest.of(**GOOD)
    (name, most), *_ = limits.items()
    with pytest.raises(RequestError, match="at most") as caught:
        Limits(**limits).check(request)  # type: ignore[arg-type]
    assert caught.value.field == field
    Limits(**{name: most + 1}).check(request)  # type: ignore[arg-type]


def test_only_requests_of_one_shape_share_a_call() -> None:
    request = VideoRequest.of(**GOOD)
    assert request.batch_key == VideoRequest.of(**{**GOOD, "prompt": "a star", "seed": 9}).batch_key
    for change in ({"fps": 9}, {"num_frames": 8}, {"guidance_scale": 2.0}, {"negative_prompt": ""}):
        assert request.batch_key != VideoRequest.of(**{**GOOD, **change}).batch_key
