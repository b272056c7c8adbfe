"""Exported folders from elsewhere: what is refused, in one line. Graphs are small and made by hand."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import pydantic
import pytest
import torch

from hummingbird import runtime
from hummingbird.cli import main
from hummingbird.export import (
    Bucket,
    ExportError,
    ExportManifest,
    aoti_format,
    is_exported,
    onnx_format,
    read_manifest,
)
from hummingbird.export.components import load_parts
from hummingbird.export.manifest import ExportedGraph, describe_file, write_manifest
from hummingbird.export.operators import _covers, report

onnx = pytest.importorskip("onnx", reason="needs the extra [onnx]")
pytest.importorskip("onnxruntime", reason="needs the extra [onnx]")

BUCKET = Bucket(num_frames=2, height=16, width=16)


def identity(name: str, kind: int = 1, domain: str = "", operator: str = "Identity") -> Any:
    """A graph that gives its input back."""
    helper = onnx.helper
    values = [helper.make_tensor_value_info(entry, kind, None) for entry in (name, "output")]
    node = helper.make_node(operator, [name], ["output"], domain=domain)
    graph = helper.make_graph([node], "g", values[:1], values[1:])
    imports = [helper.make_opsetid("", 19), *([helper.make_opsetid(domain, 1)] if domain else [])]
    return helper.make_model(graph, opset_imports=imports, ir_version=10)


def write_folder(folder: Path, graphs: dict[str, Any] | None = None, **changes: Any) -> ExportManifest:
    """A folder whose U-Net and decoder give back what they get; its checksums are right."""
    folder.mkdir(parents=True, exist_ok=True)
    models = {
        "text_encoder": identity("input_ids", onnx.TensorProto.INT64),
        "unet": identity("sample"),
        "decoder": identity("latents"),
        **(graphs or {}),
    }
    entries = []
    for part, model in models.items():
        onnx.save(model, folder / f"{part}.onnx")
        bucket = None if part == "text_encoder" else BUCKET
        entries.append(
            ExportedGraph(
                part=part,  # type: ignore[arg-type]
                file=f"{part}.onnx",
                bucket=bucket,
                inputs={},
                max_abs_difference=0.0,
                build_s=0.0,
            )
        )
    values: dict[str, Any] = {
        "format": "onnx",
        "target": "cpu",
        "dtype": "float32",
        "opset": 19,
        "versions": {"torch": torch.__version__},
        "machine": aoti_format.describe_machine("cpu"),
        "configs": {
            "unet": {"pixels_per_latent": 2, "fps_conditioning": True},
            "vae": {"block_out_channels": [8, 8]},
        },
        "graphs": tuple(entries),
        "files": tuple(describe_file(folder / entry.file) for entry in entries),
    }
    manifest = ExportManifest(**{**values, **changes})
    write_manifest(manifest, folder)
    return manifest


def edit(folder: Path, **changes: Any) -> None:
    path = folder / "export.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_a_good_folder_is_read_back_and_runs(tmp_path: Path) -> None:
    manifest = write_folder(tmp_path)
    assert is_exported(tmp_path)
    assert read_manifest(tmp_path) == manifest
    assert manifest.buckets == [BUCKET]
    parts = load_parts(tmp_path)
    assert list(parts) == ["text_encoder", "unet", "vae"]
    sample = torch.randn(3, 4, 2, 8, 8)
    assert torch.equal(parts["unet"](sample, 5, torch.zeros(3, 1, 1))[0], sample)
    assert torch.equal(parts["vae"].decode(sample[:, :, 0])[0], sample[:, :, 0])
    assert list(load_parts(tmp_path, skip=("vae",))) == ["text_encoder", "unet"]


def test_another_size_is_one_line_that_says_which_there_are(tmp_path: Path) -> None:
    write_folder(tmp_path)
    parts = load_parts(tmp_path)
    with pytest.raises(ValueError, match=r"got 3x16x16 .* exported for 2x16x16"):
        parts["unet"](torch.zeros(1, 4, 3, 8, 8), 5, torch.zeros(1, 1, 1))
    with pytest.raises(ValueError, match=r"got 32x16 pixels.* exported for 16x16"):
        parts["vae"].decode(torch.zeros(1, 4, 16, 8))
    with pytest.raises(ValueError, match="LoRA layers cannot be weighed"):
        parts["unet"](torch.zeros(1, 4, 2, 8, 8), 5, torch.zeros(1, 1, 1), attention_kwargs={"scale": 1.0})


def test_a_part_stays_where_it_was_exported_for(tmp_path: Path) -> None:
    write_folder(tmp_path)
    unet = load_parts(tmp_path)["unet"]
    assert unet.to("cpu") is unet
    with pytest.raises(ValueError, match=r"device: got cuda.* runs on cpu"):
        unet.to("cuda")
    with pytest.raises(ValueError, match=r"dtype: got torch.float16"):
        unet.to(dtype=torch.float16)
    for device, dtype, words in (("cuda", "auto", "exported for cpu"), ("auto", "float16", "in float32")):
        with pytest.raises(ValueError, match=words):
            runtime.load_pipeline(str(tmp_path), device, dtype)


@pytest.mark.parametrize("name", ["../outside.onnx", "/etc/passwd", "a/b.onnx", ".hidden", ""])
def test_names_that_lead_outside_are_refused(tmp_path: Path, name: str) -> None:
    write_folder(tmp_path / "model")
    shutil.copy(tmp_path / "model" / "unet.onnx", tmp_path / "outside.onnx")
    files = json.loads((tmp_path / "model" / "export.json").read_text())["files"]
    files[0]["name"] = name
    edit(tmp_path / "model", files=files)
    with pytest.raises(ExportError, match="expected a plain name inside the folder"):
        read_manifest(tmp_path / "model")


def test_changed_missing_and_linked_files_are_refused(tmp_path: Path) -> None:
    write_folder(tmp_path)
    path = tmp_path / "unet.onnx"
    data = path.read_bytes()
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(ExportError, match=r"unet\.onnx: its checksum is not the one"):
        load_parts(tmp_path)
    path.write_bytes(data + b"x")
    with pytest.raises(ExportError, match=r"has \d+ bytes, expected"):
        load_parts(tmp_path)
    path.unlink()
    with pytest.raises(ExportError, match="missing or a link"):
        load_parts(tmp_path)
    (tmp_path / "elsewhere").write_bytes(data)
    path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ExportError, match="missing or a link"):
        load_parts(tmp_path)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"format_version": 2}, "format_version"),
        ({"surprise": 1}, "surprise"),
        ({"target": "tpu"}, "target"),
        ({"files": []}, "has no checksum"),
        ({"graphs": []}, "lacks decoder, text_encoder, unet"),
    ],
)
def test_a_wrong_description_is_one_line(tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    write_folder(tmp_path)
    edit(tmp_path, **changes)
    with pytest.raises(ExportError, match=words) as caught:
        read_manifest(tmp_path)
    assert "\n" not in str(caught.value)


def test_an_endless_description_is_not_read(tmp_path: Path) -> None:
    write_folder(tmp_path)
    with (tmp_path / "export.json").open("ab") as file:
        file.truncate(10**10)  # sparse
    with pytest.raises(ExportError, match="larger than"):
        read_manifest(tmp_path)


def external_model(location: str) -> Any:
    """A graph that adds a weight which lies in another file, here below a condition."""
    helper, kind = onnx.helper, onnx.TensorProto.FLOAT
    weight = onnx.TensorProto(name="w", data_type=kind, dims=[256], data_location=onnx.TensorProto.EXTERNAL)
    weight.external_data.add(key="location", value=location)
    out = helper.make_tensor_value_info("then", kind, None)
    node = helper.make_node("Identity", ["w"], ["then"])
    branch = helper.make_graph([node], "branch", [], [out], initializer=[weight])
    truth = helper.make_node(
        "Constant", [], ["c"], value=helper.make_tensor("t", onnx.TensorProto.BOOL, [], [True])
    )
    choice = helper.make_node("If", ["c"], ["output"], then_branch=branch, else_branch=branch)
    values = [helper.make_tensor_value_info(name, kind, None) for name in ("sample", "output")]
    graph = helper.make_graph([truth, choice], "g", values[:1], values[1:])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=10)


@pytest.mark.parametrize("location", ["../secret", "/etc/passwd", "other.data"])
def test_weights_outside_the_named_file_are_refused(tmp_path: Path, location: str) -> None:
    (tmp_path / "secret").write_bytes(bytes(1024))
    folder = tmp_path / "model"
    write_folder(folder)
    (folder / "unet.onnx").write_bytes(external_model(location).SerializeToString())
    manifest = json.loads((folder / "export.json").read_text())
    fresh = pydantic.TypeAdapter(list).dump_python(
        [dataclasses.asdict(describe_file(folder / file["name"])) for file in manifest["files"]]
    )
    edit(folder, files=fresh)
    with pytest.raises(ExportError, match="has weights in"):
        load_parts(folder)


def test_foreign_operators_are_refused(tmp_path: Path) -> None:
    write_folder(tmp_path, {"unet": identity("sample", domain="evil.ops", operator="Run")})
    with pytest.raises(ExportError, match=r"needs operators of evil\.ops"):
        load_parts(tmp_path)
    (tmp_path / "unet.onnx").write_bytes(b"\xff" * 64)
    with pytest.raises(ExportError, match="not an ONNX graph"):
        onnx_format.check_graph_file(tmp_path / "unet.onnx", None)


def test_a_provider_that_is_not_there_is_one_line(tmp_path: Path) -> None:
    import onnxruntime

    there = onnxruntime.get_available_providers()
    for target, provider, wheel in (
        ("cuda", "CUDAExecutionProvider", "onnxruntime-gpu"),
        ("rocm", "MIGraphXExecutionProvider", "onnxruntime-migraphx"),
    ):
        write_folder(tmp_path / target, target=target)
        if provider in there:
            continue
        with pytest.raises(ExportError, match=f"needs {provider}.*install {wheel}") as caught:
            load_parts(tmp_path / target)
        assert "\n" not in str(caught.value)


def test_code_of_another_machine_is_refused_before_it_is_loaded(tmp_path: Path) -> None:
    manifest = write_folder(tmp_path, format="aoti")
    aoti_format.check_machine(manifest, tmp_path)
    other = dataclasses.replace(manifest.machine, accelerator="AVX9000")
    with pytest.raises(ExportError, match=r"compiled for .*AVX9000, this is"):
        aoti_format.check_machine(dataclasses.replace(manifest, machine=other), tmp_path)
    with pytest.raises(ExportError, match=r"compiled for torch 1\.0\.0, this is"):
        aoti_format.check_machine(dataclasses.replace(manifest, versions={"torch": "1.0.0"}), tmp_path)
    if runtime.backend() != "rocm":
        with pytest.raises(ExportError, match="the target is rocm, but torch"):
            aoti_format.check_machine(dataclasses.replace(manifest, target="rocm"), tmp_path)


def test_requests_that_cannot_be_met_are_one_line(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails(*words: str) -> str:
        to = tmp_path / "out"
        assert main(["export", "--model", str(tiny_model), "--target", "cpu", "--to", str(to), *words]) == 1
        assert not to.exists()
        return capsys.readouterr().err.splitlines()[-1]

    assert "bfloat16" in fails("--format", "onnx", "--dtype", "bfloat16")
    assert "for --format onnx" in fails("--format", "aoti", "--dtype", "int8")
    assert "expected multiples of 4" in fails("--format", "onnx", "--bucket", "3x16x18")
    monkeypatch.setattr("shutil.which", lambda name: None)
    assert "no g++" in fails("--format", "aoti")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert "pip install 'hummingbird-t2v[onnx]'" in fails("--format", "onnx")


@pytest.mark.parametrize("words", [["--bucket", "16x64"], ["--bucket", "0x64x64"], ["--format", "tensorrt"]])
def test_bad_usage_is_status_2(words: list[str], tmp_path: Path) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["export", "--format", "onnx", "--target", "cpu", "--to", str(tmp_path / "x"), *words])
    assert caught.value.code == 2


def test_operators_are_judged_by_definition_and_version() -> None:
    assert _covers("13+", 13)
    assert not _covers("13+", 14)  # a newer definition needs a kernel of its own
    assert _covers("6-12", 9)
    assert _covers("13", 13)
    assert not _covers("13", 9)
    helper = onnx.helper
    nodes = [
        helper.make_node(name, ["x"], ["y"])
        for name in ("Sigmoid", "GroupNormalization", "DynamicQuantizeLinear", "STFT", "Constant")
    ]
    graph = helper.make_graph(
        [*nodes, helper.make_node("Own", ["x"], ["y"], domain="com.microsoft")], "g", [], []
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)])
    cuda = report(model, "cuda")
    assert cuda["supported"] == {"Constant": 1, "Sigmoid": 1}
    assert set(cuda["expanded"]) == {"GroupNormalization", "DynamicQuantizeLinear"}
    assert set(cuda["fallback"]) == {"STFT", "com.microsoft.Own"}
    rocm = report(model, "rocm")
    assert set(rocm["missing"]) == {"STFT"}
    assert rocm["supported"]["GroupNormalization"] == 1
    assert "GroupNormalization" in rocm["limits"]
    assert set(report(model, "cpu")["supported"]) == {
        "Constant",
        "DynamicQuantizeLinear",
        "GroupNormalization",
    } | {
        "STFT",
        "Sigmoid",
        "com.microsoft.Own",
    }
