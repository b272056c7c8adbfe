"""Entry points as users start them: help, errors in one line, several processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from accelerate.commands.config.config_args import ClusterConfig, load_config_from_file
from accelerate.utils import DistributedType
from safetensors.torch import load_file

from tests.train.conftest import DEBUG, recipe, train
from train import nano, stage1, teacher
from train.checkpoint import checkpoints
from train.command import run_command
from train.loop import TIMES, Terminated

ROOT = DEBUG.parents[1]


def last_line(capsys: pytest.CaptureFixture[str]) -> str:
    lines = capsys.readouterr().err.strip().splitlines()
    return lines[-1]


@pytest.mark.parametrize("main", [teacher.main, nano.main, stage1.main])
def test_help_says_what_to_type(main: object, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["--help"])  # type: ignore[operator]
    assert stop.value.code == 0
    assert ".yaml" in capsys.readouterr().out


@pytest.mark.parametrize("words", [["vae", "--help"], ["export", "-h"]])
def test_help_of_a_part_lists_its_settings(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        nano.main(words)
    assert stop.value.code == 0
    text = capsys.readouterr().out
    assert f"train/nano.py {words[0]} CONFIG.yaml" in text
    assert "--output" in text or "--loop.output" in text


def test_teacher_help_lists_every_setting(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        teacher.main(["--help"])
    text = capsys.readouterr().out
    for flag in ("--loop.max-steps", "--unet.model-channels", "--diffusion.weighting", "--latents"):
        assert flag in text


@pytest.mark.parametrize(
    ("main", "words"), [(teacher.main, []), (nano.main, []), (nano.main, ["paint"]), (stage1.main, [])]
)
def test_bad_usage_is_status_2(main: object, words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(words)  # type: ignore[operator]
    assert stop.value.code == 2
    assert "usage:" in capsys.readouterr().err


def test_settings_that_cannot_be_used_are_status_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert teacher.main([str(tmp_path / "none.yaml")]) == 2
    assert last_line(capsys).startswith(f"error: {tmp_path}/none.yaml: cannot read it")
    file = tmp_path / "wrong.yaml"
    file.write_text("loop:\n  output: x\n  max_step: 3\nvae: a\ntext: b\nlatents: c\n")
    assert teacher.main([str(file)]) == 2
    assert "unknown name 'loop.max_step'; did you mean 'max_steps'?" in last_line(capsys)
    assert nano.main(["vae", str(DEBUG / "nano_vae.yaml"), "--loop.init-from", "x"]) == 2
    assert "always starts from nothing" in last_line(capsys)


def test_a_missing_part_says_how_to_make_it(
    parts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good = {
        "--vae": parts / "vae/model",
        "--text": parts / "text/model",
        "--latents": parts / "latents.safetensors",
        "--loop.output": tmp_path / "run",
    }
    for flag, part in (("--vae", "vae"), ("--text", "text"), ("--latents", "latents")):
        flags = [str(word) for pair in {**good, flag: tmp_path / "no"}.items() for word in pair]
        assert teacher.main([str(DEBUG / "nano_teacher_spatial.yaml"), *flags]) == 1
        line = last_line(capsys)
        assert line.startswith(f"error: {part}: no file {tmp_path}/no")
        assert f"`python train/nano.py {part} configs/train/nano_{part}.yaml`" in line
    flags = [str(word) for pair in {**good, "--loop.init-from": tmp_path / "no"}.items() for word in pair]
    assert teacher.main([str(DEBUG / "nano_teacher_motion.yaml"), *flags]) == 1
    assert "loop.init_from: no file" in last_line(capsys)
    assert nano.main(["latents", str(DEBUG / "nano_latents.yaml"), "--vae", str(tmp_path / "no")]) == 1
    assert "python train/nano.py vae" in last_line(capsys)
    assert not (tmp_path / "run").exists()


def test_latents_of_another_autoencoder_are_refused(parts: Path, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    other = load_file(parts / "latents.safetensors")
    other["latents"] = other["latents"].repeat(1, 1, 2, 1, 1)
    save_file(other, tmp_path / "other.safetensors")
    flags = ["--latents", str(tmp_path / "other.safetensors")]
    with pytest.raises(ValueError, match="has 4 channels, the autoencoder 2"):
        teacher.build_task(recipe("teacher_spatial", parts, tmp_path / "run", *flags))


def test_ctrl_c_is_one_line_and_status_130(capsys: pytest.CaptureFixture[str]) -> None:
    def stop(words: list[str]) -> None:
        raise KeyboardInterrupt

    assert run_command(stop, []) == 130
    assert last_line(capsys) == "interrupted: the last checkpoint stands; the same command goes on from there"


def test_sigterm_is_one_line_and_status_143(capsys: pytest.CaptureFixture[str]) -> None:
    def stop(words: list[str]) -> None:
        raise Terminated("checkpoint x/step-4 is written")

    assert run_command(stop, []) == 143
    assert last_line(capsys) == "terminated: checkpoint x/step-4 is written"


def test_stage1_help_lists_every_setting(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        stage1.main(["--help"])
    text = capsys.readouterr().out
    for flag in ("--loop.guard.action", "--student.plan", "--distillation.feature-weight", "--teacher"):
        assert flag in text


def test_debug_shows_the_traceback() -> None:
    def fail(words: list[str]) -> None:
        assert words == ["a"]
        raise LookupError("here")

    assert run_command(fail, ["a"]) == 1
    with pytest.raises(LookupError):
        run_command(fail, ["a", "--debug"])


def test_everything_from_nothing_and_a_second_time_nothing(
    parts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`nano.py all` on finished parts only packs; what is missing is made again, equal to what was there."""
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs/debug").symlink_to(parts)
    monkeypatch.chdir(tmp_path)
    trained: list[str] = []
    monkeypatch.setattr(nano, "train_teacher", lambda config: trained.append(config.loop.output))
    monkeypatch.setattr(nano, "run", lambda *_: trained.append("part"))
    assert nano.main(["all", str(DEBUG)]) == 0
    assert trained == []
    assert (parts / "export/model_index.json").exists()


@pytest.mark.parametrize(
    ("name", "processes"), [("1gpu", 1), ("2gpu", 2), ("4gpu", 4), ("cpu2", 2), ("cpu4", 4)]
)
def test_accelerate_reads_our_launch_files(name: str, processes: int) -> None:
    config = load_config_from_file(str(ROOT / "configs/accelerate" / f"{name}.yaml"))
    assert isinstance(config, ClusterConfig)
    assert config.num_processes == processes
    kind = DistributedType.NO if processes == 1 else DistributedType.MULTI_GPU
    assert config.distributed_type == kind
    assert config.mixed_precision == "no"  # the recipe says it


def test_accelerate_reads_our_fsdp_file() -> None:
    config = load_config_from_file(str(ROOT / "configs/accelerate/4gpu_fsdp.yaml"))
    assert isinstance(config, ClusterConfig)
    assert config.distributed_type == DistributedType.FSDP
    assert config.num_processes == 4
    assert config.fsdp_config["fsdp_version"] == 2


def test_accelerate_reads_our_deepspeed_file() -> None:
    config = load_config_from_file(str(ROOT / "configs/accelerate/4gpu_deepspeed.yaml"))
    assert isinstance(config, ClusterConfig)
    assert config.distributed_type == DistributedType.DEEPSPEED
    assert config.num_processes == 4
    assert config.deepspeed_config["zero_stage"] == 2  # whole weights on every GPU


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["vae", "text", "reward_image", "reward_video", "teacher_spatial", "teacher_motion"]
)
def test_two_processes_train_one_network(name: str, parts: Path, tmp_path: Path) -> None:
    if not name.startswith("teacher"):
        words = ["train/nano.py", name, str(DEBUG / f"nano_{name}.yaml"), "--loop.output", str(tmp_path)]
    else:
        words = ["train/teacher.py", str(DEBUG / f"nano_{name}.yaml"), "--loop.output", str(tmp_path)]
        words += ["--vae", str(parts / "vae/model"), "--text", str(parts / "text/model")]
        words += ["--latents", str(parts / "latents.safetensors")]
        if name == "teacher_motion":
            words += ["--loop.init-from", str(parts / "teacher_spatial/model")]
    words += ["--loop.max-steps", "2", "--loop.checkpoint-every", "1"]
    launch = [sys.executable, "-m", "accelerate.commands.launch"]
    launch += ["--config_file", str(ROOT / "configs/accelerate/cpu2.yaml"), "--main_process_port", "0"]
    done = subprocess.run(
        [*launch, *words],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"},
        capture_output=True,
        text=True,
        check=False,
        timeout=280,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert (tmp_path / "model").is_dir()
    checkpoint = tmp_path / "checkpoints/step-2"
    assert {"random_states_0.pkl", "random_states_1.pkl"} <= {p.name for p in checkpoint.iterdir()}
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "loss" in line] == [1, 2]
    assert all(bool(torch.isfinite(t).all()) for t in load_file(checkpoint / "model.safetensors").values())


KILLED_AT_STEP_3 = """
import os, signal, sys
from train import dataset, stage1
KILL_AT = 3 * int(os.environ["WORLD_SIZE"])  # one micro-step per step
batch = dataset.LatentClips.batch
def kill(self, index):
    return batch(self, index) if index < KILL_AT else os.kill(os.getpid(), signal.SIGKILL)
if sys.argv.pop() == "kill":
    dataset.LatentClips.batch = kill
sys.exit(stage1.main(sys.argv[1:]))
"""


def processes(number: int, script: Path, *words: str, fsdp: bool = False) -> subprocess.CompletedProcess[str]:
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--config_file"]
    file = ROOT / f"configs/accelerate/cpu{number}.yaml"
    launch += [str(file), "--main_process_port", "0", str(script), *words]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    if fsdp:  # accelerate itself knows it on accelerators only
        environment |= {"ACCELERATE_USE_FSDP": "true"}
    return subprocess.run(
        launch, cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=280
    )


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_sharded_processes_train_as_others_do_and_resume_bit_equal(parts: Path, tmp_path: Path) -> None:
    """FSDP: the losses of whole weights, and after a kill in the fourth step the bytes of an unbroken run."""
    script = tmp_path / "killed.py"
    script.write_text(KILLED_AT_STEP_3)
    words = [str(DEBUG / "stage1.yaml"), "--teacher", str(parts / "teacher/model"), "--loop.batch-size", "2"]
    words += ["--latents", str(parts / "latents.safetensors"), "--loop.output"]
    whole, broken, plain = tmp_path / "whole", tmp_path / "broken", tmp_path / "plain"
    done = processes(2, script, *words, str(plain), "run")
    assert done.returncode == 0, done.stderr[-3000:]
    done = processes(2, script, *words, str(whole), "run", fsdp=True)
    assert done.returncode == 0, done.stderr[-3000:]
    losses = [
        [
            json.loads(line)["loss"]
            for line in (folder / "metrics.jsonl").read_text().splitlines()
            if '"loss"' in line
        ]
        for folder in (plain, whole)
    ]
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)
    assert processes(2, script, *words, str(broken), "kill", fsdp=True).returncode != 0
    assert checkpoints(broken)[-1].name == "step-2"
    others = processes(4, script, *words, str(broken), "--loop.batch-size", "1", "run", fsdp=True)
    assert "got 4 processes, expected 2, which wrote it" in " ".join(others.stderr.split())
    done = processes(2, script, *words, str(broken), "run", fsdp=True)
    assert done.returncode == 0, done.stderr[-3000:]
    file = "model/unet/diffusion_pytorch_model.safetensors"
    assert (whole / file).read_bytes() == (broken / file).read_bytes()


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_four_processes_that_were_killed_end_bit_equal(parts: Path, tmp_path: Path) -> None:
    """Stage 1, killed without warning in its fourth step: the same weights, averages and figures."""
    script = tmp_path / "killed.py"
    script.write_text(KILLED_AT_STEP_3)
    words = [str(DEBUG / "stage1.yaml"), "--teacher", str(parts / "teacher/model"), "--loop.batch-size", "1"]
    words += ["--latents", str(parts / "latents.safetensors"), "--loop.output"]
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    done = processes(4, script, *words, str(whole), "run")
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads((whole / "environment.json").read_text())["num_processes"] == 4
    assert processes(4, script, *words, str(broken), "kill").returncode != 0
    assert checkpoints(broken)[-1].name == "step-2"
    assert not (broken / "model").exists()
    done = processes(4, script, *words, str(broken), "run")
    assert done.returncode == 0, done.stderr[-3000:]
    for file in ("model/unet/diffusion_pytorch_model.safetensors", "checkpoints/step-4/model.safetensors"):
        assert (whole / file).read_bytes() == (broken / file).read_bytes()
    figures = [
        [
            {name: value for name, value in json.loads(line).items() if name not in TIMES}
            for line in (folder / "metrics.jsonl").read_text().splitlines()
        ]
        for folder in (whole, broken)
    ]
    assert figures[0] == figures[1]
    # One process takes the same batches one after the other: equal but for the order of sums.
    train("stage1", parts, tmp_path / "alone", "--loop.batch-size", "1")
    lines = (tmp_path / "alone/metrics.jsonl").read_text().splitlines()
    alone = [line["loss"] for line in map(json.loads, lines) if "loss" in line]
    assert alone == pytest.approx([line["loss"] for line in figures[0] if "loss" in line], rel=1e-4)
