"""Low-rank updates without names: order, merging, and the base weights that no file holds."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from hummingbird import cli
from hummingbird.checkpoints import convert_checkpoint, inspect_checkpoint
from hummingbird.checkpoints.key_map import Recipe, recipe_of
from hummingbird.checkpoints.lora import LoraError, guidance_width, merge, missing_projection, read_lora
from hummingbird.models import UNetSpatioTemporalModel, preset_config
from tests.checkpoints.files import golden_list, student, teacher, write
from tests.golden_files import FOLDERS, golden_config, golden_path, golden_tensors

GOLDEN = "lora_hb07"
PUBLISHED = {"videocrafter2": "1.4B", "hummingbird-0.9b": "0.9B", "hummingbird-0.7b": "0.7B"}


@pytest.mark.parametrize("preset", PUBLISHED)
def test_order_and_shapes_are_those_of_a_real_injection(preset: str) -> None:
    path = FOLDERS[1].parent / "keys" / f"lora_r64_{PUBLISHED[preset]}.json"
    if not path.is_file():
        pytest.skip("the lists of the published networks are in ../shared, which is absent")
    entries = json.loads(path.read_text())["entries"]
    tensors = [
        Recipe(shape=tuple(entry[side]), dtype=torch.float32, load=lambda: torch.empty(0))
        for entry in entries
        for side in ("up", "down")
    ]
    with torch.device("meta"):
        with_projection = UNetSpatioTemporalModel.from_config(preset_config(preset, guidance_embedding=True))
        without = UNetSpatioTemporalModel.from_config(preset_config(preset))
    assert list(read_lora(with_projection, tensors)) == [entry["module"] for entry in entries]
    assert guidance_width(with_projection, tensors) == guidance_width(without, tensors) == 256


@pytest.mark.golden
@torch.no_grad()
def test_merged_as_recorded(tmp_path: Path) -> None:
    torch.save(golden_list(), tmp_path / "unet_lora.pt")
    base = golden_path("unet_hb07_tiny/state_dict.safetensors")
    report = inspect_checkpoint(tmp_path / "unet_lora.pt")
    assert report.components == {"unet_lora": sum(tensor.numel() for tensor in golden_list())}
    assert "332 pairs of rank 4" in report.notes[0]

    convert_checkpoint(tmp_path / "unet_lora.pt", tmp_path / "merged", base=base, dtype=torch.float32)
    merged = load_file(tmp_path / "merged" / "unet" / "diffusion_pytorch_model.safetensors")
    recorded = golden_tensors(f"{GOLDEN}/outputs")
    names = [key.removeprefix("merged.") for key in recorded if key.startswith("merged.")]
    assert len(names) > 5
    for name in names:
        torch.testing.assert_close(merged[name], recorded[f"merged.{name}"], rtol=1e-5, atol=1e-6)

    unet = UNetSpatioTemporalModel.from_pretrained(tmp_path / "merged", subfolder="unet")
    inputs = golden_tensors("unet_hb07_tiny/inputs")
    arguments = ("case0.x", "case0.timesteps", "case0.context")
    output = unet(
        *(inputs[name] for name in arguments),
        fps=inputs["case0.fps"],
        timestep_cond=inputs["case0.timestep_cond"],
        return_dict=False,
    )[0]
    tolerance = golden_config(GOLDEN)["suggested_tolerance"]
    torch.testing.assert_close(output, recorded["case0.output_merged"], **tolerance)
    unmerged = golden_tensors("unet_hb07_tiny/outputs")["case0.output"]
    assert (output - unmerged).abs().max() > 0.1  # the tolerance tells merged from unmerged


def test_the_sum_is_formed_in_float32() -> None:
    """In float16 an update of half a step of the base would be lost or doubled."""
    base = torch.full((4, 4), 1.0, dtype=torch.float16)
    up, down = torch.full((4, 2), 0.01), torch.full((2, 4), 0.03)
    parts = (recipe_of(base), recipe_of(up), recipe_of(down))
    expected = 1 + up @ down
    assert torch.equal(merge(*parts, dtype=torch.float32).load(), expected)
    assert torch.equal(merge(*parts).load(), expected.half())


def test_convolutions_are_merged_as_their_composition() -> None:
    generator = torch.Generator().manual_seed(0)
    up, down = torch.randn(5, 2, 1, 1, generator=generator), torch.randn(2, 3, 3, 3, generator=generator)
    base = torch.randn(5, 3, 3, 3, generator=generator)
    x = torch.randn(1, 3, 6, 6, generator=generator)
    apart = torch.conv2d(x, base) + torch.conv2d(torch.conv2d(x, down), up)
    weight = merge(recipe_of(base), recipe_of(up), recipe_of(down)).load()
    torch.testing.assert_close(torch.conv2d(x, weight), apart, rtol=1e-4, atol=1e-4)


@pytest.mark.golden
def test_a_list_of_another_network_is_refused() -> None:
    with torch.device("meta"):
        unet = UNetSpatioTemporalModel.from_config(preset_config("hummingbird-0.7b", guidance_embedding=True))
    tensors = [recipe_of(tensor) for tensor in golden_list()]
    with pytest.raises(LoraError, match="got 664 tensors, expected 666"):
        read_lora(unet, tensors)
    with pytest.raises(
        LoraError, match=r"tensors 0 and 1 are \(128, 4\) and \(4, 32\), expected \(1280, 4\)"
    ):
        read_lora(unet, [*tensors, *tensors[:2]])


def test_the_missing_projection_is_seeded_or_zero() -> None:
    drawn = missing_projection((320, 256), torch.float32, "random", 3).load()
    assert torch.equal(drawn, missing_projection((320, 256), torch.float32, "random", 3).load())
    assert not torch.equal(drawn, missing_projection((320, 256), torch.float32, "random", 4).load())
    usual = torch.nn.Linear(256, 320, bias=False).weight
    assert drawn.abs().max() <= 1 / 16
    assert drawn.std().item() == pytest.approx(usual.std().item(), rel=0.02)
    assert not missing_projection((320, 256), torch.float32, "zeros", 0).load().any()


@pytest.mark.golden
def test_a_teacher_becomes_a_student(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Base without guidance projection: the command says what stands in for it, and the sampler changes."""
    bare = {key: value for key, value in student().items() if "time_cond_proj" not in key}
    write(tmp_path / "base.ckpt", bare)
    torch.save(golden_list(), tmp_path / "unet_lora.pt")
    config = tmp_path / "config.json"
    config.write_text('{"text_encoder": {"num_attention_heads": 4}}')
    words = ["convert", tmp_path / "unet_lora.pt", "--base", tmp_path / "base.ckpt", "--config", config]
    assert cli.main([str(word) for word in [*words, "--to", tmp_path / "a", "--seed", 5, "--json"]]) == 0
    printed = capsys.readouterr()
    assert "note: base weights of time_cond_proj are in neither file: drawn with seed 5" in printed.err
    answer = json.loads(printed.out.splitlines()[-1])
    assert (answer["source"]["family"], answer["family"]) == ("t2v-turbo-lora", "hummingbird-0.7b")
    assert "drawn with seed 5" in (tmp_path / "a" / "README.md").read_text()
    index = json.loads((tmp_path / "a" / "model_index.json").read_text())
    assert index["scheduler"] == ["diffusers", "LCMScheduler"]
    assert index["default_call"]["num_inference_steps"] == 4

    up, down = golden_list()[8:10]
    weight = "unet/diffusion_pytorch_model.safetensors", "time_cond_proj.weight"
    assert (
        cli.main([str(word) for word in [*words, "--to", tmp_path / "b", "--time-cond-proj", "zeros"]]) == 0
    )
    alone = load_file(tmp_path / "b" / weight[0])[weight[1]]
    assert torch.equal(alone, (up.float() @ down.float()).half())
    drawn = load_file(tmp_path / "a" / weight[0])[weight[1]]
    assert (drawn - alone).abs().max() > 0.05


@pytest.mark.golden
def test_updates_alone_or_on_a_wrong_base_are_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save(golden_list(), tmp_path / "unet_lora.pt")
    write(tmp_path / "base.safetensors", teacher())
    words = ["convert", str(tmp_path / "unet_lora.pt"), "--to", str(tmp_path / "out")]
    assert cli.main(words) == 1
    assert "got none as base, expected the VideoCrafter2 file" in capsys.readouterr().err
    (tmp_path / "config.json").write_text('{"text_encoder": {"num_attention_heads": 4}}')
    more = ["--base", str(tmp_path / "base.safetensors"), "--config", str(tmp_path / "config.json")]
    assert cli.main(words + more) == 1
    assert "the list belongs to another network" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
