"""Makes a picture of several models side by side: the same prompts, the same seed, and what the oracle says.

python docs/make_sheet.py --to docs/images/nano_stage1.png teacher=nano-teacher@50 stage1=nano-stage1@50

Each model is TITLE=MODEL@STEPS. Nothing is picked: the prompts are those of make_gif.py and its two missing
kinds of motion, one seed for all. The oracle's verdicts are in the last line.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import numpy as np
import PIL.Image
import PIL.ImageDraw
import PIL.ImageFont
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from docs import make_gif
from hummingbird.evaluation import judge_videos
from hummingbird.nano import world
from hummingbird.runtime import load_pipeline
from hummingbird.video_io import atomic_path, to_uint8

PROMPTS = (
    *make_gif.PROMPTS,
    "a green star bouncing on a black background",
    "a yellow circle orbiting on a teal background",
)
_FRAMES, _TILE, _GAP, _LINE = 4, 64, 2, 18
_RIGHT, _WRONG, _INK = (0, 110, 40), (180, 20, 20), (20, 20, 20)


def sample(model: str, prompts: list[str], seed: int) -> tuple[list[np.ndarray], list[list[str]]]:
    """Videos (F, H, W, 3) of one model, and which attributes the oracle finds wrong in each."""
    name, _, steps = model.rpartition("@")
    pipe = load_pipeline(name, "auto", "auto")
    pipe.set_progress_bar_config(disable=True)
    videos, wrong = [], []
    for prompt in prompts:
        asked = world.parse_caption(prompt)
        assert asked is not None, prompt
        generator = torch.Generator().manual_seed(seed)
        out = pipe(prompt, num_inference_steps=int(steps), generator=generator, output_type="np")
        videos.append(to_uint8(out.frames[0]))
        (verdict,) = judge_videos(videos[-1][None], [asked])
        wrong.append([key for key in world.ATTRIBUTES if not verdict["right"][key]])
    return videos, wrong


def draw(
    titles: list[str], prompts: list[str], videos: list[list[np.ndarray]], wrong: list[list[list[str]]]
) -> PIL.Image.Image:
    """A row per prompt, a column of frames per model; what is wrong stands below."""
    block = _FRAMES * (_TILE + _GAP) + 4 * _GAP
    height = _LINE + len(prompts) * (2 * _LINE + _TILE + _GAP)
    sheet = PIL.Image.new("RGB", (len(titles) * block + 4 * _GAP, height + 4 * _GAP), (250, 250, 250))
    pen, font = PIL.ImageDraw.Draw(sheet), PIL.ImageFont.load_default(size=12)
    for column, title in enumerate(titles):
        left = 4 * _GAP + column * block
        pen.text((left, _GAP), title, fill=_INK, font=font)
        for row, prompt in enumerate(prompts):
            top = 2 * _GAP + _LINE + row * (2 * _LINE + _TILE + _GAP)
            if column == 0:
                pen.text((left, top), prompt, fill=_INK, font=font)
            video, faults = videos[column][row], wrong[column][row]
            picked = np.linspace(0, len(video) - 1, _FRAMES).round().astype(int)
            for number, frame in enumerate(video[picked]):
                tile = PIL.Image.fromarray(frame).resize((_TILE, _TILE))
                sheet.paste(tile, (left + number * (_TILE + _GAP), top + _LINE))
            text = f"wrong: {', '.join(faults)}" if faults else "all four right"
            pen.text((left, top + _LINE + _TILE), text, fill=_WRONG if faults else _RIGHT, font=font)
    return sheet


def main() -> None:
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=formatter)
    parser.add_argument("models", nargs="+", metavar="TITLE=MODEL@STEPS")
    parser.add_argument("--to", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    pairs = [entry.partition("=")[::2] for entry in args.models]
    made = [sample(model, list(PROMPTS), args.seed) for _, model in pairs]
    sheet = draw(
        [title for title, _ in pairs], list(PROMPTS), [one[0] for one in made], [one[1] for one in made]
    )
    with atomic_path(args.to) as partial:
        sheet.save(partial, format="PNG", optimize=True)
    found = {title: one[1] for (title, _), one in zip(pairs, made, strict=True)}
    sys.stdout.write(json.dumps({"wrong": found, "size_bytes": args.to.stat().st_size}) + "\n")


if __name__ == "__main__":
    main()
