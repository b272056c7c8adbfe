"""Every debug recipe: trained, killed, resumed; what it writes; what it must leave alone."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from hummingbird import HummingbirdPipeline
from hummingbird.config import load_config
from hummingbird.nano import world
from tests.train.conftest import DEBUG, RECIPES, STAGES, recipe, train
from train import dataset, nano
from train.checkpoint import checkpoints
from train.reward_task import MovingShapesPairs
from train.stage1 import Stage1Config
from train.stage2 import Stage2Config
from train.teacher import build_task

ROOT = DEBUG.parents[1]


def model_files(run: Path) -> dict[str, bytes]:
    files = sorted((run / "model").rglob("*"))
    return {str(path.relative_to(run)): path.read_bytes() for path in files if path.is_file()}


@pytest.fixture
def interrupted_at_step_3(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """All data raises Ctrl-C where the fourth batch is wanted."""
    kinds = (dataset.MovingShapesFrames, dataset.MovingShapesCaptions, dataset.LatentClips, MovingShapesPairs)
    for cls in kinds:
        batch = cls.batch

        def stop(self: object, index: int, batch: object = batch) -> object:
            if index == 3:
                raise KeyboardInterrupt
            return batch(self, index)  # type: ignore[operator]

        monkeypatch.setattr(cls, "batch", stop)
    return monkeypatch


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_that_was_interrupted_ends_bit_equal(
    name: str, parts: Path, tmp_path: Path, interrupted_at_step_3: pytest.MonkeyPatch
) -> None:
    with pytest.raises(KeyboardInterrupt):
        train(name, parts, tmp_path)
    assert [folder.name for folder in checkpoints(tmp_path)] == ["step-2"]
    assert not (tmp_path / "model").exists()
    interrupted_at_step_3.undo()
    train(name, parts, tmp_path)
    whole, resumed = model_files(parts / name), model_files(tmp_path)
    assert whole.keys() == resumed.keys()
    assert any(file.endswith(".safetensors") for file in whole)
    different = [file for file in whole if whole[file] != resumed[file]]
    assert different == []
    # What the next step would have started from is equal too, the averages included.
    for file in ("model.safetensors", "optimizer.bin", "custom_checkpoint_1.pkl"):
        states = [load_state(run / "checkpoints/step-4" / file) for run in (parts / name, tmp_path)]
        assert len(states[0]) == len(states[1]) > 0
        assert all(torch.equal(a, b) for a, b in zip(*states, strict=True)), file


def load_state(path: Path) -> list[Tensor]:
    if path.suffix == ".safetensors":
        return [tensor for _, tensor in sorted(load_file(path).items())]
    found: list[Tensor] = []

    def collect(value: object) -> None:
        if isinstance(value, Tensor):
            found.append(value)
        elif isinstance(value, dict):
            for key in value:
                collect(value[key])
        elif isinstance(value, (list, tuple)):
            for item in value:
                collect(item)

    collect(torch.load(path, weights_only=True))
    return found


def test_a_killed_process_is_resumed_bit_equal(parts: Path, tmp_path: Path) -> None:
    """No exception, no clean-up: the operating system ends the process in the middle of step 4."""
    script = (
        "import os, signal, sys\n"
        "from train import dataset, nano\n"
        "batch = dataset.MovingShapesCaptions.batch\n"
        "def kill(self, index):\n"
        "    return batch(self, index) if index < 3 else os.kill(os.getpid(), signal.SIGKILL)\n"
        "dataset.MovingShapesCaptions.batch = kill\n"
        "nano.main(sys.argv[1:])\n"
    )
    words = ["text", str(DEBUG / "nano_text.yaml"), "--loop.output", str(tmp_path)]
    done = subprocess.run(
        [sys.executable, "-c", script, *words],
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": str(torch.get_num_threads())},
        capture_output=True,
        check=False,
        timeout=240,
    )
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()[-2000:]
    assert [folder.name for folder in checkpoints(tmp_path)] == ["step-2"]
    train("text", parts, tmp_path)
    assert model_files(tmp_path) == model_files(parts / "text")
    steps = [json.loads(line)["step"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert steps == [1, 2, 3, 4, 4]


@pytest.mark.parametrize("name", RECIPES)
def test_run_folder(name: str, parts: Path) -> None:
    folder = parts / name
    config = load_config(RECIPES[name][0], folder / "config.yaml")
    assert config.loop.max_steps == 4
    assert Path(config.loop.output) == folder
    assert json.loads((folder / "environment.json").read_text())["packages"]["torch"]
    assert [path.name for path in checkpoints(folder)] == ["step-2", "step-4"]
    samples = ["reference", "step-2", "step-4"] if name.startswith("stage") else ["step-4"]
    assert sorted(path.name for path in (folder / "samples").iterdir()) == samples
    assert any((folder / "samples/step-4").iterdir())
    assert not list(folder.rglob("*.part"))
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "loss" in line] == [1, 2, 3, 4]


def test_every_debug_recipe_is_a_twin_of_one_in_train_and_is_run_here() -> None:
    twins = {path.name for path in DEBUG.glob("nano_*.yaml")} | {"nano_stage1.yaml", "nano_stage2.yaml"}
    assert (DEBUG / "stage1.yaml").is_file()
    assert (DEBUG / "stage2.yaml").is_file()
    assert twins == {path.name for path in (ROOT / "configs/train").glob("nano_*.yaml")}
    assert twins == {f"nano_{name}.yaml" for name in (*RECIPES, "latents", "export")}
    for name in RECIPES:
        load_config(RECIPES[name][0], ROOT / "configs/train" / f"nano_{name}.yaml")
    for path in (ROOT / "configs/train").glob("stage1_*.yaml"):
        load_config(Stage1Config, path)
    for path in (*(ROOT / "configs/train").glob("stage2_*.yaml"), ROOT / "configs/train/guard_demo.yaml"):
        load_config(Stage2Config, path)


def test_the_teacher_is_a_pipeline_with_its_call_and_videos(parts: Path) -> None:
    samples = parts / "teacher/samples/step-4"
    assert {path.name for path in samples.iterdir()} == {
        "figures.json",
        "gate.json",
        "sample-0.mp4",
        "samples.png",
    }
    gate = json.loads((samples / "gate.json").read_text())
    assert set(gate) == {"gate_mse", *(f"swap_{name}" for name in world.ATTRIBUTES)}
    pipe = HummingbirdPipeline.from_pretrained(parts / "teacher/model")
    pipe.set_progress_bar_config(disable=True)
    assert pipe.default_call["num_inference_steps"] == 50
    assert pipe.scheduler.config.prediction_type == "v_prediction"
    assert pipe.scheduler.config.rescale_betas_zero_snr
    prompt = world.evaluation_prompts(1)[0].prompt
    noise = torch.Generator().manual_seed(0)
    video = pipe(prompt, num_inference_steps=2, generator=noise, output_type="np").frames
    assert video.shape == (1, 16, 64, 64, 3)
    assert video.std() > 0.0


def test_the_exported_model_is_half_as_large_and_nearly_the_same(parts: Path, tmp_path: Path) -> None:
    nano.export(nano.ExportConfig(model=str(parts / "teacher/model"), output=str(tmp_path / "nano")))
    file = "unet/diffusion_pytorch_model.safetensors"
    full, half = load_file(parts / "teacher/model" / file), load_file(tmp_path / "nano" / file)
    assert {tensor.dtype for tensor in half.values()} == {torch.float16}
    for name, tensor in full.items():
        torch.testing.assert_close(half[name].float(), tensor, atol=1e-6, rtol=1e-3)
    assert HummingbirdPipeline.from_pretrained(tmp_path / "nano").unet.dtype == torch.float32
    assert not [path for path in (tmp_path / "nano").rglob("*.json") if str(parts) in path.read_text()]


def tensors(folder: Path) -> dict[str, Tensor]:
    return load_file(next(folder.glob("*.safetensors")))


@pytest.mark.parametrize("stage", STAGES)
def test_training_leaves_autoencoder_and_text_tower_alone(stage: str, parts: Path) -> None:
    for trained, copied in (("vae/model", "vae"), ("text/model/text_encoder", "text_encoder")):
        before, after = tensors(parts / trained), tensors(parts / stage / "model" / copied)
        assert before.keys() == after.keys()
        assert all(torch.equal(before[name], after[name]) for name in before)


def is_temporal(name: str, network: torch.nn.Module) -> bool:
    parents = [network.get_submodule(name.rsplit(".", depth)[0]) for depth in range(1, name.count(".") + 1)]
    return any(type(m).__name__ in ("TemporalConvBlock", "TemporalTransformer") for m in parents)


def test_the_spatial_stage_neither_runs_nor_changes_layers_over_frames(parts: Path, tmp_path: Path) -> None:
    task, data = build_task(recipe("teacher_spatial", parts, tmp_path))
    network = task.network
    assert not network.temporal_layers_enabled
    start = network.state_dict()
    end = tensors(parts / "teacher_spatial/model/unet")
    temporal = {name for name in start if is_temporal(name, network)}
    assert 20 < len(temporal) < len(start)
    assert {name for name, p in network.named_parameters() if not p.requires_grad} == temporal
    changed = {name for name in start if not torch.equal(start[name], end[name])}
    assert not changed & temporal
    assert len(changed) > 0.8 * (len(start) - len(temporal))
    losses = []
    for poison in (False, True):
        if poison:
            for name in temporal:
                start[name].fill_(float("nan"))
        batch_losses = task.losses(data.batch(0), torch.Generator().manual_seed(0))
        losses.append(float(batch_losses["loss"].detach()))
    assert losses[0] == losses[1]


def test_later_stages_start_from_the_one_before_and_train_every_layer(parts: Path, tmp_path: Path) -> None:
    task, data = build_task(recipe("teacher_motion", parts, tmp_path))
    before = tensors(parts / "teacher_spatial/model/unet")
    start = {name: value.clone() for name, value in task.network.state_dict().items()}
    assert all(torch.equal(start[name], before[name]) for name in before)
    assert task.network.temporal_layers_enabled
    task.losses(data.batch(0), torch.Generator().manual_seed(0))["loss"].backward()
    unused = [name for name, p in task.network.named_parameters() if p.grad is None]
    assert unused == []  # a distributed run would wait for them
    after = tensors(parts / "teacher_motion/model/unet")
    changed = {name for name in start if not torch.equal(start[name], after[name])}
    assert any(is_temporal(name, task.network) for name in changed)


def test_losses_draw_from_their_generator_alone(parts: Path, tmp_path: Path) -> None:
    task, data = build_task(recipe("teacher", parts, tmp_path))
    batch = data.batch(0)
    first = task.losses(batch, torch.Generator().manual_seed(5))["loss"]
    torch.rand(7)
    assert torch.equal(first, task.losses(batch, torch.Generator().manual_seed(5))["loss"])
    assert not torch.equal(first, task.losses(batch, torch.Generator().manual_seed(6))["loss"])


def test_the_caption_swap_sees_a_network_that_reads_and_one_that_does_not(
    parts: Path, tmp_path: Path
) -> None:
    task, _ = build_task(recipe("teacher", parts, tmp_path))

    class Blind(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(1))

        def forward(self, sample: Tensor, *_: object, **__: object) -> tuple[Tensor]:
            return (0.5 * sample,)

    figures = task.caption_swap(Blind(), task.gate_batch)
    assert [figures[f"swap_{name}"] for name in world.ATTRIBUTES] == [0.0] * 4
    trained = task.network
    reading = task.caption_swap(trained, task.gate_batch)
    assert task.network is trained
    assert any(reading[f"swap_{name}"] != 0.0 for name in world.ATTRIBUTES)
    assert reading == task.caption_swap(trained, task.gate_batch)
