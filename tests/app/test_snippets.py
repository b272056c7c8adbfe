"""Texts that make a video again: nothing in a prompt becomes code, and what is run is what was meant."""

from __future__ import annotations

import ast
import shlex
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from hummingbird.app.snippets import Recipe, as_command, as_python
from hummingbird.app.videos import Videos
from hummingbird.cli import build_parser, main
from hummingbird.serving import Engine, JobStore

ROOT = Path(__file__).resolve().parent.parent.parent

NASTY = (
    "a red circle moving right on a black background",
    'it\'s "quoted" $(touch pwned) `touch pwned` \\',
    "-rf --steps 99",
    "'''\nimport os\n'''",
    "two\nlines\tand a tab",
    "日本語 ✨",
)


def recipe(**changes: object) -> Recipe:
    values: dict[str, object] = {
        "model": "nano",
        "prompt": NASTY[0],
        "seed": 7,
        "num_inference_steps": 3,
        "guidance_scale": 2.5,
        "num_frames": 8,
        "height": 64,
        "width": 48,
        "fps": 8.0,
    }
    return Recipe(**{**values, **changes})  # type: ignore[arg-type]


def parsed(text: str) -> dict[str, object]:
    words = shlex.split(text.replace("\\\n", " "))
    assert words[:2] == ["hummingbird", "generate"]
    return vars(build_parser().parse_args(words[1:]))


@pytest.mark.parametrize("prompt", NASTY)
def test_a_command_says_what_was_meant(prompt: str) -> None:
    made = parsed(as_command(recipe(prompt=prompt, negative_prompt="--no", guidance_scale=-1.5, fps=7.5)))
    assert made["prompts"] == [prompt]
    assert (made["steps"], made["frames"], made["height"], made["width"]) == (3, 8, 64, 48)
    assert (made["guidance_scale"], made["fps"], made["seed"]) == (-1.5, 7.5, 7)
    assert (made["negative_prompt"], made["device"], made["dtype"]) == ("--no", "auto", "auto")


@pytest.mark.parametrize("prompt", NASTY)
def test_a_script_holds_the_prompt_as_a_text(prompt: str) -> None:
    tree = ast.parse(as_python(recipe(prompt=prompt, negative_prompt=prompt)))
    texts = [node.value for node in ast.walk(tree) if isinstance(node, ast.Constant)]
    assert texts.count(prompt) == 2
    names = [alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names]
    assert names == ["torch"]


def test_device_and_dtype_stand_there_only_where_they_were_given() -> None:
    assert "--device" not in as_command(recipe())
    assert "device" not in as_python(recipe())
    placed = recipe(device="cpu", dtype="bfloat16")
    assert (parsed(as_command(placed))["device"], parsed(as_command(placed))["dtype"]) == ("cpu", "bfloat16")
    assert "load_pipeline('nano', device='cpu', dtype='bfloat16')" in as_python(placed)


def made(folder: Path, jobs: Path) -> tuple[bytes, Recipe]:
    """A video that went through the page's queue, and what its texts are written from."""
    with Engine([str(folder)], JobStore(jobs)) as engine:
        wanted = engine.complete(NASTY[1], seed=2**40 + 3, fps=7.5, negative_prompt="-blue", num_frames=4)
        ended: list[str] = []
        engine.on_end.append(lambda job: ended.append(job.state))
        job = engine.submit(wanted, "somebody")
        while not ended:
            time.sleep(0.05)
        path = engine.video_path(job.id)
        assert ended == ["done"]
        assert path is not None
        return path.read_bytes(), Videos(engine).recipe(wanted)


def test_both_texts_make_the_same_file_again(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "it's a model"
    folder.symlink_to(tiny_model)
    video, recipe = made(folder, tmp_path / "jobs")
    monkeypatch.chdir(tmp_path)
    assert main(shlex.split(as_command(recipe).replace("\\\n", " "))[1:]) == 0
    assert Path("video.mp4").read_bytes() == video
    Path("video.mp4").unlink()
    exec(compile(as_python(recipe), "copied.py", "exec"), {"__name__": "__main__"})
    assert Path("video.mp4").read_bytes() == video


@pytest.mark.slow
def test_a_shell_and_a_new_interpreter_make_the_same_file(tiny_model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "it's a model"
    folder.symlink_to(tiny_model)
    video, recipe = made(folder, tmp_path / "jobs")
    # The same command from this checkout, wherever it is installed.
    program = tmp_path / "bin" / "hummingbird"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m hummingbird.cli "$@"\n')
    program.chmod(0o755)
    for words, text in (
        (["/bin/sh", "-c", as_command(recipe)], ""),
        ([sys.executable, "-"], as_python(recipe)),
    ):
        done = subprocess.run(
            words,
            cwd=tmp_path,
            input=text,
            env={
                "PATH": f"{program.parent}:/usr/bin:/bin",
                "PYTHONPATH": str(ROOT),
                "HOME": str(tmp_path),
                "HF_HUB_OFFLINE": "1",
                "OMP_NUM_THREADS": str(torch.get_num_threads()),
            },
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr[-2000:]
        assert (tmp_path / "video.mp4").read_bytes() == video
        (tmp_path / "video.mp4").unlink()
    assert not (tmp_path / "pwned").exists()
