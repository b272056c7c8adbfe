"""Small decoders: put in, saved, loaded, refused; likeness of pictures; where a model is put."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, AutoencoderTiny

from hummingbird import HummingbirdPipeline, nano, runtime
from hummingbird.cli import main
from hummingbird.evaluation.similarity import psnr_db, ssim
from hummingbird.nano import world
from tests.pipelines.tiny import CALL, tiny_components


def tiny_decoder(levels: int = 2, latent_channels: int = 4) -> AutoencoderTiny:
    torch.manual_seed(1)
    widths, blocks = (8,) * levels, (1,) * levels
    return AutoencoderTiny(
        latent_channels=latent_channels,
        encoder_block_out_channels=widths,
        decoder_block_out_channels=widths,
        num_encoder_blocks=blocks,
        num_decoder_blocks=blocks,
    ).eval()


def tiny_pipeline() -> HummingbirdPipeline:
    pipe = HummingbirdPipeline(**tiny_components())
    pipe.set_progress_bar_config(disable=True)
    return pipe


def test_a_decoder_is_put_in_saved_and_loaded(tmp_path: Path) -> None:
    pipe = tiny_pipeline()
    call = {**CALL, "prompt": "a red circle", "output_type": "pt"}
    full = pipe(**call, generator=torch.Generator().manual_seed(0)).frames
    decoder = tiny_decoder()
    pipe.set_decoder(decoder)
    latents = pipe(**{**call, "output_type": "latent"}, generator=torch.Generator().manual_seed(0)).frames
    small = pipe(**call, generator=torch.Generator().manual_seed(0)).frames
    assert small.shape == full.shape
    assert not torch.equal(small, full)
    with torch.no_grad():  # latents go in as the U-Net sees them
        wanted = decoder.decode(latents.transpose(1, 2).flatten(0, 1)).sample
    torch.testing.assert_close(small[0], (wanted / 2 + 0.5).clamp(0, 1), atol=1e-5, rtol=0)
    pipe.save_pretrained(tmp_path / "model")
    again = HummingbirdPipeline.from_pretrained(tmp_path / "model")
    again.set_progress_bar_config(disable=True)
    assert type(again.vae) is AutoencoderTiny
    assert torch.equal(again(**call, generator=torch.Generator().manual_seed(0)).frames, small)


def test_a_decoder_for_other_latents_is_refused() -> None:
    pipe = tiny_pipeline()
    before = pipe.vae
    for wrong in (tiny_decoder(levels=3), tiny_decoder(latent_channels=8)):
        with pytest.raises(ValueError, match="use the one that was made for this model"):
            pipe.set_decoder(wrong)
    assert pipe.vae is before


def test_loading_a_decoder_by_name_and_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tiny_decoder().save_pretrained(tmp_path / "tiny")
    loaded = runtime.load_decoder(str(tmp_path / "tiny"), torch.bfloat16)
    assert loaded.dtype == torch.bfloat16
    with pytest.raises(FileNotFoundError, match="expected nano, the folder of an AutoencoderTiny"):
        runtime.load_decoder(str(tmp_path / "missing"))
    with pytest.raises(ValueError, match="holds AutoencoderKL, expected AutoencoderTiny"):
        runtime.load_decoder(str(nano.resolve("nano-teacher") / "vae"))  # type: ignore[operator]
    words = [
        "generate",
        "a red circle",
        "--out",
        str(tmp_path / "x.png"),
        "--decoder",
        str(tmp_path / "tiny"),
    ]
    assert main(words) == 1  # eight times instead of four
    assert "use the one that was made for this model" in capsys.readouterr().err


@torch.no_grad()
def test_the_embedded_decoder_is_like_the_full_one() -> None:
    folder = nano.resolve("nano-teacher")
    assert folder is not None
    vae = AutoencoderKL.from_pretrained(folder / "vae", torch_dtype=torch.float32).eval()
    small = runtime.load_decoder("nano")
    assert sum(file.stat().st_size for file in nano.resolve_decoder("nano").glob("*")) < 1_000_000  # type: ignore[union-attr]
    items = world.evaluation_prompts(8, seed=7)
    clips = world.render_clips(items, np.random.default_rng(7))[:, ::5].flatten(0, 1)
    mode = vae.encode(clips.movedim(-1, 1).float() / 127.5 - 1.0).latent_dist.mode()
    scaled = (mode - vae.config.shift_factor) * vae.config.scaling_factor
    full = vae.decode(mode).sample.clamp(-1, 1) / 2 + 0.5
    ours = small.decode(scaled).sample.clamp(-1, 1) / 2 + 0.5
    assert psnr_db(ours, full).mean() > 30.0
    assert ssim(ours, full).mean() > 0.9


def test_likeness_against_arithmetic() -> None:
    grey = torch.full((1, 3, 16, 16), 0.5)
    assert float(psnr_db(grey + 0.1, grey)) == pytest.approx(20.0, abs=1e-4)
    assert float(psnr_db(grey, grey)) == float("inf")
    noise = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(ssim(noise, noise), torch.ones(2))
    flat = (2 * 0.5 * 0.25 + 1e-4) / (0.5**2 + 0.25**2 + 1e-4)  # without structure only the means count
    assert float(ssim(grey, grey * 0.5)) == pytest.approx(flat, abs=1e-4)
    assert float(ssim(noise[:1], 1.0 - noise[:1])) < 0.0
    with pytest.raises(ValueError, match="sides from 11"):
        ssim(noise[..., :8], noise[..., :8])


def test_memory_modes_on_a_cpu() -> None:
    for mode in ("model", "group"):
        with pytest.raises(ValueError, match="runs on the CPU"):
            runtime.place(tiny_pipeline(), torch.device("cpu"), mode)
    with pytest.raises(ValueError, match="expected one of none, auto"):
        runtime.place(tiny_pipeline(), torch.device("cpu"), "tiny")
    call = {**CALL, "prompt": "a red circle", "output_type": "pt"}
    videos = {}
    for mode in ("none", "auto", "fp8"):
        pipe = runtime.place(tiny_pipeline(), torch.device("cpu"), mode)
        videos[mode] = pipe(**call, generator=torch.Generator().manual_seed(0)).frames
    assert torch.equal(videos["none"], videos["auto"])
    difference = (videos["none"] - videos["fp8"]).abs().mean()
    assert 0.0 < difference < 0.05
    dtypes = {p.dtype for p in pipe.unet.parameters()}
    assert torch.float8_e4m3fn in dtypes
