"""Whose file is it, and does every key fit? Every answer comes from names and shapes alone."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from hummingbird import cli, nano
from hummingbird.checkpoints import CheckpointError, inspect_checkpoint
from hummingbird.checkpoints.architecture import preset_of, text_encoder_config, unet_options, vae_options
from hummingbird.checkpoints.families import BUFFERS, family_of, schedule_buffers
from hummingbird.checkpoints.inspection import infer_layout
from hummingbird.checkpoints.key_map import Recipe, map_keys
from hummingbird.models import UNetSpatioTemporalModel, preset_config
from hummingbird.schedulers import VideoCrafterDDIMScheduler
from tests.checkpoints.files import TEXT_HEADS, student, teacher, text_tower, write
from tests.checkpoints.test_ldm import published_shapes
from tests.golden_files import golden_path, golden_tensors

PRESETS = [
    ("videocrafter2", False, "videocrafter2"),
    ("videocrafter2", True, "t2v-turbo"),
    ("hummingbird-0.9b", False, "hummingbird-0.9b"),
    ("hummingbird-0.9b", True, "hummingbird-0.9b"),
    ("hummingbird-0.7b", False, "hummingbird-0.7b"),
    ("hummingbird-0.7b", True, "hummingbird-0.7b"),
]
PUBLISHED_UNETS = {
    "unet_videocrafter2_1.4B.json": ("videocrafter2", None),
    "unet_t2vturbo_1.4B_timecond256.json": ("videocrafter2", 256),
    "unet_hummingbird_0.9B_stage1.json": ("hummingbird-0.9b", None),
    "unet_hummingbird_0.9B_timecond256.json": ("hummingbird-0.9b", 256),
    "unet_hummingbird_0.7B_stage1.json": ("hummingbird-0.7b", None),
    "unet_hummingbird_0.7B_timecond256.json": ("hummingbird-0.7b", 256),
}


def recipes(shapes: dict[str, tuple[int, ...]]) -> dict[str, Recipe]:
    return {
        key: Recipe(shape=shape, dtype=torch.float16, load=lambda shape=shape: torch.zeros(shape))
        for key, shape in shapes.items()
    }


@pytest.mark.parametrize(("name", "guidance", "family"), PRESETS)
def test_published_networks_are_told_from_their_shapes(name: str, guidance: bool, family: str) -> None:
    with torch.device("meta"):
        unet = UNetSpatioTemporalModel.from_config(preset_config(name, guidance_embedding=guidance))
    shapes = {key: tuple(tensor.shape) for key, tensor in unet.state_dict().items()}
    layout = infer_layout("unet", {"unet": recipes(shapes)}, {})
    assert preset_of(layout.model) == name
    assert (layout.model.config.time_cond_proj_dim is not None) == guidance
    assert family_of(layout.model) == family


@pytest.mark.parametrize("name", PUBLISHED_UNETS)
def test_published_unet_keys_all_fit(name: str) -> None:
    shapes = published_shapes(name)
    layout = infer_layout("unet", {"unet": recipes(shapes)}, {})
    _, report = map_keys(layout.model, layout.sources, recipes(shapes))
    assert (report.problems, report.reshaped) == ("", ())
    assert (preset_of(layout.model), unet_options(shapes)["time_cond_proj_dim"]) == PUBLISHED_UNETS[name]


def test_published_vae_and_text_keys_all_fit() -> None:
    vae = published_shapes("autoencoderkl_first_stage_model.json")
    layout = infer_layout("vae", {"vae": recipes(vae)}, {})
    _, report = map_keys(layout.model, layout.sources, recipes(vae))
    assert (report.problems, len(report.reshaped)) == ("", 8)  # its attention, as linear layers
    assert vae_options(vae)["block_out_channels"] == [128, 256, 512, 512]
    text = published_shapes("openclip_text_cond_stage_model.json")
    config = text_encoder_config(text)
    assert (config.num_hidden_layers, config.num_attention_heads, config.vocab_size) == (23, 16, 49408)
    layout = infer_layout("text_encoder", {"text_encoder": recipes(text)}, {})
    _, report = map_keys(layout.model, layout.sources, recipes(text), ignored=layout.unused)
    assert (report.problems, len(report.unused)) == ("", 14)


@pytest.mark.golden
def test_computed_schedule_is_the_published_one() -> None:
    recorded = golden_tensors("whole_module_pickle/state_dict")
    computed = schedule_buffers(VideoCrafterDDIMScheduler(use_scale=True))
    assert list(computed) == list(BUFFERS)
    for name, recipe in computed.items():
        assert torch.equal(recipe.load().half(), recorded[name]), name


@pytest.mark.golden
@pytest.mark.parametrize(
    ("name", "nesting", "wrapper"),
    [
        ("model.ckpt", "state_dict", ""),
        ("bare.ckpt", None, ""),
        ("deepspeed.pt", "module", "_forward_module."),
        ("model.safetensors", None, ""),
    ],
)
def test_a_whole_checkpoint_however_it_is_nested(
    tmp_path: Path, name: str, nesting: str | None, wrapper: str
) -> None:
    path = write(tmp_path / name, teacher(), nesting, wrapper)
    report = inspect_checkpoint(path, config=TEXT_HEADS)
    assert (report.family, report.kind, report.preset) == ("videocrafter2", "checkpoint", None)
    assert report.components == {
        "unet": sum(value.numel() for key, value in teacher().items() if key.startswith("model.diff")),
        "vae": 367_527,
        "text_encoder": sum(value.numel() for value in text_tower().values()),
    }
    assert (report.dtype, set(report.dtypes.values())) == ("float16", {"float16"})
    assert (report.problems, len(report.reshaped), len(report.unused)) == ("", 8, 14)
    assert report.licence == "unknown"  # other widths than the published ones


@pytest.mark.golden
def test_missing_unexpected_and_mismatched_keys_have_their_full_names(tmp_path: Path) -> None:
    tensors = student()
    del tensors["model.diffusion_model.out.2.bias"]
    tensors["first_stage_model.decoder.stranger"] = torch.zeros(1)
    tensors["stranger"] = torch.zeros(1)
    tensors["cond_stage_model.model.ln_final.bias"] = torch.zeros(5)
    report = inspect_checkpoint(write(tmp_path / "broken.ckpt", tensors), config=TEXT_HEADS)
    assert report.missing == ("model.diffusion_model.out.2.bias",)
    assert report.unexpected == ("first_stage_model.decoder.stranger", "stranger")
    assert report.mismatched == ("cond_stage_model.model.ln_final.bias is (5,), expected (32,)",)
    assert "1 missing: model.diffusion_model.out.2.bias" in report.problems


@pytest.mark.golden
@pytest.mark.parametrize(
    ("name", "family", "kind"),
    [
        ("unet_hb07_tiny/state_dict.safetensors", "hummingbird-0.7b", "unet"),
        ("vae_tiny/state_dict.safetensors", "autoencoder-kl", "vae"),
        ("lora_hb07/lora.safetensors", "t2v-turbo-lora", "lora"),
        ("whole_module_pickle/merged_all_tiny.pt", "hummingbird-0.7b", "checkpoint"),
        ("whole_module_pickle_conv2d/merged_all_tiny.pt", "hummingbird-0.7b", "checkpoint"),
    ],
)
def test_recorded_files(name: str, family: str, kind: str) -> None:
    report = inspect_checkpoint(golden_path(name))
    assert (report.family, report.kind, report.problems) == (family, kind, "")
    assert report.licence == ("gpl-3.0" if "whole" in name else "unknown")
    assert bool(report.stand_ins) == ("whole" in name)


@pytest.mark.golden
def test_a_text_tower_of_unusual_width_says_what_to_give(tmp_path: Path) -> None:
    path = write(tmp_path / "text.ckpt", text_tower())
    report = inspect_checkpoint(path)
    assert report.kind == "text_encoder"
    assert report.problems == "text_encoder.num_attention_heads is not in the file: give it as config"
    assert inspect_checkpoint(path, config=TEXT_HEADS).problems == ""


def test_what_is_of_no_family_is_named(tmp_path: Path, tiny_model: Path) -> None:
    path = tmp_path / "other.safetensors"
    save_file({"layer.weight": torch.zeros(2)}, path)
    with pytest.raises(CheckpointError, match=r"of no known family: got 1 tensors \(layer\.weight"):
        inspect_checkpoint(path)
    with pytest.raises(CheckpointError, match="diffusers folder: give the folder"):
        inspect_checkpoint(next((tiny_model / "text_encoder").glob("*.safetensors")))
    with pytest.raises(CheckpointError, match="no unet/config"):
        inspect_checkpoint(tmp_path)
    with pytest.raises(FileNotFoundError, match="nowhere"):
        inspect_checkpoint(tmp_path / "nowhere.ckpt")


def test_a_text_tower_that_was_cut_is_not_cut_again() -> None:
    """Without its last block the tower looks like a shorter one, whose last block would be dropped."""
    text = published_shapes("openclip_text_cond_stage_model.json")
    cut = {key: shape for key, shape in text.items() if ".resblocks.23." not in key}
    with pytest.raises(ValueError, match="got 23 blocks, expected 24"):
        text_encoder_config(cut)


def test_other_noise_schedules_are_refused(tmp_path: Path) -> None:
    tensors = {**student(), "betas": torch.linspace(0.0001, 0.02, 1000)}
    with pytest.raises(ValueError, match=r"got 1000 betas from 0\.000100 to 0\.020000"):
        inspect_checkpoint(write(tmp_path / "model.ckpt", tensors), config=TEXT_HEADS)


def test_folders(tiny_model: Path, tmp_path: Path) -> None:
    embedded = nano.resolve("nano-teacher")
    assert embedded is not None
    report = inspect_checkpoint(embedded)
    assert report.components == {"unet": 5_948_612, "vae": 681_911, "text_encoder": 105_728}
    assert (report.family, report.licence, report.dtype, report.problems) == (
        "custom", "apache-2.0", "float16", "",
    )  # fmt: skip
    assert inspect_checkpoint(tiny_model).dtype == "float32"


def test_a_folder_with_a_missing_key_says_so(tiny_model: Path, tmp_path: Path) -> None:
    (tmp_path / "unet").mkdir()
    weights = load_file(tiny_model / "unet" / "diffusion_pytorch_model.safetensors")
    del weights["out.2.bias"]
    save_file(weights, tmp_path / "unet" / "diffusion_pytorch_model.safetensors")
    (tmp_path / "unet" / "config.json").write_text((tiny_model / "unet" / "config.json").read_text())
    report = inspect_checkpoint(tmp_path)
    assert report.missing == ("unet/out.2.bias",)
    assert list(report.components) == ["unet"]


def test_shards_are_one_component(tmp_path: Path) -> None:
    from tests.models.tiny import tiny_unet

    unet = tiny_unet()
    unet.save_pretrained(tmp_path / "unet", max_shard_size="1MB")
    assert len(list((tmp_path / "unet").glob("*.safetensors"))) > 1
    report = inspect_checkpoint(tmp_path)
    assert report.components == {"unet": sum(parameter.numel() for parameter in unet.parameters())}
    assert report.problems == ""


@pytest.mark.golden
def test_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path / "model.ckpt", student())
    config = tmp_path / "config.json"
    config.write_text(json.dumps(TEXT_HEADS))
    assert cli.main(["inspect", str(path), "--config", str(config), "--json"]) == 0
    answer = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert answer["family"] == "hummingbird-0.7b"
    assert answer["num_parameters"] == sum(answer["components"].values())
    assert (answer["missing"], answer["unexpected"], answer["problems"]) == ([], [], "")
    assert cli.main(["inspect", str(path), "--config", str(config)]) == 0
    assert "unet              2,298,788 parameters, float16" in capsys.readouterr().out
    assert cli.main(["inspect", str(path)]) == 0
    assert "loads       no: text_encoder.num_attention_heads" in capsys.readouterr().out
    assert cli.main(["inspect", str(tmp_path / "absent.ckpt")]) == 1
