"""Does the motion stage tell dolly zooms from zooms, pans and still cameras? Last line JSON.

Dolly zooms are made from real footage: a picture is warped by a steadily growing or shrinking scale, while an
ellipse from another clip, which goes on moving in itself, is laid over its middle and keeps its size.
Controls have the same two layers: both zooming, both panning, the subject moving or growing before a still
background, nothing moving. The background is one frame; dolly zooms are also made from the moving view from a
car, which grows by itself.

python benchmarks/dolly_zoom.py --clips FOLDER
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np

from data_pipeline.clip import Frames
from data_pipeline.stages.motion import MotionConfig, dis_flow, measure
from hummingbird.evaluation.report import environment
from hummingbird.video_io import iter_frames

BACKGROUNDS = {"highway_drive.mp4": 0.0, "phone_zoom_in_out.mp4": 4.5, "nasa_dark_2streams.mp4": 8.2}
SUBJECTS = {"sign_walk.mkv": 0.0, "friday_office_talk.mp4": 0.0, "flower_timelapse.mp4": 0.0}
"""File and the second at which the span begins."""

SIZE = (455, 256)
NUM_FRAMES, FPS = 16, 8.0


def load(path: Path, start_s: float) -> np.ndarray:
    """``(16, 256, 455, 3)`` at 8 frames/s; a shorter clip runs to and fro."""
    images, due_s = [], start_s
    for frame in iter_frames(path, start_s=start_s, end_s=start_s + NUM_FRAMES / FPS):
        if frame.time_s >= due_s - 1e-3:
            image = frame.rgb(short_side=256)
            height = min(image.shape[0], image.shape[1] * SIZE[1] // SIZE[0])
            top = (image.shape[0] - height) // 2
            images.append(cv2.resize(image[top : top + height], SIZE, interpolation=cv2.INTER_AREA))
            due_s += 1 / FPS
    there_and_back = [*images, *images[-2:0:-1]]
    return np.stack([there_and_back[index % len(there_and_back)] for index in range(NUM_FRAMES)])


def layer(image: np.ndarray, scale: float, shift: tuple[float, float]) -> np.ndarray:
    """Zoom about the centre, then shift; 1.25 spare, so that no border comes into view."""
    centre = (SIZE[0] / 2, SIZE[1] / 2)
    matrix = cv2.getRotationMatrix2D(centre, 0.0, scale)
    matrix[:, 2] += shift
    return cv2.warpAffine(image, matrix, SIZE, flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT)


def compose(
    background: np.ndarray,
    subject: np.ndarray,
    share: float,
    moves: Callable[[int], tuple[float, float, float, float]],
) -> np.ndarray:
    """Lay the subject over the background; ``moves(t)`` gives both scales and both horizontal shifts."""
    radius = np.sqrt(share / np.pi)
    mask = np.zeros((SIZE[1], SIZE[0]), np.float32)
    axes = (round(radius * SIZE[0]), round(radius * SIZE[1]))
    cv2.ellipse(mask, (SIZE[0] // 2, SIZE[1] // 2), axes, 0, 0, 360, 1.0, -1)
    mask = cv2.GaussianBlur(mask, (0, 0), 1.5)
    frames = []
    for index in range(NUM_FRAMES):
        scale_b, scale_s, shift_b, shift_s = moves(index)
        below = layer(background[index], scale_b, (shift_b, 0.0)).astype(np.float32)
        above = layer(subject[index], scale_s, (shift_s, 0.0)).astype(np.float32)
        cover = layer(mask, scale_s, (shift_s, 0.0))[..., None]
        frames.append((cover * above + (1 - cover) * below).clip(0, 255).astype(np.uint8))
    return np.stack(frames)


def scene(kind: str, rate: float, start: float) -> Callable[[int], tuple[float, float, float, float]]:
    """Movements by frame; ``rate`` is the growth per 1/8 s."""
    pixels = 256 * abs(rate)

    def moves(index: int) -> tuple[float, float, float, float]:
        scale = start * (1 + rate) ** index
        return {
            "dolly zoom": (scale, 1.0, 0.0, 0.0),
            "zoom": (scale, scale, 0.0, 0.0),
            "pan": (1.3, 1.3, pixels * (index - 8), pixels * (index - 8)),
            "subject moves": (1.0, 1.0, 0.0, pixels * (index - 8)),
            "subject approaches": (1.0, (1 + abs(rate)) ** index, 0.0, 0.0),
            "still": (1.0, 1.0, 0.0, 0.0),
        }[kind]

    return moves


def say(line: str) -> None:
    print(line, flush=True)  # noqa: T201


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--clips", type=Path, required=True)
    arguments = parser.parse_args()
    cv2.setNumThreads(1)
    backgrounds = {name: load(arguments.clips / name, at) for name, at in BACKGROUNDS.items()}
    subjects = {name: load(arguments.clips / name, at) for name, at in SUBJECTS.items()}
    subjects["one frame of highway_drive.mp4"] = np.stack([backgrounds["highway_drive.mp4"][8]] * NUM_FRAMES)
    settings = MotionConfig()
    assert settings.max_dolly is not None
    still = {name: np.stack([images[0]] * NUM_FRAMES) for name, images in backgrounds.items()}
    rows = []
    for kind in ("dolly zoom", "zoom", "pan", "subject moves", "subject approaches", "still"):
        moving = (
            {"moving highway_drive.mp4": backgrounds["highway_drive.mp4"]} if kind == "dolly zoom" else {}
        )
        rates = (0.005, 0.01, 0.02, -0.005, -0.01, -0.02) if kind == "dolly zoom" else (0.01, -0.01)
        for background_name, background in (still | moving).items():
            for subject_name, subject in subjects.items():
                for rate in rates:
                    for share in (0.1, 0.25):
                        start = 1.0 if rate > 0 else (1 - rate) ** NUM_FRAMES
                        images = compose(background, subject, share, scene(kind, rate, start))
                        scores = measure(
                            Frames(images=images, times_s=np.arange(NUM_FRAMES) / FPS), dis_flow()
                        )
                        rows.append(
                            (kind, background_name, subject_name, rate, share, scores["motion_dolly"])
                        )
    figures = {}
    for kind in dict.fromkeys(row[0] for row in rows):
        chosen = [row for row in rows if row[0] == kind]
        flagged = sum(row[-1] > settings.max_dolly for row in chosen)
        figures[kind] = {"videos": len(chosen), "called_dolly_zoom": flagged}
        say(f"{kind:>20}: {flagged} of {len(chosen)} called a dolly zoom")
        for column, label in ((1, "background"), (2, "subject"), (3, "rate"), (4, "subject share")):
            parts = []
            for value in dict.fromkeys(row[column] for row in chosen):
                group = [row[-1] > settings.max_dolly for row in chosen if row[column] == value]
                parts.append(f"{value}: {sum(group)}/{len(group)}")
            say(f"{'':>20}  by {label}: {', '.join(parts)}")
    import torch

    say(json.dumps({"dolly_zoom": figures, "environment": environment(torch.device("cpu"), "uint8")}))


if __name__ == "__main__":
    main()
