"""Makes the picture at the top of the README: eight videos of the embedded model in one GIF.

python docs/make_gif.py

Eight of the ten kinds of motion (not bounce and orbit, which the model does worst), seed 0 each: nothing
is picked among several tries. What the oracle says of each video is in the last line.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import numpy as np
import PIL.Image
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from hummingbird.evaluation import judge_videos
from hummingbird.evaluation.report import environment
from hummingbird.nano import world
from hummingbird.runtime import load_pipeline
from hummingbird.video_io import to_uint8, write_video

PROMPTS = (
    "a red circle moving right on a black background",
    "a yellow star moving up on a navy background",
    "a cyan square growing on a brown background",
    "a green cross moving left on a white background",
    "a pink triangle moving down on a gray background",
    "a blue circle shrinking on a white background",
    "a orange square moving diagonally up on a black background",
    "a purple star moving diagonally down on a teal background",
)
_COLUMNS, _TILE, _GAP = 4, 128, 4


def tile(videos: list[np.ndarray]) -> np.ndarray:
    """Videos side by side: uint8 (F, H, W, 3) each -> one of the same kind."""
    frames = []
    for index in range(len(videos[0])):
        rows = -(-len(videos) // _COLUMNS)
        size = (_COLUMNS * (_TILE + _GAP) - _GAP, rows * (_TILE + _GAP) - _GAP)
        sheet = PIL.Image.new("RGB", size, (128, 128, 128))
        for number, video in enumerate(videos):
            picture = PIL.Image.fromarray(video[index]).resize((_TILE, _TILE), PIL.Image.Resampling.BICUBIC)
            row, column = divmod(number, _COLUMNS)
            sheet.paste(picture, (column * (_TILE + _GAP), row * (_TILE + _GAP)))
        frames.append(np.asarray(sheet))
    return np.stack(frames)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--to", type=Path, default=Path(__file__).parent / "images" / "nano.gif")
    parser.add_argument("--model", default="nano")
    args = parser.parse_args()
    pipe = load_pipeline(args.model, "auto", "auto")
    pipe.set_progress_bar_config(disable=True)
    videos, right = [], []
    for prompt in PROMPTS:
        asked = world.parse_caption(prompt)
        assert asked is not None, prompt
        out = pipe(prompt, generator=torch.Generator().manual_seed(0), output_type="np")
        videos.append(to_uint8(out.frames[0]))
        (verdict,) = judge_videos(videos[-1][None], [asked])
        right.append(bool(verdict["right"]["all"]))
    write_video(tile(videos), args.to, fps=float(pipe.default_call["fps"]))
    dtype = str(pipe.unet.dtype).removeprefix("torch.")
    result = {"right": right, "prompts": PROMPTS, "size_bytes": args.to.stat().st_size}
    sys.stdout.write(json.dumps({**result, "environment": environment(pipe.device, dtype)}) + "\n")


if __name__ == "__main__":
    main()
