"""Real exports: both formats make the frames that PyTorch makes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, LCMScheduler
from transformers import CLIPTextConfig, CLIPTextModel

from hummingbird import HummingbirdPipeline
from hummingbird.cli import main
from hummingbird.export import Bucket, ExportManifest, read_manifest
from hummingbird.export.build import FLOAT32_TOLERANCE, export_pipeline
from hummingbird.export.components import ExportedUNet, load_parts
from hummingbird.export.parts import list_parts, trace
from hummingbird.models import UNetSpatioTemporalModel, preset_config
from hummingbird.warmup import warm_up
from tests.pipelines.tiny import seeded, tiny_components

onnx = pytest.importorskip("onnx", reason="needs the extra [onnx]")
pytest.importorskip("onnxruntime", reason="needs the extra [onnx]")
pytest.importorskip("onnxscript", reason="needs the extra [onnx]")

pytestmark = pytest.mark.timeout(1200)
PROMPT = "a red circle moving right on a black background"
SIZE: dict[str, Any] = {"num_frames": 3, "height": 16, "width": 16, "num_inference_steps": 2}


def smallest_pipeline(**options: Any) -> HummingbirdPipeline:
    """The real classes with few operators: what tracing and compiling take goes by their number."""
    parts = tiny_components(few_step=True)
    torch.manual_seed(1)
    config: dict[str, Any] = {
        "model_channels": 16,
        "channel_mult": (1, 2),
        "num_res_blocks": 1,
        "attention_resolutions": (2,),
        "num_head_channels": 8,
        "cross_attention_dim": 16,
        "has_middle_block": False,
        "init_attention": False,
        "norm_num_groups": 8,
        "time_cond_proj_dim": 32,
        "pruned_layers": ("input_blocks.3.1", "output_blocks.0.1"),
    }
    parts["unet"] = UNetSpatioTemporalModel(**{**config, **options}).eval()
    with torch.no_grad():
        for name, parameter in parts["unet"].named_parameters():
            if "norm" not in name and parameter.ndim > 1:
                parameter.normal_(std=parameter[0].numel() ** -0.5)
    pipe = HummingbirdPipeline(**parts, default_call={**SIZE, "fps": 8})
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="module")
def pipe() -> HummingbirdPipeline:
    return smallest_pipeline()


@pytest.fixture(scope="module")
def onnx_folder(pipe: HummingbirdPipeline, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("onnx") / "model"
    folder.mkdir()
    manifest, operators = export_pipeline(pipe, folder, format="onnx", target="cpu")
    assert read_manifest(folder) == manifest
    assert set(operators["graphs"]) == {graph.file for graph in manifest.graphs}
    return folder


def test_exported_models_warm_up_and_are_not_compiled_again(onnx_folder: Path) -> None:
    exported = HummingbirdPipeline.from_pretrained(onnx_folder)
    exported.set_progress_bar_config(disable=True)
    assert warm_up(exported).num_frames == SIZE["num_frames"]
    with pytest.raises(ValueError, match="whose code is compiled already"):
        warm_up(exported, compile_mode="blocks")


def assert_same_frames(pipe: HummingbirdPipeline, folder: Path, tolerance: float = 1e-3, **call: Any) -> None:
    """Seed for seed, alone and in a batch, an exported folder makes the frames of its origin."""
    exported = HummingbirdPipeline.from_pretrained(folder)
    exported.set_progress_bar_config(disable=True)
    assert isinstance(exported.unet, ExportedUNet)
    for prompts, seeds in (("a red circle", (1,)), (["a red circle", "a blue square"], (2, 3))):
        videos = [
            each(prompts, generator=seeded(*seeds), output_type="np", **call).frames
            for each in (pipe, exported)
        ]
        assert videos[0].std() > 0.01
        np.testing.assert_allclose(videos[1], videos[0], atol=tolerance, rtol=0)


def test_onnx_parts_and_frames_are_those_of_pytorch(pipe: HummingbirdPipeline, onnx_folder: Path) -> None:
    manifest = read_manifest(onnx_folder)
    assert [graph.part for graph in manifest.graphs] == ["text_encoder", "unet", "decoder"]
    for graph in manifest.graphs:
        assert graph.max_abs_difference is not None
        assert graph.max_abs_difference <= FLOAT32_TOLERANCE
        model = onnx.load(onnx_folder / graph.file)
        onnx.checker.check_model(model, full_check=True)
        assert model.opset_import[0].version == manifest.opset
        known = {value.name for value in (*model.graph.value_info, *model.graph.output)}
        made = {name for node in model.graph.node for name in node.output if name}
        assert len(made - known) <= 0.02 * len(made)  # shape inference reached all but a few
    assert_same_frames(pipe, onnx_folder)


def test_the_exported_folder_is_a_model(
    onnx_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import app

    out = tmp_path / "video.gif"
    words = ["generate", "a red circle", "--model", str(onnx_folder), "--out", str(out), "--json"]
    assert main(words) == 0
    answer = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (answer["num_frames"], answer["height"]) == (SIZE["num_frames"], SIZE["height"])
    assert out.stat().st_size > 0
    assert main([*words, "--frames", "5"]) == 1
    assert "exported for 3x16x16" in capsys.readouterr().err.splitlines()[-1]
    assert app.build_demo(str(onnx_folder)) is not None
    exported = HummingbirdPipeline.from_pretrained(onnx_folder)
    with pytest.raises(ValueError, match="copy the exported folder"):
        exported.save_pretrained(tmp_path / "again")
    assert HummingbirdPipeline.from_pretrained(onnx_folder, vae=None).vae is None


def test_smaller_variants_stay_close(pipe: HummingbirdPipeline, onnx_folder: Path, tmp_path: Path) -> None:
    from hummingbird.export.onnx_format import OnnxRunner, shrink_graph

    source = onnx_folder / "unet-3x16x16.onnx"
    part = list_parts(pipe, [Bucket(num_frames=3, height=16, width=16)])[1]
    inputs = part.example(2, seed=7)
    with torch.no_grad():
        expected = part.module(**inputs)
    # in standard deviations of the output
    for dtype, least, most, share in (
        ("float16", 1e-6, 0.1, 0.75),
        ("int8", 1e-4, 0.4, 0.6),
        ("int8-dynamic", 1e-4, 0.6, 0.95),
    ):
        path = tmp_path / f"{dtype}.onnx"
        shrink_graph(source, path, dtype, external=False)
        onnx.checker.check_model(path, full_check=True)
        output = OnnxRunner(path, ["CPUExecutionProvider"])(inputs)
        assert output.dtype == torch.float32
        difference = ((output - expected).abs().max() / expected.std()).item()
        assert least < difference < most, f"{dtype}: {difference}"
        assert path.stat().st_size < share * source.stat().st_size, dtype


def test_big_weights_go_beside_the_graph(pipe: HummingbirdPipeline, tmp_path: Path) -> None:
    from hummingbird.export.onnx_format import OnnxRunner, check_graph_file, write_graph

    part = list_parts(pipe, [Bucket(num_frames=3, height=16, width=16)])[0]
    path = tmp_path / "text.onnx"
    weights = write_graph(trace(part), part.inputs, path, 19, "float32", external_bytes=0)
    assert weights == tmp_path / "text.onnx.data"
    check_graph_file(path, weights.name)
    with torch.no_grad():
        expected = part.module(**part.inputs)
    assert torch.allclose(OnnxRunner(path, ["CPUExecutionProvider"])(part.inputs), expected, atol=1e-5)


@pytest.mark.skipif(shutil.which("g++") is None, reason="AOTInductor compiles C++: needs g++")
def test_aoti_frames_are_those_of_pytorch(tmp_path: Path) -> None:
    # one level, one transformer: compiling takes ten times as long as converting
    pruned = ("input_blocks.1.0.temopral_conv", "output_blocks.0.0.temopral_conv", "output_blocks.0.1")
    pipe = smallest_pipeline(
        channel_mult=(1,), attention_resolutions=(1,), temporal_attention=False, pruned_layers=pruned
    )
    manifest, _ = export_pipeline(pipe, tmp_path, format="aoti", target="cpu")
    assert max(graph.max_abs_difference or 0 for graph in manifest.graphs) <= FLOAT32_TOLERANCE
    assert_same_frames(pipe, tmp_path)


# --- the embedded model and the published size --------------------------------------------------------------


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("format", ["onnx", pytest.param("aoti", marks=pytest.mark.slow)])
def test_nano_is_exported_and_makes_its_frames(format: str, tmp_path: Path) -> None:
    folder = tmp_path / "nano"
    assert main(["export", "--format", format, "--target", "cpu", "--to", str(folder)]) == 0
    manifest: ExportManifest = read_manifest(folder)
    assert manifest.buckets == [Bucket(num_frames=16, height=64, width=64)]
    nano = HummingbirdPipeline.from_pretrained("nano")
    nano.set_progress_bar_config(disable=True)
    assert_same_frames(nano, folder, num_inference_steps=4)


def large_pipeline() -> HummingbirdPipeline:
    """The 0.7B network with random weights, few-step, in a pipeline whose other parts are small."""
    torch.manual_seed(0)
    parts = tiny_components(few_step=True)
    config = preset_config("hummingbird-0.7b", guidance_embedding=True)
    parts["unet"] = UNetSpatioTemporalModel.from_config(config).eval()
    text_config = {**parts["text_encoder"].config.to_dict(), "hidden_size": config["cross_attention_dim"]}
    parts["text_encoder"] = CLIPTextModel(CLIPTextConfig.from_dict(text_config)).eval()
    with torch.no_grad():
        for parameter in parts["unet"].parameters():
            if not parameter.any():  # layers that start as zero would hide what comes before them
                parameter.normal_(std=0.02)
    parts["vae"] = AutoencoderKL(
        down_block_types=["DownEncoderBlock2D"] * 4,
        up_block_types=["UpDecoderBlock2D"] * 4,
        block_out_channels=[8, 8, 8, 8],
        norm_num_groups=4,
        latent_channels=4,
    ).eval()
    parts["scheduler"] = LCMScheduler()
    return HummingbirdPipeline(**parts, default_call={"num_frames": 4, "height": 64, "width": 64, "fps": 8})


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_the_published_size_is_exported(tmp_path: Path) -> None:
    pipe = large_pipeline()
    pipe.set_progress_bar_config(disable=True)
    manifest, _ = export_pipeline(pipe, tmp_path, format="onnx", target="cpu")
    unet = next(graph for graph in manifest.graphs if graph.part == "unet")
    assert unet.weights is not None  # 2.8 GB: a graph alone cannot hold them
    assert unet.max_abs_difference is not None
    assert unet.max_abs_difference <= FLOAT32_TOLERANCE
    assert load_parts(tmp_path)
    assert_same_frames(pipe, tmp_path, num_inference_steps=2)
