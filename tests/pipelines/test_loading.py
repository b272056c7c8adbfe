"""Save and load, number types, offload."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
from pathlib import Path

import accelerate
import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline, TextToVideoSDPipeline
from safetensors.torch import load_file

from hummingbird import HummingbirdPipeline, nano
from hummingbird.schedulers import VideoCrafterDDIMScheduler
from tests.pipelines.tiny import CALL, seeded, tiny_components, tiny_pipeline

PROMPT = "a red circle moving right"


def frames_of(pipe: DiffusionPipeline, **options) -> np.ndarray:
    pipe.set_progress_bar_config(disable=True)
    return pipe(PROMPT, generator=seeded(0), **CALL | options).frames


@pytest.mark.parametrize("few_step", [True, False])
def test_round_trip_is_bit_equal(tmp_path, few_step):
    pipe = tiny_pipeline(few_step)
    if not few_step:
        pipe.scheduler = VideoCrafterDDIMScheduler(use_scale=True)
        pipe.register_modules(scheduler=pipe.scheduler)
    pipe.save_pretrained(tmp_path)
    index = json.loads((tmp_path / "model_index.json").read_text())
    assert index["_class_name"] == "HummingbirdPipeline"
    assert index["unet"] == ["hummingbird", "UNetSpatioTemporalModel"]
    if not few_step:
        assert index["scheduler"] == ["hummingbird", "VideoCrafterDDIMScheduler"]
    loaded = HummingbirdPipeline.from_pretrained(tmp_path)
    for name in ("unet", "vae", "text_encoder"):
        for key, tensor in getattr(pipe, name).state_dict().items():
            assert torch.equal(tensor, getattr(loaded, name).state_dict()[key]), (name, key)
    assert np.array_equal(frames_of(pipe), frames_of(loaded))


def test_loading_in_a_new_process(tmp_path):
    """Nothing but the import of the pipeline is needed for our classes to be found."""
    tiny_pipeline().save_pretrained(tmp_path)
    code = (
        "import sys; from hummingbird import HummingbirdPipeline; "
        "pipe = HummingbirdPipeline.from_pretrained(sys.argv[1]); sys.exit(pipe.unet.config.model_channels)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
        cwd=Path(__file__).parents[2],
    )
    assert done.returncode == 16, done.stderr


def test_half_precision_weights_are_loaded_as_float32(tmp_path):
    tiny_pipeline().to(torch.float16).save_pretrained(tmp_path)
    stored = load_file(tmp_path / "unet" / "diffusion_pytorch_model.safetensors")
    assert {tensor.dtype for tensor in stored.values()} == {torch.float16}
    pipe = HummingbirdPipeline.from_pretrained(tmp_path)
    for name in ("unet", "vae", "text_encoder"):
        assert {parameter.dtype for parameter in getattr(pipe, name).parameters()} == {torch.float32}
    half = HummingbirdPipeline.from_pretrained(tmp_path, dtype=torch.float16)
    assert half.unet.dtype == half.vae.dtype == half.text_encoder.dtype == torch.float16


def test_saved_variants(tmp_path):
    pipe = tiny_pipeline()
    pipe.save_pretrained(tmp_path, variant="fp16")
    loaded = HummingbirdPipeline.from_pretrained(tmp_path, variant="fp16")
    assert np.array_equal(frames_of(pipe), frames_of(loaded))


class Hostile:
    """Writes a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.mark.logs_error("no file named diffusion_pytorch_model.safetensors")
def test_bin_weights_are_tensors_and_nothing_else(tmp_path):
    folder, canary = tmp_path / "model", tmp_path / "executed"
    pipe = tiny_pipeline()
    pipe.save_pretrained(folder, safe_serialization=False)
    weights = folder / "unet" / "diffusion_pytorch_model.bin"
    assert weights.exists()
    assert np.array_equal(frames_of(HummingbirdPipeline.from_pretrained(folder)), frames_of(pipe))
    with pytest.raises(OSError, match="safetensors"):
        HummingbirdPipeline.from_pretrained(folder, use_safetensors=True)
    torch.save({**pipe.unet.state_dict(), "extra": Hostile(canary)}, weights)
    with pytest.raises(OSError, match="Unable to load weights"):
        HummingbirdPipeline.from_pretrained(folder)
    assert not canary.exists()


@pytest.mark.logs_error("no file named diffusion_pytorch_model.safetensors")
def test_hostile_bin_weights_of_the_text_encoder(tmp_path):
    folder, canary = tmp_path / "model", tmp_path / "executed"
    pipe = tiny_pipeline()
    pipe.save_pretrained(folder)
    (folder / "text_encoder" / "model.safetensors").unlink()
    weights = folder / "text_encoder" / "pytorch_model.bin"
    torch.save({**pipe.text_encoder.state_dict(), "extra": Hostile(canary)}, weights)
    with pytest.raises(pickle.UnpicklingError, match="Weights only load failed"):
        HummingbirdPipeline.from_pretrained(folder)
    assert not canary.exists()


def test_a_type_for_each_component(tmp_path):
    tiny_pipeline().save_pretrained(tmp_path)
    types = {"unet": torch.bfloat16, "default": torch.float16}
    pipe = HummingbirdPipeline.from_pretrained(tmp_path, dtype=types)
    found = (pipe.unet.dtype, pipe.vae.dtype, pipe.text_encoder.dtype)
    assert found == (torch.bfloat16, torch.float16, torch.float16)
    assert np.isfinite(frames_of(pipe)).all()


def test_a_variant_that_is_not_there_is_named(tmp_path):
    tiny_pipeline().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="variant=fp16"):
        HummingbirdPipeline.from_pretrained(tmp_path, variant="fp16")


def test_sharded_weights(tmp_path):
    pipe = tiny_pipeline()
    pipe.save_pretrained(tmp_path, max_shard_size="1MB")
    assert len(list((tmp_path / "unet").glob("*.safetensors"))) == 2
    assert np.array_equal(frames_of(HummingbirdPipeline.from_pretrained(tmp_path)), frames_of(pipe))


def test_device_map(tmp_path):
    pipe = tiny_pipeline()
    pipe.save_pretrained(tmp_path)
    mapped = HummingbirdPipeline.from_pretrained(tmp_path, device_map="cpu")
    np.testing.assert_allclose(frames_of(mapped), frames_of(pipe), atol=1e-6)


def test_loading_without_the_text_encoder(tmp_path):
    pipe = tiny_pipeline()
    embeds, _ = pipe.encode_prompt(PROMPT, do_classifier_free_guidance=False)
    pipe.save_pretrained(tmp_path)
    bare = HummingbirdPipeline.from_pretrained(tmp_path, text_encoder=None, tokenizer=None)
    bare.set_progress_bar_config(disable=True)
    assert np.array_equal(bare(prompt_embeds=embeds, generator=seeded(0), **CALL).frames, frames_of(pipe))


def test_from_pipe_shares_components():
    pipe = tiny_pipeline(default_call={"num_frames": 2})
    other = HummingbirdPipeline.from_pipe(pipe)
    assert other.unet is pipe.unet
    assert other.default_call == pipe.default_call
    assert set(pipe.components) == set(tiny_components())
    assert {k: v for k, v in other.config.items() if k[0] != "_"} == {
        k: v for k, v in pipe.config.items() if k[0] != "_"
    }
    assert HummingbirdPipeline.from_pipe(pipe, dtype=torch.float16).unet.dtype == torch.float16


def test_from_another_kind_of_pipeline_and_back():
    components = tiny_components(few_step=False)
    source = TextToVideoSDPipeline(**components)
    pipe = HummingbirdPipeline.from_pipe(source, unet=components["unet"])
    assert pipe.components == components
    assert TextToVideoSDPipeline.from_pipe(pipe, unet=pipe.unet).components == components


def test_embedded_names(monkeypatch, tmp_path):
    for name in nano.EMBEDDED_MODELS:
        assert nano.resolve(name).name == name
    assert nano.resolve("./nano") is None
    assert nano.resolve("someone/model") is None
    monkeypatch.setattr(nano, "resolve", lambda _name: tmp_path / "absent")
    with pytest.raises(FileNotFoundError, match="make nano"):
        HummingbirdPipeline.from_pretrained("nano")
    tiny_pipeline().save_pretrained(tmp_path / "weights")
    monkeypatch.setattr(nano, "resolve", lambda _name: tmp_path / "weights")
    assert HummingbirdPipeline.from_pretrained("nano").unet.config.model_channels == 16


def test_importing_the_package_imports_nothing_heavy():
    code = "import sys, hummingbird; sys.exit(int('torch' in sys.modules))"
    assert (
        subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[2], check=False).returncode
        == 0
    )
    import hummingbird

    assert "HummingbirdPipeline" in dir(hummingbird)
    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        _ = hummingbird.Nothing


# ------------------------------------------------------------------------------------- types and placement


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("few_step", [True, False])
def test_half_precision_runs_and_resembles(few_step, dtype):
    full = frames_of(tiny_pipeline(few_step), guidance_scale=2.0)
    half = frames_of(tiny_pipeline(few_step).to(dtype), guidance_scale=2.0)
    assert half.dtype == np.float32
    assert np.isfinite(half).all()
    assert np.abs(full - half).mean() < 0.03


def test_mixed_precision_between_components():
    pipe = tiny_pipeline()
    pipe.text_encoder.to(torch.float16)
    pipe.vae.to(torch.bfloat16)
    frames = frames_of(pipe)
    assert np.isfinite(frames).all()
    assert np.abs(frames - frames_of(tiny_pipeline())).mean() < 0.03


def test_layerwise_casting():
    pipe = tiny_pipeline()
    expected = frames_of(pipe)
    pipe.unet.enable_layerwise_casting(storage_dtype=torch.float16, compute_dtype=torch.float32)
    frames = frames_of(pipe)
    assert {parameter.dtype for parameter in pipe.unet.parameters()} > {torch.float16}
    assert 0 < np.abs(frames - expected).mean() < 0.03


@pytest.mark.parametrize("offload_type", ["block_level", "leaf_level"])
def test_group_offload(offload_type):
    pipe = tiny_pipeline()
    expected = frames_of(pipe)
    for name in ("unet", "vae"):
        getattr(pipe, name).enable_group_offload(
            onload_device=torch.device("cpu"),
            offload_device=torch.device("cpu"),
            offload_type=offload_type,
            num_blocks_per_group=1 if offload_type == "block_level" else None,
        )
    np.testing.assert_allclose(frames_of(pipe), expected, atol=1e-6)


def test_offload_hooks():
    """On a machine without accelerator the hooks still run every component, in the order that they name."""
    pipe = tiny_pipeline()
    expected = frames_of(pipe)
    for _ in range(2):
        pipe.enable_model_cpu_offload(device="cpu")
        for name in ("text_encoder", "unet", "vae"):
            assert isinstance(getattr(pipe, name)._hf_hook, accelerate.hooks.CpuOffload)
        np.testing.assert_allclose(frames_of(pipe), expected, atol=1e-6)
        np.testing.assert_allclose(frames_of(pipe), expected, atol=1e-6)


def test_sequential_offload_hooks():
    """Weights lie on no device between the layers' calls: no layer reads those of another."""
    pipe = tiny_pipeline()
    expected = frames_of(pipe)
    for name in ("text_encoder", "unet", "vae"):
        model = getattr(pipe, name)
        accelerate.cpu_offload(model, torch.device("cpu"), offload_buffers=bool(model._parameters))
        assert {parameter.device.type for parameter in model.parameters()} == {"meta"}
    assert pipe._execution_device.type == "cpu"
    for _ in range(2):
        np.testing.assert_allclose(frames_of(pipe), expected, atol=1e-6)
    assert {parameter.device.type for parameter in pipe.unet.parameters()} == {"meta"}


@pytest.mark.parametrize("options", [{"offload_type": "block_level", "num_blocks_per_group": 1}, {}])
def test_group_offload_of_the_pipeline(options):
    pipe = tiny_pipeline()
    expected = frames_of(pipe)
    where = {"onload_device": torch.device("cpu"), "offload_device": torch.device("cpu")}
    pipe.enable_group_offload(**where, **options or {"offload_type": "leaf_level"}, exclude_modules="vae")
    assert not any(hasattr(module, "_diffusers_hook") for module in pipe.vae.modules())
    for name in ("unet", "text_encoder"):
        assert any(hasattr(module, "_diffusers_hook") for module in getattr(pipe, name).modules())
    np.testing.assert_allclose(frames_of(pipe), expected, atol=1e-6)


def test_float8_storage_with_bfloat16_arithmetic():
    pipe = tiny_pipeline().to(torch.bfloat16)
    pipe.unet.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.bfloat16)
    assert torch.float8_e4m3fn in {parameter.dtype for parameter in pipe.unet.parameters()}
    assert np.isfinite(frames_of(pipe)).all()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an accelerator")
@pytest.mark.parametrize("method", ["to", "enable_model_cpu_offload", "enable_sequential_cpu_offload"])
def test_offload_on_an_accelerator(method):
    pipe = tiny_pipeline()
    expected = frames_of(pipe)
    getattr(pipe, method)(*(["cuda"] if method == "to" else []))
    np.testing.assert_allclose(frames_of(pipe), expected, atol=1e-3)


def test_vae_slicing_and_tiling():
    pipe = tiny_pipeline()
    expected = frames_of(pipe)
    pipe.vae.enable_slicing()
    np.testing.assert_allclose(frames_of(pipe), expected, atol=1e-5)
    pipe.vae.enable_tiling()
    assert frames_of(pipe).shape == expected.shape


def test_progress_bar(capsys):
    pipe = tiny_pipeline()
    pipe.set_progress_bar_config(disable=False)
    pipe(PROMPT, **CALL)
    assert "2/2" in capsys.readouterr().err
    pipe.set_progress_bar_config(disable=True)
    pipe(PROMPT, **CALL)
    assert capsys.readouterr().err == ""
