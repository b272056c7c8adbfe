"""What the page says about models of the moving-shapes world."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path

import numpy as np
import pytest

from hummingbird.app import moving_shapes
from hummingbird.nano import world
from hummingbird.video_io import write_video


def test_the_builder_speaks_the_models_own_sentences() -> None:
    prompt = moving_shapes.build_prompt("star", "yellow", "upright", "navy")
    assert prompt == "a yellow star moving diagonally up on a navy background"
    asked = world.parse_caption(prompt)
    assert asked is not None
    assert asked.motion == "upright"
    with pytest.raises(ValueError, match="shape: got 'hexagon', expected one of circle"):
        moving_shapes.build_prompt("hexagon", "red", "up", "black")
    rng = random.Random(0)
    drawn = {moving_shapes.random_prompt(rng) for _ in range(20)}
    assert len(drawn) > 15
    assert all(world.parse_caption(prompt) for prompt in drawn)


def test_examples_are_of_the_world() -> None:
    assert all(world.parse_caption(text) for text in moving_shapes.EXAMPLES)


def test_a_prompt_from_elsewhere_is_noted() -> None:
    assert moving_shapes.note_on(moving_shapes.EXAMPLES[0]) == ""
    assert moving_shapes.note_on("  ") == ""
    note = moving_shapes.note_on("A panda surfing on a red wave.")
    assert "“panda”, “surfing”, “wave”" in note
    assert "red" not in note
    assert "sentences like the examples" in moving_shapes.note_on("red circle red circle")


def test_models_of_the_world_are_known_by_their_words(tiny_model: Path, tmp_path: Path) -> None:
    assert moving_shapes.speaks_world("nano")
    assert moving_shapes.speaks_world(str(tiny_model))
    shutil.copytree(tiny_model / "tokenizer", tmp_path / "tokenizer")
    assert moving_shapes.speaks_world(str(tmp_path))
    file = tmp_path / "tokenizer" / "tokenizer.json"
    entries = json.loads(file.read_text())
    entries["model"]["vocab"]["panda"] = 99
    file.write_text(json.dumps(entries))
    assert not moving_shapes.speaks_world(str(tmp_path))
    for broken in ("[]", "{", '{"model": {"vocab": 5}}'):
        file.write_text(broken)
        assert not moving_shapes.speaks_world(str(tmp_path))
    assert not moving_shapes.speaks_world("some/hub-id")


def test_the_verdict_is_on_the_file_that_is_shown(tmp_path: Path) -> None:
    asked = world.Attributes(shape="circle", color="red", motion="right", background="black")
    clip = world.render_clips([asked], np.random.default_rng(0))[0].numpy()
    path = write_video(clip, tmp_path / "a.mp4", fps=8)
    verdict = moving_shapes.seen_in(path)
    assert [check.is_right for check in moving_shapes.checks(asked.prompt, verdict)] == [True] * 4
    other = moving_shapes.checks("a blue circle growing on a black background", verdict)
    assert [check.is_right for check in other] == [True, False, False, True]
    assert (other[1].asked, other[1].seen) == ("blue", "red")
    assert [check.is_right for check in moving_shapes.checks("a panda", verdict)] == [None] * 4
    # Another video at the same place is judged anew.
    write_video(clip[::-1].copy(), path, fps=8)
    assert moving_shapes.seen_in(path).motion == "left"
