"""To a folder and back: the same numbers, whole or not at all."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from hummingbird import HummingbirdPipeline, cli, nano
from hummingbird.checkpoints import (
    CheckpointError,
    convert_checkpoint,
    inspect_checkpoint,
    text_encoder_from_open_clip,
    unet_from_ldm,
    vae_from_ldm,
)
from hummingbird.checkpoints.architecture import plain_config
from hummingbird.checkpoints.key_map import recipe_of
from hummingbird.checkpoints.tensor_writer import write_safetensors, write_torch_file
from hummingbird.models import UNetSpatioTemporalModel
from hummingbird.schedulers import VideoCrafterDDIMScheduler
from tests.checkpoints.files import TEXT_HEADS, Tensors, student, teacher, text_tower, write
from tests.golden_files import golden_config, golden_path, golden_tensors


def read_back(path: Path) -> Tensors:
    """Read a converted file with the libraries' own readers, at their strictest."""
    if path.suffix == ".safetensors":
        return load_file(path)
    content = torch.load(path, weights_only=True)
    return content.get("state_dict", content)


def assert_same_tensors(ours: Tensors, expected: Tensors) -> None:
    assert ours.keys() == expected.keys()
    for key, tensor in expected.items():
        assert ours[key].dtype == tensor.dtype, key
        assert torch.equal(ours[key], tensor), key


# ------------------------------------------------------------------------------------------------- writers


def many_kinds() -> Tensors:
    generator = torch.Generator().manual_seed(0)
    kinds = {
        f"{dtype}": torch.randn(3, 5, generator=generator).to(dtype)
        for dtype in (torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.bool)
    }
    return {
        "b": torch.arange(3, dtype=torch.int8),
        "scalar": torch.tensor(2.5),
        "none": torch.ones(0, 4),
        **kinds,
    }


def test_written_files_are_read_by_the_libraries(tmp_path: Path) -> None:
    recipes = {key: recipe_of(tensor) for key, tensor in many_kinds().items()}
    write_safetensors(tmp_path / "a.safetensors", recipes, {"made": "here"})
    assert_same_tensors(load_file(tmp_path / "a.safetensors"), many_kinds())
    with safe_open(tmp_path / "a.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt", "made": "here"}
    write_torch_file(tmp_path / "a.ckpt", recipes, entries={"made": "here"})
    for mapped in (False, True):
        content = torch.load(tmp_path / "a.ckpt", weights_only=True, mmap=mapped)
        assert content["made"] == "here"
        assert list(content["state_dict"]) == list(recipes)
        assert_same_tensors(content["state_dict"], many_kinds())
        assert not any(tensor.data_ptr() % 64 for tensor in content["state_dict"].values())


def test_equal_tensors_make_equal_files(tmp_path: Path) -> None:
    recipes = {key: recipe_of(tensor) for key, tensor in many_kinds().items()}
    for name in ("a", "b"):
        write_torch_file(tmp_path / name, recipes)
        write_safetensors(tmp_path / f"{name}s", recipes)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert (tmp_path / "as").read_bytes() == (tmp_path / "bs").read_bytes()


# ------------------------------------------------------------------------------------------------- folders


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A student's checkpoint and the folder made from it."""
    place = tmp_path_factory.mktemp("converted")
    write(place / "model.ckpt", student())
    convert_checkpoint(place / "model.ckpt", place / "folder", config=TEXT_HEADS)
    return place


@pytest.mark.golden
def test_the_folder_holds_what_the_parts_give(converted: Path) -> None:
    pipe = HummingbirdPipeline.from_pretrained(converted / "folder")
    config = golden_config("pipeline_hb07")
    text_config = golden_config("text_encoder_tiny")
    parts = {
        "unet": unet_from_ldm(config["unet_config"], golden_tensors("unet_hb07_tiny/state_dict")),
        "vae": vae_from_ldm(
            {"ddconfig": config["vae_ddconfig"], "embed_dim": config["vae_embed_dim"]},
            golden_tensors("pipeline_hb07/vae_state_dict"),
        ),
        "text_encoder": text_encoder_from_open_clip(text_config, text_tower()),
    }
    for name, part in parts.items():
        assert_same_tensors(getattr(pipe, name).state_dict(), part.state_dict())
        ours, expected = plain_config(getattr(pipe, name)), plain_config(part)
        ours.pop("sample_size", None), expected.pop("sample_size", None)  # no tensor depends on it
        assert ours == expected
    assert pipe.vae.config.scaling_factor == 0.18215
    assert type(pipe.scheduler).__name__ == "LCMScheduler"
    call = {"num_inference_steps": 4, "guidance_scale": 7.5, "fps": 16, "eta": 0.0, "num_frames": 16}
    assert call.items() <= pipe.default_call.items()
    tokens = pipe.tokenizer(text_config["prompts"][1], padding="max_length", return_tensors="pt").input_ids
    assert torch.equal(tokens[0], golden_tensors("text_encoder_tiny/inputs")["tokens"][1])


@pytest.mark.golden
def test_weights_keep_their_type_on_disk_or_get_the_wanted_one(converted: Path, tmp_path: Path) -> None:
    weights = converted / "folder" / "unet" / "diffusion_pytorch_model.safetensors"
    assert {tensor.dtype for tensor in load_file(weights).values()} == {torch.float16}
    convert_checkpoint(converted / "folder", tmp_path / "wide", dtype=torch.float32)
    report = inspect_checkpoint(tmp_path / "wide")
    assert (report.dtype, report.problems) == ("float32", "")


@pytest.mark.golden
def test_a_teacher_gets_the_sampler_of_its_publisher(tmp_path: Path) -> None:
    write(tmp_path / "model.safetensors", teacher())
    report = convert_checkpoint(tmp_path / "model.safetensors", tmp_path / "folder", config=TEXT_HEADS)
    assert report.family == "videocrafter2"
    pipe = HummingbirdPipeline.from_pretrained(tmp_path / "folder")
    assert isinstance(pipe.scheduler, VideoCrafterDDIMScheduler)
    assert pipe.scheduler.config.use_scale
    assert torch.equal(pipe.scheduler.scale_arr, teacher()["scale_arr"])
    expected = {"num_inference_steps": 50, "guidance_scale": 12.0, "fps": 28, "eta": 1.0, "height": 320}
    assert expected.items() <= pipe.default_call.items()


@pytest.mark.golden
@pytest.mark.parametrize("suffix", [".ckpt", ".safetensors"])
@pytest.mark.parametrize("make", [student, teacher])
def test_there_and_back_is_bit_equal(tmp_path: Path, make: Any, suffix: str) -> None:
    path = write(tmp_path / f"model{suffix}", make())
    convert_checkpoint(path, tmp_path / "folder", config=TEXT_HEADS)
    report = convert_checkpoint(tmp_path / "folder", tmp_path / f"back{suffix}")
    assert report.notes == ()
    assert_same_tensors(read_back(tmp_path / f"back{suffix}"), make())
    again = inspect_checkpoint(tmp_path / f"back{suffix}")  # what no shape tells travels with the file
    assert again.problems == ""


@pytest.mark.golden
@torch.no_grad()
@pytest.mark.parametrize("name", ["whole_module_pickle", "whole_module_pickle_conv2d"])
def test_recorded_whole_modules(tmp_path: Path, name: str) -> None:
    """Nothing is given but the file: heads come from its attributes, rewritten convolutions from names."""
    report = convert_checkpoint(golden_path(f"{name}/merged_all_tiny.pt"), tmp_path / "folder")
    assert report.source.licence == "gpl-3.0"
    assert (tmp_path / "folder" / "README.md").read_text().startswith("---\nlicense: gpl-3.0\n")
    inputs, outputs = golden_tensors(f"{name}/inputs"), golden_tensors(f"{name}/outputs")
    pipe = HummingbirdPipeline.from_pretrained(tmp_path / "folder")
    noise = pipe.unet(
        inputs["x"],
        inputs["timesteps"],
        inputs["context"],
        fps=golden_config(name)["case"]["fps"],
        timestep_cond=inputs["timestep_cond"],
        return_dict=False,
    )[0]
    tolerance = golden_config(name)["suggested_tolerance"]
    torch.testing.assert_close(noise, outputs["unet"], **tolerance)
    torch.testing.assert_close(pipe.vae.decode(inputs["z"]).sample, outputs["vae_decode"], **tolerance)
    assert pipe.tokenizer is None  # its 600 tokens are nobody's
    hidden = pipe.text_encoder(inputs["tokens"])[0]
    torch.testing.assert_close(hidden, outputs["text_penultimate"], **tolerance)
    for file in ("back.ckpt", "back.safetensors"):
        convert_checkpoint(tmp_path / "folder", tmp_path / file)
        assert_same_tensors(read_back(tmp_path / file), golden_tensors(f"{name}/state_dict"))
    convert_checkpoint(golden_path(f"{name}/merged_all_tiny.pt"), tmp_path / "direct.ckpt")
    assert_same_tensors(read_back(tmp_path / "direct.ckpt"), golden_tensors(f"{name}/state_dict"))


def test_our_own_models_survive_the_original_layout(tmp_path: Path) -> None:
    """Options that the original never had, another sampler, other call arguments: all travel in the file."""
    folder = nano.resolve("nano")
    assert folder is not None
    report = convert_checkpoint(folder, tmp_path / "nano.ckpt")
    assert len(report.notes) == 3  # computed schedule, zeros for what our text encoder lacks, no tokenizer
    convert_checkpoint(tmp_path / "nano.ckpt", tmp_path / "again", base=folder)
    first, again = (HummingbirdPipeline.from_pretrained(where) for where in (folder, tmp_path / "again"))
    for name in ("unet", "vae", "text_encoder"):
        assert_same_tensors(getattr(again, name).state_dict(), getattr(first, name).state_dict())
    assert first.default_call == again.default_call
    prompt = "a red circle moving right on a black background"
    call: dict[str, Any] = {"num_frames": 2, "num_inference_steps": 2, "output_type": "pt"}
    videos = [
        pipe(prompt, generator=torch.Generator().manual_seed(0), **call).frames for pipe in (first, again)
    ]
    assert torch.equal(*videos)


@pytest.mark.golden
def test_a_bare_network_is_a_part_until_a_base_completes_it(converted: Path, tmp_path: Path) -> None:
    bare = golden_path("unet_hb07_tiny/state_dict.safetensors")
    report = convert_checkpoint(bare, tmp_path / "part")
    assert "has no vae and no text_encoder: give a base for a whole pipeline" in report.notes
    assert not (tmp_path / "part" / "model_index.json").exists()
    unet = UNetSpatioTemporalModel.from_pretrained(tmp_path / "part", subfolder="unet")
    assert sum(parameter.numel() for parameter in unet.parameters()) == 2_298_788
    convert_checkpoint(tmp_path / "part", tmp_path / "part.safetensors")
    assert_same_tensors(load_file(tmp_path / "part.safetensors"), golden_tensors("unet_hb07_tiny/state_dict"))
    report = convert_checkpoint(bare, tmp_path / "whole", base=converted / "folder")
    assert "vae and text_encoder from folder" in report.notes  # no local path: the card repeats it
    with pytest.raises(ValueError, match="text tokens are 64 wide, expected 32 as the U-Net attends to"):
        convert_checkpoint(bare, tmp_path / "wrong", base=nano.resolve("nano"))
    pipe = HummingbirdPipeline.from_pretrained(tmp_path / "whole")
    assert pipe.tokenizer is not None


# ------------------------------------------------------------------------------------------ whole or absent


@pytest.mark.golden
def test_incomplete_files_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    tensors = student()
    del tensors["first_stage_model.post_quant_conv.bias"]
    write(tmp_path / "model.ckpt", tensors)
    with pytest.raises(CheckpointError, match=r"1 missing: first_stage_model\.post_quant_conv\.bias"):
        convert_checkpoint(tmp_path / "model.ckpt", tmp_path / "folder", config=TEXT_HEADS)
    assert [entry.name for entry in tmp_path.iterdir()] == ["model.ckpt"]


@pytest.mark.golden
@pytest.mark.parametrize("target", ["folder", "back.ckpt", "back.safetensors"])
def test_an_interruption_leaves_nothing(converted: Path, tmp_path: Path, target: str) -> None:
    def interrupt(written: int, total: int) -> None:
        if written > total // 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        convert_checkpoint(converted / "folder", tmp_path / target, progress=interrupt)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.golden
def test_nothing_is_overwritten(converted: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    convert_checkpoint(converted / "folder", tmp_path / "mine")  # empty: taken
    before = sorted(path.name for path in (tmp_path / "mine").iterdir())
    with pytest.raises(FileExistsError, match="mine exists already"):
        convert_checkpoint(converted / "folder", tmp_path / "mine")
    with pytest.raises(FileExistsError, match=r"model\.ckpt exists already"):
        convert_checkpoint(converted / "folder", converted / "model.ckpt")
    assert sorted(path.name for path in (tmp_path / "mine").iterdir()) == before
    assert oct((tmp_path / "mine").stat().st_mode & 0o777) == oct(
        (converted / "folder").stat().st_mode & 0o777
    )


@pytest.mark.golden
def test_command(converted: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["convert", converted / "folder", "--to", tmp_path / "new" / "model.ckpt", "--json"]
    assert cli.main([str(word) for word in words]) == 0
    printed = capsys.readouterr()
    answer = json.loads(printed.out.splitlines()[-1])
    assert answer["to"] == str(tmp_path / "new" / "model.ckpt")
    assert answer["components"]["unet"] == 2_298_788
    assert printed.err.count("write model.ckpt: ") >= 5  # a line at every tenth, as nobody watches
    assert cli.main([str(word) for word in words]) == 1
    assert "exists already" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="2"):
        cli.main(["convert", str(converted / "folder")])


# ----------------------------------------------------------------------------------------------- full size


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_full_size_to_a_folder_and_back_in_bounded_memory(tmp_path: Path) -> None:
    """Random weights under every key of the published VideoCrafter2 file, in float16."""
    from benchmarks.conversion import run_step, write_random_checkpoint

    num_parameters, num_keys = write_random_checkpoint(tmp_path / "model.ckpt")
    assert (num_parameters, num_keys) == (1_850_970_924, 2039)
    for source, to in (("model.ckpt", "folder"), ("folder", "back.ckpt")):
        step = run_step("convert", tmp_path / source, tmp_path / to)
        assert step["size_bytes"] >= 2 * num_parameters
        assert step["peak_bytes"] <= step["size_bytes"] + 10**9
    first, again = (
        torch.load(tmp_path / name, weights_only=True, mmap=True) for name in ("model.ckpt", "back.ckpt")
    )
    assert list(again) == ["state_dict"]  # nothing has to travel with a published network
    assert_same_tensors(again["state_dict"], first["state_dict"])
