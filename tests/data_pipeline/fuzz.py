"""Broken copies of real videos: what a crawl of the web brings in."""

from __future__ import annotations

from pathlib import Path

import numpy as np

__all__ = ["KINDS", "make_fuzzed"]

KINDS = (
    "few_bits",
    "many_bits",
    "header_bits",
    "truncated",
    "zeroed",
    "shuffled",
    "renamed",
    "text",
    "empty",
    "noise",
)
_WRONG_SUFFIXES = (".mp4", ".mkv", ".avi", ".ts", ".webm", ".gif", ".mpg", ".h264", ".mp3", ".jpg")
_TEXTS = (
    b"hello, this is not a video\n" * 40,
    b"#EXTM3U\n#EXT-X-VERSION:3\n#EXTINF:10,\nhttp://127.0.0.1:9/a.ts\n#EXT-X-ENDLIST\n",
    b"ffconcat version 1.0\nfile /etc/hostname\n",
    b"<?xml version='1.0'?><MPD xmlns='urn:mpeg:dash:schema:mpd:2011'/>",
    b"YUV4MPEG2 W99999 H99999 F25:1 C420\nFRAME\n",
    b"RIFF\xff\xff\xff\xffAVI LIST",
    b"\x1b[2J\x1b[1;31mansi art\x1b[0m\r\n" * 20,
)


def make_fuzzed(path: Path, seed: int, to: Path) -> Path:
    """Write a broken copy of a video, the same one for the same seed.

    Args:
        path: a real video.
        seed: chooses the kind (in turn) and everything else.
        to: folder for the copy, made where missing.

    Returns:
        The copy, called ``{seed}_{kind}_{name}``; its suffix may be wrong.
    """
    kind = KINDS[seed % len(KINDS)]
    generator = np.random.default_rng(seed)
    data = np.fromfile(path, np.uint8)
    suffix = path.suffix
    if kind in ("few_bits", "many_bits", "header_bits"):
        count = {"few_bits": 8, "many_bits": len(data) // 500, "header_bits": 16}[kind]
        end = 4096 if kind == "header_bits" else len(data)
        places = generator.integers(0, min(end, len(data)), count)
        data[places] ^= (1 << generator.integers(0, 8, count)).astype(np.uint8)
    elif kind == "truncated":
        data = data[: generator.integers(1, len(data))]
    elif kind == "zeroed":
        start = generator.integers(0, len(data))
        data[start : start + generator.integers(1, len(data) // 2)] = 0
    elif kind == "shuffled":
        blocks = np.array_split(data, 64)
        data = np.concatenate([blocks[index] for index in generator.permutation(64)])
    elif kind == "renamed":
        suffix = str(generator.choice(_WRONG_SUFFIXES))
    elif kind == "text":
        data = np.frombuffer(_TEXTS[generator.integers(len(_TEXTS))], np.uint8)
    elif kind == "empty":
        data = data[:0]
    else:
        data = generator.integers(0, 256, generator.integers(1, 100_000)).astype(np.uint8)
    to.mkdir(parents=True, exist_ok=True)
    copy = to / f"{seed:04d}_{kind}_{path.stem}{suffix}"
    data.tofile(copy)
    return copy
