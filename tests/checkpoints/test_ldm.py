"""Conversion of the original's parts, against its recorded values."""

from __future__ import annotations

import json

import pytest
import torch
from accelerate import init_empty_weights
from diffusers import AutoencoderKL
from transformers import CLIPTextModel

from hummingbird.checkpoints import text_encoder_from_open_clip, unet_from_ldm, vae_from_ldm
from hummingbird.checkpoints.ldm import _ldm_vae_key, _open_clip_source, _text_config, _vae_options
from tests.golden_files import FOLDERS, golden_config, golden_path, golden_tensors

TEXT = "text_encoder_tiny"


def text_state_dict() -> dict[str, torch.Tensor]:
    """The tiny tower, of whose 49408 token rows only the used ones are kept in the repository."""
    stored = golden_tensors(f"{TEXT}/state_dict_used_rows")
    tokens, rows = stored.pop("used_tokens"), stored.pop("used_rows")
    table = torch.zeros(49408, rows.shape[1], dtype=rows.dtype)
    table[tokens] = rows
    return {**stored, "model.token_embedding.weight": table}


@pytest.mark.golden
@pytest.mark.parametrize("name", ["vae_tiny", "vae_eps_probe"])
@torch.no_grad()
def test_vae(name):
    inputs, outputs = golden_tensors(f"{name}/inputs"), golden_tensors(f"{name}/outputs")
    vae = vae_from_ldm(golden_config(name), golden_tensors(f"{name}/state_dict"))
    posterior = vae.encode(inputs["x"]).latent_dist
    for ours, recorded in (
        (posterior.parameters, "moments"),
        (posterior.mean, "mean"),
        (posterior.std, "std"),
        (posterior.mean + posterior.std * inputs["noise"], "sample"),
        (vae.decode(inputs["z"]).sample, "decode_z"),
    ):
        torch.testing.assert_close(ours, outputs[recorded], rtol=1e-4, atol=2e-5)
    frames = inputs["latents"][0].transpose(0, 1) / vae.config.scaling_factor
    video = vae.decode(frames).sample.transpose(0, 1)[None]
    torch.testing.assert_close(video, outputs["decode_first_stage_2DAE"], rtol=1e-4, atol=2e-5)


@pytest.mark.golden
@torch.no_grad()
def test_text_encoder():
    inputs, outputs = golden_tensors(f"{TEXT}/inputs"), golden_tensors(f"{TEXT}/outputs")
    encoder = text_encoder_from_open_clip(golden_config(TEXT), text_state_dict())
    hidden = encoder(inputs["tokens"])[0]
    torch.testing.assert_close(hidden, outputs["penultimate"], rtol=1e-4, atol=1e-4)
    assert (outputs["last"] - outputs["penultimate"]).abs().max() > 1  # the tolerance tells the two apart


@pytest.mark.golden
@torch.no_grad()
def test_text_keys_without_prefix_and_without_unused_parts():
    state_dict = {key.removeprefix("model."): value for key, value in text_state_dict().items()}
    for key in [key for key in state_dict if ".3." in key or key in ("text_projection", "logit_scale")]:
        del state_dict[key]
    encoder = text_encoder_from_open_clip(golden_config(TEXT), state_dict)
    hidden = encoder(golden_tensors(f"{TEXT}/inputs")["tokens"])[0]
    torch.testing.assert_close(hidden, golden_tensors(f"{TEXT}/outputs")["penultimate"], rtol=1e-4, atol=1e-4)


@pytest.mark.golden
@torch.no_grad()
def test_text_encoder_survives_saving(tmp_path):
    encoder = text_encoder_from_open_clip(golden_config(TEXT), text_state_dict())
    encoder.save_pretrained(tmp_path)
    loaded = type(encoder).from_pretrained(tmp_path).eval()
    tokens = golden_tensors(f"{TEXT}/inputs")["tokens"]
    assert torch.equal(loaded(tokens)[0], encoder(tokens)[0])


@pytest.mark.golden
@pytest.mark.parametrize("name", ["unet_hb07_tiny", "unet_vc2_tiny"])
@torch.no_grad()
def test_unet(name):
    inputs, outputs = golden_tensors(f"{name}/inputs"), golden_tensors(f"{name}/outputs")
    unet = unet_from_ldm(golden_config(name)["unet_config"], golden_tensors(f"{name}/state_dict"))
    assert unet.config.has_middle_block == (name == "unet_vc2_tiny")
    output = unet(
        inputs["case0.x"],
        inputs["case0.timesteps"],
        inputs["case0.context"],
        fps=inputs["case0.fps"],
        timestep_cond=inputs.get("case0.timestep_cond"),
        return_dict=False,
    )[0]
    torch.testing.assert_close(output, outputs["case0.output"], rtol=5e-5, atol=5e-5)


@pytest.mark.golden
def test_guidance_embedding_is_found_in_the_weights():
    config = dict(golden_config("unet_hb07_tiny")["unet_config"])
    config.pop("time_cond_proj_dim", None)
    unet = unet_from_ldm(config, golden_tensors("unet_hb07_tiny/state_dict"))
    assert unet.config.time_cond_proj_dim == 256


@pytest.mark.golden
def test_weights_are_copied_and_cast():
    state_dict = golden_tensors("vae_tiny/state_dict")
    vae = vae_from_ldm(golden_config("vae_tiny"), state_dict, dtype=torch.float16)
    assert {parameter.dtype for parameter in vae.parameters()} == {torch.float16}
    before = state_dict["post_quant_conv.weight"].clone()
    with torch.no_grad():
        vae.post_quant_conv.weight.zero_()
    assert torch.equal(state_dict["post_quant_conv.weight"], before)
    assert not any(tensor.is_meta for tensor in (*vae.parameters(), *vae.buffers()))


@pytest.mark.golden
def test_missing_unexpected_and_reshaped_keys_are_named():
    state_dict = golden_tensors("vae_tiny/state_dict")
    del state_dict["encoder.mid.attn_1.q.weight"]
    state_dict["decoder.stranger"] = torch.zeros(1)
    state_dict["decoder.conv_out.bias"] = torch.zeros(5)
    with pytest.raises(ValueError, match="VAE") as error:
        vae_from_ldm(golden_config("vae_tiny"), state_dict)
    for part in (
        "1 missing: encoder.mid.attn_1.q.weight",
        "1 unexpected: decoder.stranger",
        "1 of another shape: decoder.conv_out.bias is (5,), expected (3,)",
    ):
        assert part in str(error.value)


@pytest.mark.golden
def test_text_and_unet_loads_are_strict():
    state_dict = text_state_dict()
    del state_dict["model.transformer.resblocks.1.attn.in_proj_weight"]
    with pytest.raises(
        ValueError, match=r"1 missing: model\.transformer\.resblocks\.1\.attn\.in_proj_weight"
    ):
        text_encoder_from_open_clip(golden_config(TEXT), state_dict)
    state_dict = golden_tensors("unet_hb07_tiny/state_dict")
    del state_dict["out.2.bias"]
    with pytest.raises(ValueError, match=r"U-Net.*1 missing: out\.2\.bias"):
        unet_from_ldm(golden_config("unet_hb07_tiny")["unet_config"], state_dict)


@pytest.mark.golden
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"attn_resolutions": [16]}, "attn_resolutions"),
        ({"double_z": False}, "double_z"),
        ({"z_channels": 8}, "embed_dim"),
    ],
)
def test_unsupported_vaes_are_refused(change, message):
    config = golden_config("vae_tiny")
    config["ddconfig"] |= change
    with pytest.raises(ValueError, match=message):
        vae_from_ldm(config, {})


def published_shapes(name: str) -> dict[str, tuple[int, ...]]:
    folder = FOLDERS[1].parent / "keys"
    if not folder.is_dir():
        pytest.skip("the key lists of the published files are in ../shared, which is absent")
    return {key: tuple(shape) for key, shape in json.loads((folder / name).read_text())["shapes"].items()}


def test_published_vae_keys_round_trip():
    """On the published layout every key has exactly one counterpart of the same size."""
    published = published_shapes("autoencoderkl_first_stage_model.json")
    layout = {"ch": 128, "ch_mult": [1, 2, 4, 4], "num_res_blocks": 2, "z_channels": 4, "resolution": 256}
    config = {"ddconfig": {**layout, "in_channels": 3, "out_ch": 3, "attn_resolutions": []}, "embed_dim": 4}
    with init_empty_weights():
        vae = AutoencoderKL(**_vae_options(config))
    ours = {_ldm_vae_key(key, 4): tensor.numel() for key, tensor in vae.state_dict().items()}
    assert ours == {key: torch.Size(shape).numel() for key, shape in published.items()}
    assert sum(ours.values()) == 83_653_863


def test_published_text_keys_are_all_known():
    published = published_shapes("openclip_text_cond_stage_model.json")
    config = {
        "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 1024, "heads": 16, "layers": 24},
        "embed_dim": 1024,
    }
    with init_empty_weights():
        encoder = CLIPTextModel(_text_config(config))
    sources = {_open_clip_source(key, "model.").key for key in encoder.state_dict()}
    unused = set(published) - sources
    assert sources <= set(published)
    assert {key.split(".")[1] for key in unused} == {"transformer", "text_projection", "logit_scale"}
    assert all(".resblocks.23." in key for key in unused if "transformer" in key)
    assert sum(parameter.numel() for parameter in encoder.parameters()) == 340_387_840


def test_golden_files_are_there():
    assert golden_path("vae_tiny/config.json").is_relative_to(FOLDERS[0])
