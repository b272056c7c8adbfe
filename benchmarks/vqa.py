"""Does nano-vqa put damaged clips in order? Prints a line per degradation, last line JSON.

python benchmarks/vqa.py [--clips FOLDER] [--groups highway,sign,...] [--num-frames 32] [--to FOLDER]

Pieces of real clips that the model was not trained on are damaged by simple means that its training does
not share (fixed strengths, Pillow and numpy), written to H.264 files, and scored through the quality stage,
as a run does it. Per degradation: mean Spearman correlation of score with falling severity over clips (0 =
clean to 5), and the share of pairs, clean against the severities 4 and 5, in which the clean clip scores
higher: of the same clip (pairs) and of all clips (across).
"""

from __future__ import annotations

import argparse
import io
import json
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import PIL.Image
import PIL.ImageEnhance
import PIL.ImageFilter
import torch

from data_pipeline.clip import Clip, ClipSpec
from data_pipeline.stages.quality import QualityConfig
from data_pipeline.vqa.degrade import through_codec
from data_pipeline.vqa.train import TrainConfig, spearman
from hummingbird.config import load_config
from hummingbird.video_io import contact_sheet, iter_frames, write_video

CONFIG = Path(__file__).parents[1] / "configs" / "data" / "nano_vqa.yaml"
FPS = 25
Pictures = list[PIL.Image.Image]


def each(
    change: Callable[[PIL.Image.Image, float], PIL.Image.Image],
) -> Callable[[np.ndarray, float], np.ndarray]:
    """Damage that treats each picture alone."""
    return lambda frames, level: np.stack(
        [np.asarray(change(PIL.Image.fromarray(image), level), np.uint8) for image in frames]
    )


def motion_blur(frames: np.ndarray, length: float) -> np.ndarray:
    kernel = np.full((1, int(length)), 1 / int(length), np.float32)
    return np.stack([cv2.filter2D(image, -1, kernel) for image in frames])


def gaussian_noise(frames: np.ndarray, sigma: float) -> np.ndarray:
    noise = np.random.default_rng(1).normal(0, sigma, frames.shape)
    return np.clip(frames + noise, 0, 255).astype(np.uint8)


def salt_and_pepper(frames: np.ndarray, share: float) -> np.ndarray:
    drawn = np.random.default_rng(2).random(frames.shape[:3])[..., None]
    return np.where(drawn < share / 2, 0, np.where(drawn < share, 255, frames)).astype(np.uint8)


def h264(frames: np.ndarray, crf: float) -> np.ndarray:
    return through_codec(frames, "libx264", {"crf": str(int(crf)), "preset": "medium"})


def mpeg2(frames: np.ndarray, quantizer: float) -> np.ndarray:
    return through_codec(frames, "mpeg2video", {"g": "15"}, int(quantizer))


def jpeg(image: PIL.Image.Image, quality: float) -> PIL.Image.Image:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=int(quality))
    return PIL.Image.open(buffer)


def gain(frames: np.ndarray, factor: float) -> np.ndarray:
    return np.clip(frames * factor, 0, 255).astype(np.uint8)


def gamma(frames: np.ndarray, exponent: float) -> np.ndarray:
    return (255 * (frames / 255) ** exponent).astype(np.uint8)


def fewer_bits(frames: np.ndarray, bits: float) -> np.ndarray:
    step = 2 ** (8 - int(bits))
    return (frames // step * step + step // 2).astype(np.uint8)


def enlarged(resample: PIL.Image.Resampling) -> Callable[[PIL.Image.Image, float], PIL.Image.Image]:
    def change(image: PIL.Image.Image, factor: float) -> PIL.Image.Image:
        small = image.resize((round(image.width / factor), round(image.height / factor)), resample)
        return small.resize(image.size, resample)

    return change


def held_frames(frames: np.ndarray, share: float) -> np.ndarray:
    lost = np.random.default_rng(3).random(len(frames)) < share
    lost[0] = False
    return frames[np.maximum.accumulate(np.where(lost, 0, np.arange(len(frames))))]


def lower_rate(frames: np.ndarray, factor: float) -> np.ndarray:
    return frames[(np.floor(np.arange(len(frames)) / factor) * factor).astype(int)]


def shaken(frames: np.ndarray, pixels: float) -> np.ndarray:
    moves = np.random.default_rng(4).uniform(-pixels, pixels, (len(frames), 2)).round().astype(int)
    return np.stack([np.roll(image, tuple(move), (0, 1)) for image, move in zip(frames, moves, strict=True)])


def swaying(frames: np.ndarray, pixels: float) -> np.ndarray:
    """Hand shake at about 4 Hz, with mirrored edges."""
    time_s = np.arange(len(frames)) / FPS
    moves = pixels * np.stack([np.sin(26 * time_s), np.cos(21 * time_s + 1)], axis=1)
    size = frames.shape[2], frames.shape[1]
    return np.stack(
        [
            cv2.warpAffine(image, np.array([[1, 0, x], [0, 1, y]]), size, borderMode=cv2.BORDER_REFLECT)
            for image, (x, y) in zip(frames, moves, strict=True)
        ]
    )


Change = Callable[[np.ndarray, float], np.ndarray]
DAMAGE: dict[str, tuple[Change, tuple[float, ...]]] = {
    "blur_gaussian": (
        each(lambda image, r: image.filter(PIL.ImageFilter.GaussianBlur(r))),
        (0.7, 1.2, 2, 3.5, 6),
    ),
    "blur_motion": (motion_blur, (3, 5, 9, 15, 25)),
    "noise_gaussian": (gaussian_noise, (4, 8, 16, 30, 50)),
    "noise_salt_pepper": (salt_and_pepper, (0.002, 0.006, 0.02, 0.06, 0.15)),
    "h264_crf": (h264, (25, 31, 37, 43, 50)),
    "blocks_jpeg": (each(jpeg), (60, 35, 20, 10, 4)),
    "blocks_mpeg2": (mpeg2, (4, 8, 14, 22, 31)),
    "overexposed_gain": (gain, (1.25, 1.6, 2.1, 2.8, 4)),
    "overexposed_gamma": (gamma, (0.8, 0.65, 0.5, 0.35, 0.22)),
    "underexposed_gain": (gain, (0.75, 0.55, 0.4, 0.25, 0.12)),
    "underexposed_gamma": (gamma, (1.3, 1.7, 2.3, 3.2, 4.5)),
    "banding": (fewer_bits, (6, 5, 4, 3, 2)),
    "upscaled_bicubic": (each(enlarged(PIL.Image.Resampling.BICUBIC)), (1.5, 2, 3, 4.5, 7)),
    "upscaled_bilinear": (each(enlarged(PIL.Image.Resampling.BILINEAR)), (1.5, 2, 3, 4.5, 7)),
    "frames_held": (held_frames, (0.08, 0.18, 0.32, 0.5, 0.7)),
    "frames_lower_rate": (lower_rate, (1.25, 1.5, 2, 3, 5)),
    "shaken": (shaken, (1, 2, 4, 8, 14)),
    "swaying": (swaying, (0.7, 1.5, 3, 6, 10)),
}
"""Name -> how, and with which setting at severities 1 to 5."""


def piece(path: Path, span_s: tuple[float, float], num_frames: int) -> np.ndarray:
    """Frames from the start of a span, no more than 480 pixels on the shorter side, of even size."""
    images = []
    for frame in iter_frames(path, start_s=span_s[0], end_s=span_s[1]):
        images.append(frame.rgb(short_side=480))
        if len(images) == num_frames:
            break
    height, width = images[0].shape[:2]
    return np.stack(images)[:, : height // 2 * 2, : width // 2 * 2]


def score(frames: np.ndarray, folder: Path, stage: QualityConfig) -> tuple[float, float]:
    """Quality of the frames as a file, and the seconds that scoring took, decoding included."""
    path = write_video(frames, folder / "clip.mp4", FPS)
    spec = ClipSpec(
        clip_id="clip",
        source_id="clip.mp4",
        path=path,
        start_s=0.0,
        end_s=len(frames) / FPS,
        num_frames=len(frames),
        fps=FPS,
        width=frames.shape[2],
        height=frames.shape[1],
    )
    began = time.perf_counter()
    verdict = stage.process(Clip(spec, stage.views))
    return verdict.scores["quality"], time.perf_counter() - began


def main() -> None:
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=formatter)
    parser.add_argument("--clips", type=Path, help="folder of the real clips; the recipe's where left out")
    parser.add_argument(
        "--groups", help="source groups, with commas; the recipe's held-out ones where left out"
    )
    parser.add_argument(
        "--files", nargs="*", type=Path, default=[], help="score these instead, from their start"
    )
    parser.add_argument("--num-frames", type=int, default=32)
    parser.add_argument("--to", type=Path, help="folder for a contact sheet per degradation")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    cfg = load_config(TrainConfig, CONFIG)
    groups = arguments.groups.split(",") if arguments.groups else cfg.held_out
    pieces = [
        ((arguments.clips or cfg.clips) / source.file, source.spans_s[0])
        for source in cfg.sources
        if source.group in groups
    ]
    if arguments.files:
        pieces = [(path, (0.0, 60.0)) for path in arguments.files]
    stage = QualityConfig()
    stage.setup()

    scores: dict[str, list[list[float]]] = {name: [] for name in DAMAGE}
    seconds = []
    sheets: dict[str, list[np.ndarray]] = {name: [] for name in DAMAGE}
    with tempfile.TemporaryDirectory() as folder:
        for path, span_s in pieces:
            frames = piece(path, span_s, arguments.num_frames)
            clean, taken = score(frames, Path(folder), stage)
            seconds.append(taken)
            print(f"{path.name}: {frames.shape}, clean {clean:.3f}")  # noqa: T201
            for name, (change, settings) in DAMAGE.items():
                damaged = [change(frames, setting) for setting in settings]
                scores[name].append([clean, *(score(shown, Path(folder), stage)[0] for shown in damaged)])
                middle = len(frames) // 2
                sheets[name].append(np.stack([frames[middle], *(shown[middle] for shown in damaged)]))
    report = {}
    for name, rows in scores.items():
        table = np.array(rows)
        correlation, right = float(spearman(table).mean()), float((table[:, :1] > table[:, -2:]).mean())
        across = float((table[:, :1, None] > table[None, :, -2:]).mean())
        report[name] = {
            "spearman": round(correlation, 4),
            "pairs": round(right, 4),
            "across": round(across, 4),
        }
        means = " ".join(f"{value:.2f}" for value in table.mean(axis=0))
        figures = f"spearman {correlation:6.3f}  pairs {right:5.3f}  across {across:5.3f}"
        print(f"{name:18} {figures}  mean score {means}")  # noqa: T201
        for (path, _), row in zip(pieces, table, strict=True):
            print(f"    {path.name:28} {' '.join(f'{value:.3f}' for value in row)}")  # noqa: T201
        if arguments.to:
            arguments.to.mkdir(parents=True, exist_ok=True)
            captions = [" ".join(f"{value:.2f}" for value in row) for row in table]
            small = [np.stack([cv2.resize(x, None, fx=0.4, fy=0.4) for x in sheet]) for sheet in sheets[name]]
            contact_sheet(small, captions).save(arguments.to / f"{name}.png")
    means_over_damage = {
        figure: round(float(np.mean([figures[figure] for figures in report.values()])), 4)
        for figure in ("spearman", "pairs", "across")
    }
    summary = {
        **means_over_damage,
        "num_clips": len(pieces),
        "num_frames": arguments.num_frames,
        "median_seconds_per_clip": round(statistics.median(seconds), 4),
        "degradations": report,
        "environment": {"torch": torch.__version__, "machine": platform.machine(), "threads": 1},
    }
    print(json.dumps(summary))  # noqa: T201


if __name__ == "__main__":
    main()
