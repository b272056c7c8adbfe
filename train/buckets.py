"""Encoded clips in buckets of one shape each: what ``train/precompute.py`` wrote, as training data."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from pydantic import Field
from safetensors import safe_open
from safetensors.torch import load_file

from hummingbird.config import config_dataclass

CHECKSUMS = "checksums.json"


@config_dataclass
class Bucket:
    """Clips of one length, rate and size."""

    num_frames: Annotated[int, Field(ge=1)]
    fps: Annotated[float, Field(gt=0)]
    height: Annotated[int, Field(ge=8)]
    width: Annotated[int, Field(ge=8)]

    @property
    def name(self) -> str:
        """Of its folder, such as ``16x320x512-8fps``."""
        return f"{self.num_frames}x{self.height}x{self.width}-{self.fps:g}fps"


def sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def audit(folder: Path) -> list[str]:
    """Checks every file against its checksum; one line per bucket with its number of clips.

    Raises:
        FileNotFoundError: ``train/precompute.py`` did not end here.
        ValueError: a file is missing or differs.
    """
    lines: dict[str, int] = {}
    for name, entry in _entries(folder).items():
        path = folder / name
        if not path.is_file() or sha256_of(path) != entry["sha256"]:
            raise ValueError(f"{path}: missing or not what was written; delete {folder} and encode again")
        bucket = name.split("/")[0]
        lines[bucket] = lines.get(bucket, 0) + len(entry["ids"])
    skipped = folder / "skipped.jsonl"
    left_out = len(skipped.read_text().splitlines()) if skipped.is_file() else 0
    found = [f"{bucket}: {count} clips" for bucket, count in sorted(lines.items())]
    return [*found, f"left out: {left_out} (reasons in {skipped})"] if left_out else found


def _entries(folder: Path) -> dict[str, Any]:
    file = folder / CHECKSUMS
    if not file.is_file() or not (folder / "empty.safetensors").is_file():
        raise FileNotFoundError(
            f"latents: {folder} holds no finished encoding; make it with `python train/precompute.py`"
        )
    entries: dict[str, Any] = json.loads(file.read_text())
    for name in entries:
        if not (folder / name).resolve().is_relative_to(folder.resolve()):
            raise ValueError(f"{file}: {name!r} lies outside of the folder")
    return entries


class BucketedClips:
    """Batches of one bucket each: ``{"latents": (B, C, F, h, w), "prompt_embeds": (B, L, D), "fps", "ids"}``.

    Where the encoding kept them, also ``"captions"``.

    Args:
        folder: what ``train/precompute.py`` wrote; audited first.
        batch_size: B. A bucket with fewer clips repeats some of them within a batch.
        seed: draws buckets (by their numbers of clips), clips and the captions that are left out.
        caption_dropout: share of captions replaced by the empty one, for classifier-free guidance.

    Raises:
        FileNotFoundError: there is no finished encoding.
        ValueError: a file is damaged, or there are no clips.
    """

    def __init__(self, folder: Path, batch_size: int, seed: int, caption_dropout: float = 0.1) -> None:
        self.report = audit(folder)
        entries = _entries(folder)
        if not entries:
            raise ValueError(f"latents: {folder} has no clips; see {folder}/skipped.jsonl for the reasons")
        self.batch_size, self.seed, self.caption_dropout = batch_size, seed, caption_dropout
        self.empty = load_file(folder / "empty.safetensors")["prompt_embeds"]
        self.clips: dict[str, list[tuple[Path, int, str, str]]] = {}
        self.has_captions = all("captions" in entry for entry in entries.values())
        for name, entry in sorted(entries.items()):
            captions = entry["captions"] if self.has_captions else [""] * len(entry["ids"])
            pairs = zip(entry["ids"], captions, strict=True)
            places = [(folder / name, row, *pair) for row, pair in enumerate(pairs)]
            self.clips.setdefault(name.split("/")[0], []).extend(places)
        self.names = sorted(self.clips)
        counts = np.array([len(self.clips[name]) for name in self.names], dtype=float)
        self.shares = counts / counts.sum()
        self.sizes: dict[str, tuple[int, int]] = {}
        for name in self.names:
            with safe_open(self.clips[name][0][0], "pt") as file:
                _, _, self.channels, height, width = file.get_slice("latents").get_shape()
            self.sizes[name] = height, width

    def check_sizes(self, multiple: int) -> None:
        """Refuses buckets whose latents a network cannot halve as often as it has to.

        Args:
            multiple: that height and width of the latents have to be divisible by.
        """
        for name, (height, width) in self.sizes.items():
            if height % multiple or width % multiple:
                raise ValueError(
                    f"latents: bucket {name} has {height}x{width} latents, expected multiples of {multiple}, "
                    "because the network halves them; encode the clips at another size"
                )

    def batch(self, index: int) -> dict[str, Any]:
        rng = np.random.default_rng((self.seed, index))
        name = self.names[int(rng.choice(len(self.names), p=self.shares))]
        clips = self.clips[name]
        chosen = [clips[int(row)] for row in rng.integers(len(clips), size=self.batch_size)]
        dropped = rng.uniform(size=self.batch_size) < self.caption_dropout
        latents, embeds = [], []
        for (path, row, *_), drop in zip(chosen, dropped, strict=True):
            with safe_open(path, "pt") as file:  # memory-mapped: only these rows are read
                latents.append(file.get_slice("latents")[row])
                embeds.append(self.empty if drop else file.get_slice("prompt_embeds")[row])
        batch = {
            "latents": torch.stack(latents).float().transpose(1, 2),
            "prompt_embeds": torch.stack(embeds).float(),
            "fps": float(name.rsplit("-", 1)[1].removesuffix("fps")),
            "ids": [clip_id for _, _, clip_id, _ in chosen],
        }
        if self.has_captions:
            batch["captions"] = [
                "" if drop else caption for (*_, caption), drop in zip(chosen, dropped, strict=True)
            ]
        return batch
