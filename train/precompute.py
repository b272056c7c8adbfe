"""Encodes videos and captions once, so that training needs neither autoencoder nor text encoder.

    python train/precompute.py CONFIG.yaml --source FOLDER_OR_CSV --output FOLDER

Each video goes to the bucket of frames, rate and shape that it fits best. A run that was killed goes on where
it was; every file has a checksum; a video that cannot be used is written down with the reason.
"""

from __future__ import annotations

import csv
import json
import math
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # `python train/...` sees only train/

import numpy as np
import pydantic
import torch
from pydantic import Field
from safetensors.torch import save_file
from torch import Tensor

from hummingbird import HummingbirdPipeline
from hummingbird.config import ConfigError, config_dataclass
from hummingbird.video_io import VideoClip, VideoError, atomic_path, read_video
from train.buckets import CHECKSUMS, Bucket, sha256_of
from train.checkpoint import write_json
from train.command import read_settings, run_command
from train.dataset import encode_frames
from train.shards import read_shards
from train.tasks import tokenize

PATH_COLUMNS = ("path", "video", "video_path", "filename", "file", "vid")
CAPTION_COLUMNS = ("caption", "text", "prompt", "recaption")
MAX_CSV_FIELD = 1_000_000


@config_dataclass
class PrecomputeConfig:
    """What is encoded, by whom, into which buckets."""

    source: str
    """Output folder of `python -m data_pipeline run`, or a CSV with one video and caption per row."""
    output: str
    model: str = "nano-teacher"
    """Embedded model or pipeline folder whose autoencoder and text encoder are used."""
    videos: str | None = None
    """Folder that the CSV's paths are relative to; None is the CSV's own."""
    buckets: tuple[Bucket, ...] = (Bucket(num_frames=16, fps=8.0, height=64, width=64),)
    clips_per_file: Annotated[int, Field(ge=1)] = 256
    max_clips: Annotated[int, Field(ge=1)] | None = None

    @pydantic.model_validator(mode="after")
    def _check(self) -> PrecomputeConfig:
        names = [bucket.name for bucket in self.buckets]
        if not names or len(set(names)) != len(names):
            raise ValueError(f"buckets: got {names}, expected one or more, each once")
        return self


@dataclass(frozen=True, kw_only=True)
class Item:
    """One video of the source: its frames, or why there are none."""

    clip_id: str
    caption: str
    video: VideoClip | None
    reason: str = ""


# --- sources -----------------------------------------------------------------------------------------------


def read_source(config: PrecomputeConfig, known: set[str]) -> Iterator[Item]:
    """Videos of the source that are not ``known`` yet, in its order; one that cannot be read has a reason."""
    source = Path(config.source)
    if source.is_dir():
        for clip in read_shards(source):
            if clip.record.clip_id not in known:
                yield Item(clip_id=clip.record.clip_id, caption=clip.record.caption or "", video=clip.video)
    elif source.is_file():
        yield from _read_csv(source, Path(config.videos) if config.videos else source.parent, known)
    else:
        raise FileNotFoundError(
            f"source: no {source}; expected the output folder of a curation, or a CSV of videos and captions"
        )


def _read_csv(path: Path, folder: Path, known: set[str]) -> Iterator[Item]:
    csv.field_size_limit(MAX_CSV_FIELD)
    with path.open(newline="", encoding="utf-8") as file:
        rows = csv.DictReader(file)
        names = rows.fieldnames or []
        path_column, caption_column = (
            _column(path, names, PATH_COLUMNS),
            _column(path, names, CAPTION_COLUMNS),
        )
        for number, row in enumerate(rows, start=2):
            name, caption = row.get(path_column) or "", row.get(caption_column) or ""
            clip_id = f"{number}:{name}"
            if clip_id in known:
                continue
            video, reason = _open(folder, name)
            yield Item(clip_id=clip_id, caption=caption.strip(), video=video, reason=reason)


def _column(path: Path, names: Sequence[str], known: Sequence[str]) -> str:
    found = [name for name in names if name.strip().lower() in known]
    if len(found) != 1:
        raise ValueError(
            f"source: {path} has columns {list(names)}, expected exactly one of {', '.join(known)}; rename "
            "a column"
        )
    return found[0]


def _open(folder: Path, name: str) -> tuple[VideoClip | None, str]:
    try:
        place = (folder / name).resolve()
        if not name or not place.is_relative_to(folder.resolve()):
            return None, "path: lies outside of the folder"
        return read_video(place), ""
    except (VideoError, OSError, ValueError) as error:
        return None, f"unreadable: {' '.join(str(error).split())[:200]}"


# --- fitting a video into a bucket -------------------------------------------------------------------------


def choose_bucket(video: VideoClip, buckets: Sequence[Bucket]) -> Bucket | None:
    """The bucket nearest in aspect of those that the video is long and fast enough for; more frames win."""
    seconds = len(video.frames) / video.fps
    fitting = [
        bucket
        for bucket in buckets
        if bucket.fps <= 1.01 * video.fps and bucket.num_frames / bucket.fps <= seconds + 0.5 / video.fps
    ]
    height, width = video.frames.shape[1:3]

    def distance(bucket: Bucket) -> tuple[float, int, float]:
        aspect = abs(math.log(bucket.width * height / (bucket.height * width)))
        return round(aspect, 3), -bucket.num_frames, -bucket.fps

    return min(fitting, key=distance, default=None)


def fit(video: VideoClip, bucket: Bucket) -> np.ndarray:
    """The first frames at the bucket's rate, scaled to cover its size and cut around the centre.

    Returns:
        uint8 (F, H, W, 3).
    """
    import cv2

    times = np.arange(bucket.num_frames) / bucket.fps
    picked = video.frames[np.minimum(np.floor(times * video.fps + 1e-3).astype(int), len(video.frames) - 1)]
    height, width = picked.shape[1:3]
    scale = max(bucket.height / height, bucket.width / width)
    size = (max(bucket.width, round(width * scale)), max(bucket.height, round(height * scale)))
    top, left = (size[1] - bucket.height) // 2, (size[0] - bucket.width) // 2
    method = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
    frames = [frame if scale == 1 else cv2.resize(frame, size, interpolation=method) for frame in picked]
    return np.stack(frames)[:, top : top + bucket.height, left : left + bucket.width]


# --- writing -----------------------------------------------------------------------------------------------


class Store:
    """The output folder: per bucket files of latents and embeddings; checksums; what was left out."""

    def __init__(self, config: PrecomputeConfig) -> None:
        self.folder, self.config = Path(config.output), config
        self.folder.mkdir(parents=True, exist_ok=True)
        settings = {"model": config.model, "buckets": [bucket.name for bucket in config.buckets]}
        file = self.folder / "settings.json"
        if file.is_file() and json.loads(file.read_text()) != settings:
            raise ConfigError(
                f"output: {self.folder} was made with {file.read_text().split()}; give another folder"
            )
        write_json(file, settings)
        sums = self.folder / CHECKSUMS
        self.files: dict[str, Any] = json.loads(sums.read_text()) if sums.is_file() else {}
        self.skipped_file = self.folder / "skipped.jsonl"
        lines = self.skipped_file.read_text().splitlines() if self.skipped_file.is_file() else []
        self.known = {json.loads(line)["clip_id"] for line in lines if line.endswith("}")}
        self.known |= {clip_id for entry in self.files.values() for clip_id in entry["ids"]}
        self.waiting: dict[str, list[tuple[Item, Tensor, Tensor]]] = {}

    def skip(self, item: Item, reason: str) -> None:
        with self.skipped_file.open("a") as file:
            file.write(json.dumps({"clip_id": item.clip_id, "reason": reason}) + "\n")

    def add(self, bucket: Bucket, item: Item, latents: Tensor, prompt_embeds: Tensor) -> None:
        waiting = self.waiting.setdefault(bucket.name, [])
        waiting.append((item, latents, prompt_embeds))
        if len(waiting) == self.config.clips_per_file:
            self._write(bucket.name)

    def close(self, empty_embeds: Tensor) -> None:
        """Writes what waits, and the embedding of the empty caption."""
        for name in [name for name, items in self.waiting.items() if items]:
            self._write(name)
        with atomic_path(self.folder / "empty.safetensors") as part:
            save_file({"prompt_embeds": empty_embeds}, part)

    def _write(self, bucket_name: str) -> None:
        items = self.waiting.pop(bucket_name)
        number = sum(name.startswith(bucket_name + "/") for name in self.files)
        name = f"{bucket_name}/{number:06d}.safetensors"
        path = self.folder / name
        path.parent.mkdir(exist_ok=True)
        tensors = {
            "latents": torch.stack([latents for _, latents, _ in items]),
            "prompt_embeds": torch.stack([embeds for _, _, embeds in items]),
        }
        with atomic_path(path) as part:
            save_file(tensors, part)
        # Without an entry here the file does not count, so a process killed in between encodes it again.
        self.files[name] = {
            "sha256": sha256_of(path),
            "ids": [item.clip_id for item, _, _ in items],
            "captions": [item.caption for item, _, _ in items],  # rewards read them with their own encoders
        }
        write_json(self.folder / CHECKSUMS, self.files)


@torch.no_grad()
def precompute(config: PrecomputeConfig) -> Path:
    """Encodes what is not encoded yet; returns the folder.

    Raises:
        ConfigError: the folder holds latents of other settings.
        FileNotFoundError: there is no such source or model.
        ValueError: the source cannot be read, or a bucket does not fit the autoencoder.
    """
    pipe = HummingbirdPipeline.from_pretrained(config.model)
    factor = pipe.vae_scale_factor
    for bucket in config.buckets:
        if bucket.height % factor or bucket.width % factor:
            raise ConfigError(f"buckets: {bucket.name}: expected height and width divisible by {factor}")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    vae, text_encoder = pipe.vae.to(device).eval(), pipe.text_encoder.to(device).eval()

    def encode_text(caption: str) -> Tensor:
        ids = tokenize(pipe.tokenizer, [caption]).to(device)
        return text_encoder(input_ids=ids).last_hidden_state[0].half().cpu()

    store = Store(config)
    done = sum(len(entry["ids"]) for entry in store.files.values())
    for item in read_source(config, store.known):
        if config.max_clips is not None and done >= config.max_clips:
            break
        chosen = choose_bucket(item.video, config.buckets) if item.video is not None else None
        if item.video is None or chosen is None:
            store.skip(item, item.reason or "too short or too slow for every bucket")
            continue
        frames = torch.from_numpy(np.ascontiguousarray(fit(item.video, chosen)))
        store.add(chosen, item, encode_frames(vae, frames[None])[0], encode_text(item.caption))
        done += 1
    store.close(encode_text(""))
    return store.folder


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit status; see ``run_command``."""
    return run_command(
        lambda words: print_audit(
            precompute(read_settings(PrecomputeConfig, words, "train/precompute.py", __doc__))
        ),
        argv,
    )


def print_audit(folder: Path) -> None:
    from train.buckets import audit

    sys.stdout.write("".join(line + "\n" for line in audit(folder)))


if __name__ == "__main__":
    sys.exit(main())
