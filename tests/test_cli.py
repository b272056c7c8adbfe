"""The command line: statuses, one-line errors, JSON on the last line, numbered files."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import PIL.Image
import pytest

from hummingbird import cli, doctor, nano, runtime
from hummingbird.video_io import read_video

ROOT = Path(__file__).resolve().parent.parent
PROMPT = "a red circle moving right on a black background"


def run(*words: object) -> int:
    return cli.main([str(word) for word in words])


def test_help_is_quick_and_imports_nothing_heavy() -> None:
    code = (
        "import sys\nfrom hummingbird.cli import build_parser\nbuild_parser().format_help()\n"
        "heavy = {'torch', 'diffusers', 'transformers', 'av', 'gradio'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    start_s = time.perf_counter()
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
    assert time.perf_counter() - start_s < 5


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["dance"],
        ["generate"],
        ["generate", " "],
        ["generate", PROMPT, "--steps", "0"],
        ["generate", PROMPT, "--steps", "4.5"],
        ["generate", PROMPT, "--seed", "-1"],
        ["generate", PROMPT, "--guidance-scale", "nan"],
        ["generate", PROMPT, "--fps", "0"],
        ["generate", PROMPT, "--dtype", "int8"],
        ["generate", PROMPT, "--out", "video.avi"],
        ["generate", PROMPT, "--contact-sheet", "sheet.mp4"],
        ["generate", PROMPT, "--step", "4"],
        ["evaluate", "--suite", "none", "--to", "x"],
        ["evaluate", "--suite", "moving-shapes"],
        ["doctor", "now"],
    ],
)
def test_bad_usage_is_status_2(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        run(*words)
    assert stop.value.code == 2
    assert "error: " in capsys.readouterr().err


def test_generate_answers_with_json_on_the_last_line(
    tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "new" / "a.mp4"
    sheet = tmp_path / "a.png"
    status = run("generate", PROMPT, "--model", tiny_model, "--device", "cpu", "--seed", 3, "--steps", 2,
                 "--out", out, "--contact-sheet", sheet, "--json")  # fmt: skip
    printed = capsys.readouterr()
    assert status == 0
    answer = json.loads(printed.out.splitlines()[-1])
    assert answer["files"][0] | {"seconds": 0} == {
        "path": str(out),
        "prompt": PROMPT,
        "seed": 3,
        "seconds": 0,
    }
    assert (answer["num_inference_steps"], answer["num_frames"], answer["guidance_scale"]) == (2, 3, 2.0)
    assert (answer["device"], answer["dtype"], answer["model"]) == ("cpu", "float32", str(tiny_model))
    assert "step 2 of 2" in printed.err
    clip = read_video(out)
    assert clip.frames.shape == (3, 16, 24, 3)
    assert clip.fps == 8
    with PIL.Image.open(sheet) as image:
        assert image.width > image.height


def test_several_videos_are_numbered_and_each_can_be_made_again_alone(
    tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    common = ["--model", tiny_model, "--device", "cpu", "--steps", 1]
    assert (
        run("generate", "one", "two", "--num-videos", 2, "--seed", 5, "--out", tmp_path / "v.gif", *common)
        == 0
    )
    names = [f"v-0{index}.gif" for index in (1, 2, 3, 4)]
    assert sorted(path.name for path in tmp_path.iterdir()) == names
    assert capsys.readouterr().out.splitlines() == [str(tmp_path / name) for name in names]
    assert run("generate", "two", "--seed", 8, "--out", tmp_path / "w.gif", *common) == 0
    assert (tmp_path / "w.gif").read_bytes() == (tmp_path / "v-04.gif").read_bytes()
    assert (tmp_path / "v-03.gif").read_bytes() != (tmp_path / "v-04.gif").read_bytes()


def test_flags_reach_the_pipeline(tiny_model: Path, tmp_path: Path) -> None:
    out = tmp_path / "a.mp4"
    status = run("generate", PROMPT, "--model", tiny_model, "--device", "cpu", "--steps", 1, "--frames", 5,
                 "--height", 24, "--width", 16, "--fps", 12, "--guidance-scale", 1, "--out", out)  # fmt: skip
    assert status == 0
    clip = read_video(out)
    assert clip.frames.shape == (5, 24, 16, 3)
    assert clip.fps == 12


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["--model", "no/such/folder"],
            "expected nano, nano-teacher, nano-stage1, an existing folder or file",
        ),
        (["--model", __file__], "neither safetensors nor a file of torch.save"),
        (["--device", "cuda:99"], "device: got 'cuda:99'"),
        (["--device", "toaster"], "device: got 'toaster'"),
        (["--height", "15"], "expected multiples of"),
        (["--out", "/proc/nothing/a.mp4"], "/proc/nothing"),
    ],
)
def test_a_failure_is_status_1_and_one_line(
    tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    out = tmp_path / "a.mp4"
    assert run("generate", PROMPT, "--model", tiny_model, "--steps", 1, "--out", out, *words) == 1
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1
    assert message in lines[0]
    assert not list(tmp_path.iterdir())


def test_debug_shows_the_traceback() -> None:
    with pytest.raises(ValueError, match="toaster"):
        run("generate", PROMPT, "--device", "toaster", "--debug")


def test_a_broken_model_folder_is_one_line(
    tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import shutil

    broken = tmp_path / "model"
    shutil.copytree(tiny_model, broken)
    weights = next((broken / "unet").glob("*.safetensors"))
    weights.write_bytes(weights.read_bytes()[:1000])
    assert run("generate", PROMPT, "--model", broken, "--out", tmp_path / "a.mp4") == 1
    assert capsys.readouterr().err.count("error: ") == 1


def interruptible() -> None:
    """A shell's background jobs, and what they start, ignore the signal of Ctrl-C."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def test_ctrl_c_leaves_nothing_half_written(tiny_model: Path, tmp_path: Path) -> None:
    out = tmp_path / "a.mp4"
    words = [
        "generate",
        PROMPT,
        "--model",
        str(tiny_model),
        "--device",
        "cpu",
        "--steps",
        "900",
        "--out",
        str(out),
    ]
    command = [sys.executable, "-m", "hummingbird.cli", *words]
    with subprocess.Popen(command, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, text=True,
                          stderr=subprocess.PIPE, stdout=subprocess.PIPE,
                          preexec_fn=interruptible) as process:  # fmt: skip
        assert process.stderr is not None
        for line in process.stderr:
            if "step" in line:
                break
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == cli.INTERRUPTED
    assert "interrupted" in errors
    assert "Traceback" not in errors
    assert not list(tmp_path.iterdir())


def test_a_prompt_outside_the_world_gets_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    cli._mention_world("nano", [PROMPT, "an astronaut on a horse"])
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert "trained on one moving shape" in lines[0]
    assert "'an astronaut on a horse'" in lines[0].split("outside that world")[1]
    assert PROMPT not in lines[0].split("outside that world")[1]
    cli._mention_world("nano", [PROMPT])
    cli._mention_world("some/folder", ["an astronaut on a horse"])
    assert capsys.readouterr().err == ""


def test_doctor(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("doctor", "--json") == 0
    report = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert report["backend"] in ("cpu", "cuda", "rocm", "mps")
    assert report["encoders"][".mp4"] in ("libx264", "libopenh264")
    assert report["packages"]["torch"]
    assert report["memory_bytes"] > 2**30
    assert set(report["embedded_models"]) == set(nano.EMBEDDED_MODELS)
    text = doctor.to_text(report)
    assert run("doctor") == 0
    assert capsys.readouterr().out.splitlines()[1] == text.splitlines()[1]


def test_device_and_dtype() -> None:
    import torch

    cpu = runtime.resolve_device("cpu")
    assert runtime.resolve_dtype("auto", cpu) == torch.float32
    assert runtime.resolve_dtype("auto", torch.device("cuda")) == torch.float16
    assert runtime.resolve_dtype("bfloat16", cpu) == torch.bfloat16
    with pytest.raises(ValueError, match="expected one of auto"):
        runtime.resolve_dtype("half", cpu)


@pytest.mark.skipif(
    not (Path(nano.__file__).parent / "weights" / "nano-teacher" / "model_index.json").is_file(),
    reason="the embedded model is not in this checkout yet",
)
def test_the_embedded_model_draws_what_the_prompt_says(tmp_path: Path) -> None:
    out = tmp_path / "a.mp4"
    assert run("generate", PROMPT, "--device", "cpu", "--out", out) == 0
    clip = read_video(out)
    assert clip.frames.shape == (16, 64, 64, 3)
    background = np.median(clip.frames[:, [0, -1]].reshape(-1, 3), axis=0)
    assert background.max() < 60


def test_evaluate_writes_the_report_that_it_prints(
    tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status = run("evaluate", "--model", tiny_model, "--suite", "moving-shapes", "--num-prompts", 2,
                 "--steps", 1, "--seed", 4, "--device", "cpu", "--to", tmp_path, "--json")  # fmt: skip
    assert status == 0
    answer = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert answer == json.loads((tmp_path / "report.json").read_text())
    assert (tmp_path / "report.html").is_file()
    assert (answer["suite"], answer["num_prompts"], answer["seed"]) == ("moving-shapes", 2, 4)
    assert answer["num_inference_steps"] == 1
    assert set(answer["accuracy"]) == {"shape", "color", "motion", "background", "all"}
