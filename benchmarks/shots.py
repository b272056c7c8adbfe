"""How many cuts does the shot stage find, and how many does it invent? Last line JSON.

Joins random pieces of real single-shot footage (0.3 to 3 s, rates from 10 to 30 frames/s, so the result has a
variable rate) by hard cuts, fades through black and dissolves, and lays flashes and blinks over single
pieces.

python benchmarks/shots.py --clips FOLDER
"""

from __future__ import annotations

import argparse
import itertools
import json
import time
from pathlib import Path

import cv2
import numpy as np

from data_pipeline.stages.shots import ShotDetector, ShotsConfig
from hummingbird.evaluation.report import environment
from hummingbird.video_io import iter_frames

SINGLE_SHOTS_S = {
    "flower_timelapse.mp4": (0.0, 5.0),
    "friday_office_talk.mp4": (0.0, 6.1),
    "bbb_open_480p.mp4": (3.0, 11.8),
    "highway_drive.mp4": (0.0, 8.8),
    "phone_zoom_in_out.mp4": (2.0, 17.0),
    "sign_walk.mkv": (0.0, 2.9),
    "phone_dog_rot180.mp4": (0.0, 2.3),
    "nasa_dark_2streams.mp4": (8.2, 12.9),
    "bird_flight.avi": (0.8, 4.0),
    "plane_tilt_badaudio.mp4": (0.0, 7.5),
    "portrait_selfie_2tracks.mp4": (0.0, 1.8),
}
"""Spans of the test clips without a cut, fade or dissolve; the selfie is shown in the middle of a wide
picture."""

SIZE = (320, 180)
TOLERANCE_S = 0.1

Piece = tuple[np.ndarray, np.ndarray]
"""Times from 0 and images ``(n, 180, 320, 3)``."""


def load(folder: Path) -> list[Piece]:
    takes = []
    for name, (start_s, end_s) in SINGLE_SHOTS_S.items():
        times, images = [], []
        for frame in iter_frames(folder / name, start_s=start_s, end_s=end_s):
            image = frame.rgb(short_side=SIZE[1])
            if image.shape[0] > image.shape[1]:
                middle = image.shape[0] // 2
                image = image[middle - image.shape[1] * 9 // 32 : middle + image.shape[1] * 9 // 32]
            images.append(cv2.resize(image, SIZE, interpolation=cv2.INTER_AREA))
            times.append(frame.time_s)
        takes.append((np.array(times) - times[0], np.stack(images)))
    return takes


def draw_piece(take: Piece, length_s: float, rng: np.random.Generator) -> Piece:
    """A span of a take, thinned to a random rate of at least 10 frames/s."""
    times, images = take
    begin = rng.uniform(0.0, max(0.0, times[-1] - length_s))
    inside = np.flatnonzero((times >= begin) & (times < begin + length_s))
    step_s = rng.choice([0.0, 1 / 24, 1 / 15, 1 / 12])
    kept = [inside[0]]
    for index in inside[1:]:
        if times[index] - times[kept[-1]] >= step_s - 1e-3:
            kept.append(index)
    return times[kept] - times[kept[0]], images[kept]


def join(
    pieces: list[Piece], transition: str, rng: np.random.Generator
) -> tuple[Piece, list[tuple[float, float]]]:
    """Lay pieces one after the other; also gives the span of each border in seconds."""
    all_times, all_images, borders = [], [], []
    clock = 0.0
    for number, (times, images) in enumerate(pieces):
        step = float(np.median(np.diff(times))) if len(times) > 1 else 1 / 25
        length = times[-1] + step
        images = images.astype(np.float32)
        ramp_s = min(rng.uniform(0.3, 0.8), 0.4 * length)
        if transition == "fade":
            gain = np.ones(len(times))
            if number > 0:
                gain = np.minimum(gain, times / ramp_s)
            if number + 1 < len(pieces):
                gain = np.minimum(gain, np.maximum(0.0, (times[-1] - times) / ramp_s))
            images = images * gain[:, None, None, None]
        if transition == "dissolve" and number + 1 < len(pieces):
            following = pieces[number + 1][1][0].astype(np.float32)
            weight = np.clip((times - (length - ramp_s)) / ramp_s, 0.0, 1.0)[:, None, None, None]
            images = (1 - weight) * images + weight * following
        all_times.append(times + clock)
        all_images.append(images.clip(0, 255).astype(np.uint8))
        clock += length
        if number + 1 < len(pieces):
            borders.append(
                (
                    clock - (0.0 if transition == "hard" else ramp_s),
                    clock + (ramp_s if transition == "fade" else 0.0),
                )
            )
    return (np.concatenate(all_times), np.concatenate(all_images)), borders


def flash(piece: Piece, rng: np.random.Generator) -> Piece:
    """Light up, or black out, one to three frames in the middle."""
    times, images = piece
    images = images.astype(np.float32)
    at = int(rng.integers(len(images) // 4, 3 * len(images) // 4))
    target = 255.0 if rng.random() < 0.7 else 0.0
    for offset in range(int(rng.integers(1, 4))):
        if at + offset < len(images) and times[at + offset] - times[at] < 0.2:
            images[at + offset] += rng.uniform(0.6, 1.0) * (target - images[at + offset])
    return times, images.astype(np.uint8)


def find_borders(piece: Piece) -> list[tuple[float, float]]:
    detector = ShotDetector(ShotsConfig())
    for time_s, image in zip(*piece, strict=True):
        detector.push(float(time_s), image)
    shots = detector.shots()
    times = [*detector.times_s, detector.end_s]
    return [(times[a[1]], times[b[0]]) for a, b in itertools.pairwise(shots)]


def score(found: list[tuple[float, float]], truth: list[tuple[float, float]]) -> tuple[int, int]:
    """How many true borders were met, and how many found ones meet none."""

    def meets(a: tuple[float, float], b: tuple[float, float]) -> bool:
        return a[0] <= b[1] + TOLERANCE_S and b[0] <= a[1] + TOLERANCE_S

    hits = sum(any(meets(border, other) for other in found) for border in truth)
    return hits, sum(not any(meets(other, border) for border in truth) for other in found)


def say(line: str) -> None:
    print(line, flush=True)  # noqa: T201


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--clips", type=Path, required=True)
    parser.add_argument("--trials", type=int, default=60)
    parser.add_argument("--verbose", action="store_true")
    arguments = parser.parse_args()
    cv2.setNumThreads(1)
    takes = load(arguments.clips)
    figures: dict[str, dict[str, float]] = {}
    frames, seconds = 0, 0.0
    for kind in ("hard", "fade", "dissolve", "flash", "none"):
        rng = np.random.default_rng(0)
        borders = hits = invented = 0
        for trial in range(arguments.trials):
            if kind in ("flash", "none"):
                choice = [int(rng.integers(len(takes)))]
                piece, truth = draw_piece(takes[choice[0]], 3.0, rng), []
                if kind == "flash":
                    piece = flash(piece, rng)
            else:
                choice = [int(index) for index in rng.choice(len(takes), 6, replace=False)]
                lengths = rng.uniform(0.3 if kind == "hard" else 1.0, 3.0, 6)
                pieces = [draw_piece(takes[c], float(s), rng) for c, s in zip(choice, lengths, strict=True)]
                piece, truth = join(pieces, kind, rng)
            began = time.perf_counter()
            found = find_borders(piece)
            seconds += time.perf_counter() - began
            frames += len(piece[0])
            met, false = score(found, truth)
            borders, hits, invented = borders + len(truth), hits + met, invented + false
            if arguments.verbose and (met < len(truth) or false):
                names = [list(SINGLE_SHOTS_S)[index] for index in choice]
                say(f"{kind} {trial} {names}")
                say(f"    true {np.round(truth, 2).tolist()}, found {np.round(found, 2).tolist()}")
        figures[kind] = {"trials": arguments.trials, "borders": borders, "found": hits, "invented": invented}
        say(f"{kind:>9}: {hits} of {borders} borders found, {invented} invented in {arguments.trials} videos")
    import torch

    report = {
        "borders": figures,
        "ms_per_frame": round(1000 * seconds / frames, 2),
        "environment": environment(torch.device("cpu"), "uint8"),
    }
    say(json.dumps(report))


if __name__ == "__main__":
    main()
