"""Curated shards as training data: what ``python -m data_pipeline run`` wrote, read back clip by clip."""

from __future__ import annotations

import hashlib
import json
import tarfile
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import AutoencoderKL
from safetensors.torch import save_file
from tqdm.auto import tqdm

from hummingbird.manifest import ClipRecord, read_manifest
from hummingbird.video_io import VideoClip, atomic_path, read_video
from train.dataset import encode_frames

MAX_CLIP_BYTES = 256 * 1024**2


@dataclass(frozen=True, kw_only=True)
class ShardClip:
    """One curated clip: its row of the manifest, and its frames and rate as they were written."""

    record: ClipRecord
    video: VideoClip


def read_shards(folder: Path) -> Iterator[ShardClip]:
    """Kept clips of a curated folder in the order of the shards, each checked against the manifest.

    Args:
        folder: with ``manifest.parquet`` and ``shards/*.tar``.

    Raises:
        FileNotFoundError: there is no manifest or a shard is missing.
        ValueError: a shard does not hold what the manifest says.
    """
    wanted: dict[str, dict[str, ClipRecord]] = {}
    for record in read_manifest(folder / "manifest.parquet"):
        if record.status == "kept" and record.shard is not None:
            wanted.setdefault(record.shard, {})[f"{record.clip_id}.mp4"] = record
    for shard, records in sorted(wanted.items()):
        path = folder / shard
        if not path.resolve().is_relative_to(folder.resolve()):
            raise ValueError(f"{folder}/manifest.parquet: shard {shard!r} lies outside of the folder")
        with tarfile.open(path, "r:") as tar:
            for member in tar:
                found = records.pop(member.name, None)
                if found is not None:
                    yield ShardClip(record=found, video=_decode(tar, member, found))
        if records:
            raise ValueError(
                f"{path}: {len(records)} clips of the manifest are missing, e.g. {min(records)}; "
                "run the curation again"
            )


def _decode(tar: tarfile.TarFile, member: tarfile.TarInfo, record: ClipRecord) -> VideoClip:
    where = f"{tar.name!r}: {member.name}"
    if not member.isfile() or member.size > MAX_CLIP_BYTES:
        raise ValueError(f"{where}: got {member.size} bytes, expected a file of up to {MAX_CLIP_BYTES}")
    file = tar.extractfile(member)
    assert file is not None  # a regular file
    content = file.read()
    if hashlib.sha256(content).hexdigest() != record.sha256:
        raise ValueError(f"{where}: sha256 differs from the manifest's; run the curation again")
    with tempfile.NamedTemporaryFile(suffix=".mp4") as copy:
        copy.write(content)
        copy.flush()
        return read_video(copy.name)


def encode_shards(
    vae: AutoencoderKL, folder: Path, num_frames: int, path: Path, *, max_clips: int | None = None
) -> None:
    """Writes scaled latents and captions of the clips of a curated folder.

    Args:
        vae: frozen.
        folder: output of the curation.
        num_frames: frames taken from the start of each clip; shorter clips are left out.
        path: ``.safetensors`` with ``latents`` float16 (N, F, C, h, w); ``captions`` (JSON) and ``fps``
            in its metadata.
        max_clips: take no more than these.

    Raises:
        ValueError: no clip is long enough, or clips differ in size or rate.
    """
    latents, captions = [], []
    form: tuple[float, tuple[int, ...]] | None = None
    for clip in tqdm(read_shards(folder), desc="encode shards", mininterval=5.0):
        if len(clip.video.frames) < num_frames:
            continue
        found = (clip.video.fps, clip.video.frames.shape[1:])
        form = form or found
        if found != form:
            raise ValueError(
                f"{folder}: {clip.record.clip_id} has rate and size {found}, the first clip {form}; expected "
                "one for all: set write.fps, write.width and write.height"
            )
        latents.append(encode_frames(vae, torch.from_numpy(clip.video.frames[None, :num_frames])))
        captions.append(clip.record.caption or "")
        if max_clips is not None and len(latents) >= max_clips:
            break
    if form is None:
        raise ValueError(f"{folder}: no clip of {num_frames} frames or more; lower num_frames")
    metadata = {"captions": json.dumps(captions), "fps": str(form[0])}
    with atomic_path(path) as part:
        save_file({"latents": torch.cat(latents)}, part, metadata=metadata)
