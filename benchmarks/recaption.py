"""How many captions a second do the rules and the guards do, without any model? Last line JSON.

python benchmarks/recaption.py [--captions FILE.txt]
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path

import torch

from data_pipeline.recaption.guards import Guards, looks_injected, tidy
from data_pipeline.recaption.rules import clean_caption
from data_pipeline.stages.recaption import DEFAULT_PROMPT
from hummingbird.evaluation.report import environment

CAPTIONS = [
    "4K stock footage of a dog running in the park | Shutterstock",
    "Aerial view of city &amp; river &#8211; stock video ID: 1029384756",
    "A DOG RUNS ON THE BEACH AT SUNSET, 1080P, 60FPS",
    "Time lapse of clouds over mountains, royalty free video, Full HD 1920x1080",
    "Close-up - hands of a woman typing on a keyboard in an office - iStock",
    "Two young people walk along a crowded street at night and laugh, slow motion, handheld camera",
]


def captions_per_s(function: Callable[[str], object], captions: list[str], seconds: float) -> float:
    """Of processor time."""
    started, done = time.process_time(), 0
    while time.process_time() - started < seconds:
        for caption in captions:
            function(caption)
        done += len(captions)
    return done / (time.process_time() - started)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--captions", type=Path, help="a file with one caption a line; else six of our own")
    parser.add_argument("--seconds", type=float, default=5.0)
    options = parser.parse_args()
    captions = options.captions.read_text().splitlines() if options.captions else CAPTIONS
    instruction = DEFAULT_PROMPT.replace("{caption}", " ")
    guards = Guards(instruction=instruction, language="en", min_overlap=0.2, max_clip_tokens=77)
    answers = {caption: f"Here is the caption: {clean_caption(caption)}." for caption in captions}

    def check(caption: str) -> None:
        looks_injected(caption)
        guards.check(tidy(answers[caption]), caption, is_cut_off=False)

    check(captions[0])  # loads the tokenizer
    figures = {
        "captions": len(captions),
        "rules_per_s": round(captions_per_s(clean_caption, captions, options.seconds)),
        "guards_per_s": round(captions_per_s(check, captions, options.seconds)),
        "environment": environment(torch.device("cpu"), "float32"),
    }
    print(json.dumps(figures))  # noqa: T201


if __name__ == "__main__":
    main()
