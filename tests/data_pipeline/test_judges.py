"""Judges behind one interface: real models made tiny, real files, and how they cannot be used."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from data_pipeline.clip import Clip, ClipSpec, Crop, Drop, Keep
from data_pipeline.clip import View as ClipView
from data_pipeline.dover import model as dover_model
from data_pipeline.dover import sampling
from data_pipeline.dover.model import DoverError
from data_pipeline.dover.sampling import View
from data_pipeline.judges.base import QualityError, to_unit
from data_pipeline.judges.clip_aesthetic import ClipAestheticConfig, linear_head
from data_pipeline.judges.dover import DoverConfig
from data_pipeline.judges.onnx_model import OnnxConfig, OnnxJudge
from data_pipeline.pipeline import PipelineConfig, run
from data_pipeline.stages.quality import QualityConfig
from hummingbird.manifest import ClipRecord, read_manifest
from tests.data_pipeline.test_dover import TINY, tiny
from tests.data_pipeline.test_quality import write_clip

WIDTH, HEIGHT = 96, 80


@pytest.fixture(scope="module")
def spec(tmp_path_factory: pytest.TempPathFactory) -> ClipSpec:
    """A picture that gets lighter from left to right, and over time; 20 frames."""
    frames = np.empty((20, HEIGHT, WIDTH, 3), np.uint8)
    frames[:] = np.linspace(20, 120, WIDTH)[None, None, :, None] + 5 * np.arange(20)[:, None, None, None]
    return write_clip(frames, tmp_path_factory.mktemp("clips") / "ramp.mp4")


def verdict(stage: QualityConfig, spec: ClipSpec, crop: Crop | None = None) -> Keep | Drop:
    stage.setup()
    clip = Clip(spec, stage.views)
    clip.crop = crop
    return stage.process(clip)


def test_streamed_frames_are_those_of_a_view(spec: ClipSpec) -> None:
    view = ClipView()
    clip = Clip(spec, [view])
    clip.crop = Crop(left=8, top=0, width=64, height=HEIGHT)
    whole = clip.frames(view).images
    found = dict(clip.stream({0, 7, 19, 400}))
    assert list(found) == [0, 7, 19]
    for index, image in found.items():
        np.testing.assert_array_equal(image, whole[index])
    assert clip.decode_s > 0


# DOVER


@pytest.fixture
def dover(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkpoint of both models made tiny, and smaller views with the real number of aesthetic frames."""
    technical = {
        "clip_len": 4,
        "num_clips": 2,
        "frame_interval": 2,
        "fragments_h": 2,
        "fragments_w": 2,
        "aligned": 4,
    }
    aesthetic = {
        "clip_len": 32,
        "t_frag": 32,
        "num_clips": 1,
        "frame_interval": 2,
        "size_h": 32,
        "size_w": 32,
    }

    def views(*, antialias: bool) -> dict[str, View]:
        return {
            "technical": View.from_config(technical),
            "aesthetic": View.from_config(aesthetic, antialias=antialias),
        }

    monkeypatch.setattr(dover_model, "CONFIGS", {"dover": TINY, "dover-mobile": TINY})
    monkeypatch.setattr(sampling, "standard_views", views)
    model = tiny()
    for head, middle in ((model.technical_head, 0.11), (model.aesthetic_head, -0.08)):
        head.fc_last.weight.data *= 0.02  # so that scores are not all 0 or 1
        head.fc_last.bias.data.fill_(middle)
    torch.save(model.state_dict(), tmp_path / "DOVER.pth")
    return tmp_path / "DOVER.pth"


@pytest.mark.parametrize("model", ["dover", "dover-mobile"])
def test_dover_fills_the_three_columns(dover: Path, spec: ClipSpec, model: Any) -> None:
    stage = QualityConfig(model=model, dover=DoverConfig(checkpoint=dover))
    found = verdict(stage, spec)
    assert isinstance(found, Keep)
    assert set(found.scores) == {"quality", "quality_technical", "quality_aesthetic"}
    assert all(0 < score < 1 for score in found.scores.values())
    assert verdict(stage, spec) == found


def test_dover_looks_at_the_cropped_picture_and_draws_by_its_seed(dover: Path, spec: ClipSpec) -> None:
    scores = [
        verdict(
            QualityConfig(model="dover", dover=DoverConfig(checkpoint=dover, **settings)), spec, crop
        ).scores
        for settings, crop in (
            ({}, None),
            ({"seed": 1}, None),
            ({"compatible": True}, None),
            ({}, Crop(left=0, top=0, width=48, height=HEIGHT)),
        )
    ]
    first, seeded, compatible, cropped = scores
    # 20 frames are too few for draws in time: all pictures are seen squashed, whatever the seed.
    assert first["quality_aesthetic"] == seeded["quality_aesthetic"]
    assert first["quality_technical"] != seeded["quality_technical"]
    assert first["quality_aesthetic"] != compatible["quality_aesthetic"]
    assert first["quality_aesthetic"] != cropped["quality_aesthetic"]


def test_dover_on_a_clip_that_got_shorter_is_an_error(dover: Path, spec: ClipSpec) -> None:
    from dataclasses import replace

    stage = QualityConfig(model="dover", dover=DoverConfig(checkpoint=dover))
    with pytest.raises(QualityError, match=r"frames: .* did not come"):
        verdict(stage, replace(spec, num_frames=200))


def test_dover_without_its_file_does_not_start(tmp_path: Path) -> None:
    stage = QualityConfig(model="dover", dover=DoverConfig(checkpoint=tmp_path / "none.pth"))
    with pytest.raises(FileNotFoundError):
        stage.setup()
    (tmp_path / "none.pth").write_bytes(b"no weights")
    with pytest.raises(DoverError, match="cannot be read as tensors"):
        stage.setup()


def test_thresholds_on_either_branch(dover: Path, spec: ClipSpec) -> None:
    files = DoverConfig(checkpoint=dover)
    scores = verdict(QualityConfig(model="dover", dover=files), spec).scores
    for name, setting in (("quality_technical", "min_technical"), ("quality_aesthetic", "min_aesthetic")):
        assert 0.01 < scores[name] < 0.99
        for limit in (scores[name] - 0.001, scores[name] + 0.001):
            found = verdict(QualityConfig(model="dover", dover=files, **{setting: limit}), spec)
            assert isinstance(found, Drop) == (limit > scores[name])
            assert found.scores == scores
        assert found.reason == f"quality: low {name.removeprefix('quality_')}"


# Exported models


def exported(path: Path, shape: list[int | str], *, value: float | None = None, **options: Any) -> Path:
    """A real ONNX file: mean of the input over all axes but ``keep``, or a constant; outputs as named."""
    onnx = pytest.importorskip("onnx", reason="needs the extra onnx")
    pytest.importorskip("onnxruntime", reason="needs the extra onnx")
    from onnx import TensorProto, helper

    kind = options.get("kind", TensorProto.FLOAT)
    keep, names = options.get("keep", ()), options.get("outputs", ("score",))
    axes = [axis for axis in range(len(shape)) if axis not in keep]
    nodes = [helper.make_node("Cast", ["frames"], ["float"], to=TensorProto.FLOAT)]
    initial = [helper.make_tensor("axes", TensorProto.INT64, [len(axes)], axes)]
    if value is None:
        nodes.append(helper.make_node("ReduceMean", ["float", "axes"], ["mean"], keepdims=0))
    else:
        nodes.append(helper.make_node("ReduceMean", ["float", "axes"], ["m"], keepdims=0))
        initial += [
            helper.make_tensor("zero", TensorProto.FLOAT, [], [0.0]),
            helper.make_tensor("value", TensorProto.FLOAT, [], [value]),
        ]
        nodes.append(helper.make_node("Mul", ["m", "zero"], ["nothing"]))
        nodes.append(helper.make_node("Add", ["nothing", "value"], ["mean"]))
    for number, name in enumerate(names):
        initial.append(helper.make_tensor(f"divisor{number}", TensorProto.FLOAT, [], [1.0 + number]))
        nodes.append(
            helper.make_node("Div", ["mean", f"divisor{number}"], [name], domain=options.get("domain", ""))
        )
    kept = [shape[axis] for axis in keep]
    graph = helper.make_graph(
        nodes,
        "scorer",
        [helper.make_tensor_value_info("frames", kind, shape)]
        + [helper.make_tensor_value_info(name, kind, shape) for name in options.get("more_inputs", ())],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, kept) for name in names],
        initial,
    )
    domains = {"", options.get("domain", "")}
    opsets = [helper.make_opsetid(domain, 18 if domain == "" else 1) for domain in sorted(domains)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=9), path)
    return path


def settings(file: Path, **values: Any) -> QualityConfig:
    plain = {"num_frames": 4, "height": 40, "width": 48, "mean": (0, 0, 0), "std": (1, 1, 1)}
    return QualityConfig(model="onnx", onnx=OnnxConfig(file=file, **{**plain, **values}))


SHAPES: dict[str, list[int | str]] = {
    "NTHWC": [1, 4, 40, 48, 3],
    "NTCHW": [1, 4, 3, 40, 48],
    "NCTHW": ["batch", 3, "frames", 40, 48],
    "NCHW": ["frames", 3, 40, 48],
    "NHWC": [4, 40, 48, 3],
}


@pytest.mark.parametrize("layout", SHAPES)
def test_onnx_gives_the_mean_of_the_pixels_in_any_layout(layout: str, tmp_path: Path, spec: ClipSpec) -> None:
    keep = (0,) if layout in ("NCHW", "NHWC") else ()
    stage = settings(exported(tmp_path / "m.onnx", SHAPES[layout], keep=keep), layout=layout)
    found = verdict(stage, spec)
    images = Clip(spec, stage.views).frames(stage.views[0]).images
    assert len(images) == 4
    assert found.scores["quality"] == pytest.approx(images.mean() / 255, abs=2e-3)
    assert found.scores["quality_onnx"] == found.scores["quality"]
    assert set(found.scores) == {"quality", "quality_onnx"}


def test_onnx_pixels_are_where_the_layout_says(tmp_path: Path) -> None:
    images = np.arange(2 * 3 * 4 * 3, dtype=np.uint8).reshape(2, 3, 4, 3)
    for layout in SHAPES:
        shape: list[int | str] = [{"N": 1, "T": 2, "C": 3, "H": 3, "W": 4}[axis] for axis in layout]
        shape[0] = 2 if len(layout) == 4 else 1
        file = exported(tmp_path / f"{layout}.onnx", shape, keep=(0,) if len(layout) == 4 else ())
        size = {"file": file, "layout": layout, "num_frames": 2, "height": 3, "width": 4}
        judge = OnnxJudge(OnnxConfig(**size, mean=(0.1, 0.2, 0.3), std=(0.5, 0.25, 2.0)))
        pixels = judge._pixels(images)
        axes = "THWC" if len(layout) == 4 else "NTHWC"
        names = layout.replace("N", "T") if len(layout) == 4 else layout
        back = np.einsum(f"{names}->{axes}".lower(), pixels).reshape(images.shape)
        expected = (images / 255.0 - [0.1, 0.2, 0.3]) / [0.5, 0.25, 2.0]
        np.testing.assert_allclose(back, expected, atol=1e-6)
        blue_first = OnnxJudge(OnnxConfig(**size, bgr=True, mean=(0, 0, 0), std=(1, 1, 1)))._pixels(images)
        back = np.einsum(f"{names}->{axes}".lower(), blue_first).reshape(images.shape)
        np.testing.assert_allclose(back, images[..., ::-1] / 255.0, atol=1e-6)


def test_onnx_uint8_activation_range_and_named_outputs(tmp_path: Path, spec: ClipSpec) -> None:
    from onnx import TensorProto

    file = exported(tmp_path / "m.onnx", SHAPES["NTHWC"], kind=TensorProto.UINT8, outputs=("all", "half"))
    named = {"output": "all", "technical_output": "half", "layout": "NTHWC", "low": 0.0, "high": 255.0}
    found = verdict(settings(file, **named), spec).scores
    assert found["quality_technical"] == pytest.approx(found["quality"] / 2)
    assert found["quality_onnx"] == pytest.approx(255 * found["quality"])
    squeezed = verdict(settings(file, output="half", layout="NTHWC", activation="sigmoid"), spec).scores
    assert squeezed["quality"] == pytest.approx(1 / (1 + math.exp(-found["quality_onnx"] / 2)))


def test_onnx_on_a_clip_with_fewer_frames_than_it_takes(tmp_path: Path, spec: ClipSpec) -> None:
    file = exported(tmp_path / "m.onnx", [1, 3, 64, 40, 48])
    assert 0 < verdict(settings(file, num_frames=64), spec).scores["quality"] < 1


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1.5, -0.1])
def test_onnx_outputs_that_are_no_score_are_errors(value: float, tmp_path: Path, spec: ClipSpec) -> None:
    stage = settings(exported(tmp_path / "m.onnx", SHAPES["NCTHW"], value=value))
    with pytest.raises(QualityError, match=r"output 'score' is .* expected"):
        verdict(stage, spec)


@pytest.mark.parametrize(
    ("make", "values", "message"),
    [
        (
            {"shape": [1, 3, 4, 41, 48]},
            {},
            r"declares input \[1, 3, 4, 41, 48\], the settings make \[1, 3, 4, 40, 48\]",
        ),
        ({"shape": [4, 3, 40, 48]}, {}, "the settings make"),
        ({"shape": [1, 3, 5, 40, 48]}, {"num_frames": 4}, "set layout, num_frames, height and width"),
        ({"more_inputs": ("other",)}, {}, r"has 2 inputs \(frames, other\)"),
        ({"outputs": ("a", "b")}, {}, "has outputs a, b; set output"),
        ({}, {"output": "b"}, "has no output 'b', only score"),
        ({"kind": 7}, {}, r"input is tensor\(int64\)"),
        ({"domain": "evil.ops"}, {}, "cannot be loaded"),
        ({}, {"providers": ("NoSuchProvider",)}, "providers: got"),
        ({}, {"providers": ()}, "providers: got none"),
    ],
)
def test_onnx_models_that_do_not_fit_the_settings(
    make: dict[str, Any], values: dict[str, Any], message: str, tmp_path: Path
) -> None:
    stage = settings(exported(tmp_path / "m.onnx", **{"shape": [1, 3, 4, 40, 48], **make}), **values)
    with pytest.raises(QualityError, match=message) as caught:
        stage.setup()
    assert "\n" not in str(caught.value)


def test_onnx_scores_that_are_too_many(tmp_path: Path, spec: ClipSpec) -> None:
    stage = settings(exported(tmp_path / "m.onnx", [1, 3, 4, 40, 48], keep=(1,)))
    with pytest.raises(QualityError, match=r"is float32 \(3,\), expected one number"):
        verdict(stage, spec)


def test_onnx_files_that_are_none(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime", reason="needs the extra onnx")
    with pytest.raises(FileNotFoundError):
        settings(tmp_path / "none.onnx").setup()
    (tmp_path / "text.onnx").write_text("not a model")
    with pytest.raises(QualityError, match="cannot be loaded"):
        settings(tmp_path / "text.onnx").setup()


def test_onnx_weights_outside_the_folder_are_not_read(tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx", reason="needs the extra onnx")
    file = exported(tmp_path / "m.onnx", [1, 3, 4, 40, 48])
    model = onnx.load(file)
    secret = tmp_path / "secret.bin"
    secret.write_bytes(np.float32(0.5).tobytes())
    (tmp_path / "inside").mkdir()
    weight = next(tensor for tensor in model.graph.initializer if tensor.name == "divisor0")
    weight.ClearField("float_data")
    weight.data_location = onnx.TensorProto.EXTERNAL
    weight.external_data.add(key="location", value="../secret.bin")
    (tmp_path / "inside" / "m.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(QualityError, match="cannot be loaded"):
        settings(tmp_path / "inside" / "m.onnx").setup()


def test_onnx_without_onnxruntime_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    (tmp_path / "m.onnx").write_bytes(b"")
    with pytest.raises(ImportError, match=r"pip install 'hummingbird-t2v\[onnx\]'"):
        settings(tmp_path / "m.onnx").setup()


# A head on CLIP

CLIP: dict[str, Any] = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 32, "patch_size": 8, "head_width": 16},
    "text_cfg": {"context_length": 8, "vocab_size": 64, "width": 16, "heads": 2, "layers": 1},
}


def mlp(dim: int = 16) -> torch.nn.Sequential:
    """The layout of the public predictor, with its dropout."""
    torch.manual_seed(3)
    return torch.nn.Sequential(
        torch.nn.Linear(dim, 8),
        torch.nn.Dropout(0.2),
        torch.nn.Linear(8, 4),
        torch.nn.Dropout(0.1),
        torch.nn.Linear(4, 2),
        torch.nn.Linear(2, 1),
    ).eval()


def save_mlp(path: Path, head: torch.nn.Sequential | None = None, lift: float = 5.0) -> torch.nn.Sequential:
    head = mlp() if head is None else head
    head[-1].bias.data += lift
    torch.save({f"layers.{name}": value for name, value in head.state_dict().items()}, path)
    return head


@pytest.fixture
def clip_folder(tmp_path: Path) -> Path:
    """A real open_clip model made tiny, as a folder."""
    import open_clip

    folder = tmp_path / "clip"
    folder.mkdir()
    (folder / "open_clip_config.json").write_text(
        json.dumps({"model_cfg": CLIP, "preprocess_cfg": {"mean": [0.5] * 3, "std": [0.5] * 3}})
    )
    torch.manual_seed(1)
    model = open_clip.create_model(f"local-dir:{folder}", load_weights=False)
    save_file(
        {name: value.contiguous() for name, value in model.state_dict().items()},
        folder / "open_clip_model.safetensors",
    )
    return folder


def test_clip_aesthetic_is_the_head_on_open_clips_own_features(
    clip_folder: Path, tmp_path: Path, spec: ClipSpec, caplog: pytest.LogCaptureFixture
) -> None:
    import open_clip
    import PIL.Image

    head = save_mlp(tmp_path / "head.pth")
    files = ClipAestheticConfig(checkpoint=clip_folder, head=tmp_path / "head.pth", num_frames=3)
    stage = QualityConfig(model="clip-aesthetic", clip_aesthetic=files)
    caplog.clear()
    found = verdict(stage, spec).scores
    assert "No pretrained weights" not in caplog.text
    model, transform = open_clip.create_model_from_pretrained(f"local-dir:{clip_folder}")
    images = Clip(spec, stage.views).frames(stage.views[0]).images
    assert len(images) == 3
    with torch.inference_mode():
        pixels = torch.stack([transform(PIL.Image.fromarray(image)) for image in images])
        expected = float(head(model.eval().encode_image(pixels, normalize=True)).mean())
    assert found["quality_clip_aesthetic"] == pytest.approx(expected, abs=1e-5)
    assert found["quality"] == found["quality_aesthetic"] == pytest.approx(expected / 10, abs=1e-6)


def test_clip_aesthetic_from_a_file_and_a_linear_head(
    clip_folder: Path, tmp_path: Path, spec: ClipSpec
) -> None:
    import open_clip

    (tmp_path / "tiny-test.json").write_text(json.dumps(CLIP))
    open_clip.add_model_config(tmp_path / "tiny-test.json")
    linear = torch.nn.Linear(16, 1)
    linear.bias.data.fill_(4.0)
    torch.save(linear.state_dict(), tmp_path / "linear.pth")
    model = open_clip.create_model(f"local-dir:{clip_folder}")
    torch.save(
        {"state_dict": {f"module.{k}": v for k, v in model.state_dict().items()}}, tmp_path / "clip.pt"
    )
    files = ClipAestheticConfig(
        checkpoint=tmp_path / "clip.pt", model="tiny-test", head=tmp_path / "linear.pth"
    )
    found = verdict(QualityConfig(model="clip-aesthetic", clip_aesthetic=files), spec).scores
    assert 0.3 < found["quality_aesthetic"] < 0.5


def test_clip_aesthetic_files_that_do_not_fit(clip_folder: Path, tmp_path: Path) -> None:
    import open_clip

    def refused(message: str, **values: Any) -> None:
        files = ClipAestheticConfig(**{"checkpoint": clip_folder, "head": tmp_path / "head.pth", **values})
        with pytest.raises(QualityError, match=message):
            QualityConfig(model="clip-aesthetic", clip_aesthetic=files).setup()

    save_mlp(tmp_path / "head.pth", mlp(12))
    refused("takes 12 features, .* makes 16")
    save_mlp(tmp_path / "head.pth")
    refused("which open_clip does not know", checkpoint=tmp_path / "head.pth", model="no-such")
    wide = {**CLIP, "vision_cfg": {**CLIP["vision_cfg"], "width": 48}}
    (tmp_path / "tiny-wide.json").write_text(json.dumps(wide))
    open_clip.add_model_config(tmp_path / "tiny-wide.json")
    weights = clip_folder / "open_clip_model.safetensors"
    refused(r"is not tiny-wide: .* of the picture tower differ", checkpoint=weights, model="tiny-wide")
    config = clip_folder / "open_clip_config.json"
    config.write_text(json.dumps({"model_cfg": {**CLIP, "text_cfg": {"hf_model_name": "somewhere/else"}}}))
    refused("would be downloaded")
    config.write_text("[" * 5000)
    refused("is no configuration of open_clip")
    config.write_text(json.dumps({"model_cfg": CLIP}))
    (clip_folder / "open_clip_model.safetensors").unlink()
    refused("has none of open_clip_model.safetensors")


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({}, "does not end in one number"),
        ({"weight": torch.zeros(2, 4), "bias": torch.zeros(2)}, "does not end in one number"),
        ({"weight": torch.zeros(1, 4)}, "layer 0 is no linear layer"),
        (
            {"weight": torch.zeros(1, 4), "bias": torch.zeros(1), "fc.weight": torch.zeros(1)},
            "holds 'fc.weight'",
        ),
        ({"weight": torch.full((1, 4), math.nan), "bias": torch.zeros(1)}, "expected finite weight"),
        (
            {
                "layers.0.weight": torch.zeros(3, 4),
                "layers.0.bias": torch.zeros(3),
                "layers.2.weight": torch.zeros(1, 2),
                "layers.2.bias": torch.zeros(1),
            },
            "layer 2 takes 2 numbers, the one before makes 3",
        ),
    ],
)
def test_heads_that_are_none(tensors: dict[str, torch.Tensor], message: str) -> None:
    with pytest.raises(QualityError, match=message):
        linear_head(tensors, "head")


# All of them


def test_values_outside_the_range_are_not_cut_off() -> None:
    assert to_unit(3.0, 1.0, 5.0, "x") == 0.5
    for value in (0.99, 5.01, math.nan, math.inf):
        with pytest.raises(QualityError, match=r"^x is "):
            to_unit(value, 1.0, 5.0, "x")


def test_a_run_puts_scores_and_failures_into_the_manifest(
    tiny_config: Callable[..., PipelineConfig], tmp_path: Path
) -> None:
    """Clips out of the model's declared range are error rows; the others go by their score."""
    file = exported(tmp_path / "m.onnx", SHAPES["NCTHW"], outputs=("all", "half"))
    model = ("--quality.model", "onnx", "--quality.onnx.file", str(file), "--quality.onnx.output", "all")
    size = ("--quality.onnx.num-frames", "4", "--quality.onnx.height", "40", "--quality.onnx.width", "48")
    plain = ("--quality.onnx.mean", "0", "0", "0", "--quality.onnx.std", "1", "1", "1")
    named = ("--quality.onnx.technical-output", "half")

    def rows(output: str, *flags: str) -> dict[str, ClipRecord]:
        config = tiny_config(*model, *size, *plain, *named, *flags, output=tmp_path / output)
        run(config)
        return {row.clip_id: row for row in read_manifest(tmp_path / output / "manifest.parquet")}

    free = rows("free")
    scored = {name: row.scores["quality"] for name, row in free.items() if "quality" in row.scores}
    assert len(scored) == 6
    assert all(free[name].scores["quality_technical"] == pytest.approx(scored[name] / 2) for name in scored)
    limit = sorted(scored.values())[3]
    bounded = rows("bounded", "--quality.onnx.high", str(limit))
    assert bounded.keys() == free.keys()
    for name, score in scored.items():
        row = bounded[name]
        if score > limit:
            assert (row.status, row.reason) == ("error", "quality: QualityError")
            assert "set low and high" in row.detail
            assert "quality" not in row.scores
        else:
            assert row.scores["quality"] == pytest.approx(score / limit)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"model": "dover"}, "model dover needs quality.dover.checkpoint"),
        ({"model": "dover-mobile"}, "model dover-mobile needs quality.dover.checkpoint"),
        ({"model": "onnx"}, "model onnx needs quality.onnx.file"),
        ({"model": "clip-aesthetic"}, "model clip-aesthetic needs quality.clip_aesthetic.checkpoint"),
        ({"min_technical": 0.5}, "min_technical chooses by quality_technical, which nano-vqa does not give"),
        ({"onnx": {"low": 1.0}}, "low must be below high"),
        ({"onnx": {"std": (1, 0, 1)}}, "three numbers above 0"),
        ({"clip_aesthetic": {"high": -1.0}}, "low must be below high"),
    ],
)
def test_settings_without_what_they_need_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        QualityConfig(**values)
