"""What does the curation drop of clips that were damaged on purpose? Last line JSON.

    python benchmarks/nano_curation.py [--clean 96] [--damaged 12] [--workers 2] [--to runs/nano_curation]

Clips of the moving-shapes world, 256 pixels wide, go in as files: most of them as they are, some of each kind
of damage. ``configs/data/nano.yaml`` decides. Recall is the share of damaged clips that were dropped, per
kind; precision the share of dropped clips that were damaged. The shards that come out are what
``python train/nano.py latents ... --shards FOLDER`` encodes for training.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from data_pipeline.pipeline import PipelineConfig, run
from data_pipeline.vqa.degrade import Shot, degrade
from hummingbird.config import load_config
from hummingbird.evaluation.report import environment
from hummingbird.manifest import read_manifest
from hummingbird.nano import world
from hummingbird.video_io import write_clip

SIZE = 256
STRENGTH = 0.8
CONFIG = Path(__file__).resolve().parents[1] / "configs/data/nano.yaml"


def frozen(frames: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Stands still."""
    return np.repeat(frames[:1], len(frames), axis=0)


def dark(frames: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Nearly black."""
    return (frames * 0.04).astype(np.uint8)


def short(frames: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Half a second."""
    return frames[:4]


def shaken(frames: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A camera that jumps by up to a sixteenth of the width between frames."""
    offsets = rng.integers(-SIZE // 16, SIZE // 16 + 1, size=(len(frames), 2))
    border = SIZE // 16
    padded = np.pad(frames, ((0, 0), (border, border), (border, border), (0, 0)), mode="edge")
    return np.stack(
        [
            frame[border + y : border + y + SIZE, border + x : border + x + SIZE]
            for frame, (y, x) in zip(padded, offsets, strict=True)
        ]
    )


def fast(frames: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Every fifth frame, played at the same rate."""
    picks = (np.arange(len(frames)) * 5) % len(frames)
    return frames[picks]


def degraded(name: str) -> Callable[[np.ndarray, np.random.Generator], np.ndarray]:
    """One of the quality model's own degradations."""

    def apply(frames: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        shot = Shot(frames=frames, times_s=np.arange(len(frames)) / world.FPS)
        return degrade(name, shot, STRENGTH, int(rng.integers(2**31))).frames

    return apply


DAMAGE: dict[str, Callable[[np.ndarray, np.random.Generator], np.ndarray]] = {
    "frozen": frozen,
    "dark": dark,
    "short": short,
    "shaken": shaken,
    "fast": fast,
    **{
        name: degraded(name)
        for name in ("blur", "noise", "compression", "blocks", "upscaling", "overexposure")
    },
}


def write_inputs(folder: Path, num_clean: int, num_damaged: int, seed: int) -> None:
    """Files ``KIND-NNN.mp4`` with captions beside them; ``copy-NNN`` are other encodings of clean clips."""
    rng = np.random.default_rng(seed)
    kinds = ["clean"] * num_clean + [kind for kind in DAMAGE for _ in range(num_damaged)]
    items = world.random_attributes(len(kinds), rng)
    for index, (kind, item) in enumerate(zip(kinds, items, strict=True)):
        clip = world.render_clips([item], rng, scale=SIZE // world.IMAGE_SIZE)[0].numpy()
        frames = DAMAGE[kind](clip, rng) if kind != "clean" else clip
        path = folder / f"{kind}-{index:03d}.mp4"
        write_clip(frames, path, world.FPS, crf=10)
        path.with_suffix(".txt").write_text(item.prompt + "\n")
        if kind == "clean" and index < num_damaged:
            write_clip(frames, folder / f"copy-{index:03d}.mp4", world.FPS, crf=24)
    for index in range(num_damaged):
        whole = (folder / f"clean-{index:03d}.mp4").read_bytes()
        (folder / f"broken-{index:03d}.mp4").write_bytes(whole[: len(whole) // 3])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--clean", type=int, default=96)
    parser.add_argument("--damaged", type=int, default=12)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--to", type=Path, default=Path("runs/nano_curation"))
    arguments = parser.parse_args()
    write_inputs(arguments.to / "videos", arguments.clean, arguments.damaged, arguments.seed)
    flags = ["--input", str(arguments.to / "videos"), "--output", str(arguments.to / "curated")]
    config = load_config(PipelineConfig, CONFIG, [*flags, "--workers", str(arguments.workers)])
    summary = run(config)

    rows = [
        (Path(row.source).name.split("-")[0], row)
        for row in read_manifest(config.output / "manifest.parquet")
    ]
    kinds: dict[str, dict[str, int]] = {}
    for kind, row in rows:
        outcome = kinds.setdefault(kind, {})
        name = "kept" if row.status == "kept" else row.reason
        outcome[name] = outcome.get(name, 0) + 1
    # Of a clip and its copy either may stay; both count as clean, and one of each pair has to go.
    dropped = [kind for kind, row in rows if row.status != "kept"]
    clean_lost = sum(
        1
        for kind, row in rows
        if kind in ("clean", "copy") and row.status != "kept" and "duplicate" not in row.reason
    )
    figures = {
        "recall": {
            kind: round(1 - outcome.get("kept", 0) / sum(outcome.values()), 3)
            for kind, outcome in sorted(kinds.items())
            if kind not in ("clean", "copy")
        },
        "duplicate_pairs": arguments.damaged,
        "duplicates_dropped": sum(1 for _, row in rows if "duplicate" in row.reason),
        "precision": round(1 - clean_lost / max(1, len(dropped)), 3),
        "clean_lost": clean_lost,
        "num_rows": len(rows),
        "num_shards": summary.num_shards,
    }
    for kind, outcome in sorted(kinds.items()):
        print(f"{kind:14}", ", ".join(f"{name}: {count}" for name, count in sorted(outcome.items())))  # noqa: T201
    print(json.dumps({**figures, "environment": environment(torch.device("cpu"), "float32")}))  # noqa: T201


if __name__ == "__main__":
    main()
