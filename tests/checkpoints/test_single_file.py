"""One file to a pipeline in memory, held against what the original code computed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers.schedulers import scheduling_lcm

from hummingbird import HummingbirdPipeline
from hummingbird.checkpoints import CheckpointError, convert_checkpoint
from tests.checkpoints.files import TEXT_HEADS, golden_list, student, teacher, write
from tests.golden_files import golden_config, golden_path, golden_tensors


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("single") / "model.ckpt", student())


@pytest.mark.golden
@torch.no_grad()
def test_recorded_pipeline(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The few-step trace of the original pipeline: same noise, same latents, same video."""
    pipe = HummingbirdPipeline.from_single_file(model, config=TEXT_HEADS)
    pipe.set_progress_bar_config(disable=True)
    config = golden_config("pipeline_hb07")
    inputs, outputs = golden_tensors("pipeline_hb07/inputs"), golden_tensors("pipeline_hb07/outputs")
    noise = iter(inputs["noise"])
    monkeypatch.setattr(scheduling_lcm, "randn_tensor", lambda *_, **__: next(noise))
    latents = pipe(
        prompt_embeds=inputs["prompt_embeds"],
        latents=inputs["latents"],
        fps=config["fps"],
        output_type="latent",
    ).frames  # steps and guidance scale are the family's own
    torch.testing.assert_close(latents, outputs["final_latents"], rtol=1e-4, atol=5e-4)
    torch.testing.assert_close(pipe.decode_latents(latents), outputs["video"], rtol=1e-4, atol=1e-4)


@pytest.mark.golden
@torch.no_grad()
def test_recorded_text(model: Path) -> None:
    pipe = HummingbirdPipeline.from_single_file(model, config=TEXT_HEADS)
    prompts = golden_config("text_encoder_tiny")["prompts"]
    embeds, _ = pipe.encode_prompt(prompts, do_classifier_free_guidance=False)
    expected = golden_tensors("text_encoder_tiny/outputs")["penultimate"]
    torch.testing.assert_close(embeds, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.golden
@torch.no_grad()
@pytest.mark.parametrize("name", ["whole_module_pickle", "whole_module_pickle_conv2d"])
def test_recorded_whole_modules(name: str) -> None:
    pipe = HummingbirdPipeline.from_single_file(golden_path(f"{name}/merged_all_tiny.pt"))
    inputs, outputs = golden_tensors(f"{name}/inputs"), golden_tensors(f"{name}/outputs")
    tolerance = golden_config(name)["suggested_tolerance"]
    conditions = {"fps": golden_config(name)["case"]["fps"], "timestep_cond": inputs["timestep_cond"]}
    noise = pipe.unet(inputs["x"], inputs["timesteps"], inputs["context"], **conditions, return_dict=False)[0]
    torch.testing.assert_close(noise, outputs["unet"], **tolerance)
    torch.testing.assert_close(pipe.vae.decode(inputs["z"]).sample, outputs["vae_decode"], **tolerance)
    hidden = pipe.text_encoder(inputs["tokens"])[0]
    torch.testing.assert_close(hidden, outputs["text_penultimate"], **tolerance)


@pytest.mark.golden
def test_the_same_video_as_through_a_folder(model: Path, tmp_path: Path) -> None:
    convert_checkpoint(model, tmp_path / "folder", config=TEXT_HEADS)
    videos = []
    for pipe in (
        HummingbirdPipeline.from_single_file(model, config=TEXT_HEADS),
        HummingbirdPipeline.from_pretrained(tmp_path / "folder"),
    ):
        pipe.set_progress_bar_config(disable=True)
        noise = torch.Generator().manual_seed(0)
        call = {"num_frames": 2, "height": 64, "width": 64, "num_inference_steps": 2, "output_type": "np"}
        videos.append(pipe("a cat", generator=noise, **call).frames)
    assert videos[0].shape == (1, 2, 64, 64, 3)
    assert np.array_equal(*videos)


@pytest.mark.golden
def test_types(model: Path) -> None:
    wide = HummingbirdPipeline.from_single_file(model, config=TEXT_HEADS)
    half = HummingbirdPipeline.from_single_file(model, config=TEXT_HEADS, torch_dtype=torch.float16)
    for name in ("unet", "vae", "text_encoder"):
        assert {parameter.dtype for parameter in getattr(wide, name).parameters()} == {torch.float32}
        assert {parameter.dtype for parameter in getattr(half, name).parameters()} == {torch.float16}
        assert not getattr(wide, name).training
        assert not any(tensor.is_meta for tensor in getattr(wide, name).state_dict().values())


@pytest.mark.golden
def test_updates_on_a_base(model: Path, tmp_path: Path) -> None:
    torch.save(golden_list(), tmp_path / "unet_lora.pt")
    pipe = HummingbirdPipeline.from_single_file(tmp_path / "unet_lora.pt", base=model, config=TEXT_HEADS)
    recorded = golden_tensors("lora_hb07/outputs")
    torch.testing.assert_close(
        pipe.unet.state_dict()["out.2.weight"], recorded["merged.out.2.weight"], rtol=1e-5, atol=1e-6
    )
    assert pipe.tokenizer is not None


@pytest.mark.golden
def test_what_cannot_be_a_pipeline_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match="has no vae and no text_encoder: give a file or folder that has them"
    ):
        HummingbirdPipeline.from_single_file(golden_path("unet_hb07_tiny/state_dict.safetensors"))
    tensors = teacher()
    del tensors["model.diffusion_model.time_embed.0.bias"]
    path = write(tmp_path / "model.safetensors", tensors)
    with pytest.raises(CheckpointError, match=r"1 missing: model\.diffusion_model\.time_embed"):
        HummingbirdPipeline.from_single_file(path, config=TEXT_HEADS)
    with pytest.raises(CheckpointError, match="num_attention_heads is not in the file"):
        HummingbirdPipeline.from_single_file(write(tmp_path / "whole.ckpt", student()))
    with pytest.raises(FileNotFoundError, match="absent"):
        HummingbirdPipeline.from_single_file(tmp_path / "absent.ckpt")
