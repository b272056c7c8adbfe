"""Write an exported folder: trace, convert, compare with PyTorch, describe."""

from __future__ import annotations

import copy
import importlib.metadata
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from hummingbird import __version__
from hummingbird.export.components import Runner
from hummingbird.export.manifest import (
    DTYPES,
    FORMATS,
    TARGETS,
    Bucket,
    ExportedGraph,
    ExportError,
    ExportManifest,
    describe_file,
    write_manifest,
)
from hummingbird.export.parts import Part, list_parts, steady_layout, trace
from hummingbird.pipelines import HummingbirdPipeline

__all__ = ["FLOAT32_TOLERANCE", "export_pipeline"]

FLOAT32_TOLERANCE = 1e-3
"""Largest absolute difference from PyTorch that a float32 part may have."""

_CHECK_BATCHES = (1, 3)  # neither is the batch that was traced
_CARD = """# Exported Hummingbird model

Made by `hummingbird export` (Hummingbird {version}): {format} for {target}, {dtype}; videos of {buckets}
(frames x height x width).

```bash
hummingbird generate --model FOLDER "a red circle moving right on a black background"
```

`export.json` says how it was made, on which machine, how far each part is from PyTorch, and the checksum of
every file. Licence: that of the weights which it was made from.{trust}
"""
_TRUST = """

The `.pt2` files are native code: loading this folder runs it. Load it only where you trust who made it.
"""


def export_pipeline(
    pipe: HummingbirdPipeline,
    folder: Path,
    *,
    format: str,
    target: str,
    dtype: str = "float32",
    buckets: Sequence[Bucket] = (),
    external_bytes: int | None = None,
    progress: Callable[[str], None] = lambda line: None,
) -> tuple[ExportManifest, dict[str, Any]]:
    """Write a pipeline's parts as graphs that run without their Python code.

    Args:
        pipe: in float32, on the CPU; unchanged.
        folder: exists and is empty; ``hummingbird.pruning.surgery.new_folder`` makes one that is whole or
            absent.
        format: ``onnx`` or ``aoti``.
        target: ``cpu``, ``cuda`` or ``rocm``. ONNX for any target is written anywhere; AOTInductor compiles
            on the target machine.
        dtype: one of ``DTYPES``: ``int8`` and ``int8-dynamic`` are ONNX's, ``bfloat16`` is AOTInductor's.
        buckets: sizes of the videos; the model's default where none is given.
        external_bytes: size of weights from which ONNX keeps them in a file beside the graph.
        progress: gets a line for every graph.

    Returns:
        What ``export.json`` says, and the operator report (ONNX; empty for AOTInductor).

    Raises:
        ExportError: format, target, dtype, sizes and machine do not go together; or a float32 part is further
            than ``FLOAT32_TOLERANCE`` from PyTorch.
        ImportError: the extra ``[onnx]`` is missing.
    """
    _check_request(format, target, dtype)
    sizes = _check_buckets(pipe, list(buckets))
    if format == "onnx":
        graphs, operators, opset = _build_onnx(pipe, folder, target, dtype, sizes, external_bytes, progress)
    else:
        graphs, operators, opset = _build_aoti(pipe, folder, target, dtype, sizes, progress), {}, None
    _save_rest(pipe, folder, format, target, dtype, sizes)
    names = {name for graph in graphs for name in (graph.file, graph.weights) if name}
    from hummingbird.export.aoti_format import describe_machine

    manifest = ExportManifest(
        format=format,  # type: ignore[arg-type]
        target=target,  # type: ignore[arg-type]
        dtype=dtype,  # type: ignore[arg-type]
        opset=opset,
        versions=_versions(),
        machine=describe_machine(target if format == "aoti" else "cpu"),
        configs=_configs(pipe),
        graphs=tuple(graphs),
        files=tuple(describe_file(folder / name) for name in sorted(names)),
    )
    if operators:
        (folder / "operators.json").write_text(json.dumps(operators, indent=2) + "\n", encoding="utf-8")
    write_manifest(manifest, folder)
    return manifest, operators


def _check_request(format: str, target: str, dtype: str) -> None:
    for name, value, known in (
        ("format", format, FORMATS),
        ("target", target, TARGETS),
        ("dtype", dtype, DTYPES),
    ):
        if value not in known:
            raise ExportError(f"{name}: got {value!r}, expected one of {', '.join(known)}")
    if format == "onnx" and dtype == "bfloat16":
        raise ExportError(
            "dtype: got bfloat16, which few of ONNX Runtime's kernels take; expected float16 or int8"
        )
    if format == "aoti" and dtype.startswith("int8"):
        raise ExportError(
            f"dtype: got {dtype}, which is for --format onnx; expected float32, float16 or bfloat16"
        )


def _check_buckets(pipe: HummingbirdPipeline, buckets: list[Bucket]) -> list[Bucket]:
    if not buckets:
        call = pipe.default_call
        sizes = {name: int(call[name]) for name in ("num_frames", "height", "width")}
        buckets = [Bucket(**sizes)]
    for bucket in buckets:
        call = {**pipe.default_call, "num_frames": bucket.num_frames}
        pipe.check_inputs(
            "", bucket.num_frames, bucket.height, bucket.width, call["fps"], 1, 1.0, 1, "np"
        )  # a multiple of what the model asks for
    return list({str(bucket): bucket for bucket in buckets}.values())


# --- the two formats ----------------------------------------------------------------------------------------


def _build_onnx(
    pipe: HummingbirdPipeline,
    folder: Path,
    target: str,
    dtype: str,
    buckets: list[Bucket],
    external_bytes: int | None,
    progress: Callable[[str], None],
) -> tuple[list[ExportedGraph], dict[str, Any], int]:
    from hummingbird.export import onnx_format, operators

    onnx_format.require_packages()
    opset = onnx_format.choose_opset(target)
    limit = onnx_format.EXTERNAL_DATA_BYTES if external_bytes is None else external_bytes
    graphs, reports = [], {}
    with steady_layout(pipe, channels_last=False):
        for part in list_parts(pipe, buckets):
            start_s = time.perf_counter()
            path = folder / f"{part.file_stem}.onnx"
            weights = onnx_format.write_graph(trace(part), part.inputs, path, opset, dtype, limit)
            build_s = time.perf_counter() - start_s
            # numbers are compared on the CPU, which every ONNX Runtime has
            run = onnx_format.OnnxRunner(path, onnx_format.choose_providers("cpu"))
            difference = _compare(part, run, dtype)
            graphs.append(_graph(part, path, weights, difference, build_s))
            model = onnx_format.check_graph_file(path, weights and weights.name)
            reports[path.name] = operators.report(model, target)
            progress(_line(graphs[-1]))
    return graphs, {"source": operators.source(target), "graphs": reports}, opset


def _build_aoti(
    pipe: HummingbirdPipeline,
    folder: Path,
    target: str,
    dtype: str,
    buckets: list[Bucket],
    progress: Callable[[str], None],
) -> list[ExportedGraph]:
    from hummingbird.export import aoti_format

    aoti_format.require_compiler(target)
    device = torch.device("cpu" if target == "cpu" else "cuda")
    built, graphs = pipe, []
    if dtype != "float32" or device.type != "cpu":
        parts = {name: copy.deepcopy(pipe.components[name]) for name in ("text_encoder", "unet", "vae")}
        built = HummingbirdPipeline(**{**pipe.components, **parts}, default_call=pipe.config.default_call)
        built.to(device, getattr(torch, dtype))
    reference = {part.file_stem: part for part in list_parts(pipe, buckets)}
    for part in list_parts(built, buckets):
        start_s = time.perf_counter()
        path = folder / f"{part.file_stem}.pt2"
        aoti_format.compile_package(trace(part), path)
        build_s = time.perf_counter() - start_s
        run = aoti_format.AotiRunner(path)
        difference = _compare(reference[part.file_stem], _cast(run, part), dtype)
        graphs.append(_graph(part, path, None, difference, build_s))
        progress(_line(graphs[-1]))
    return graphs


def _cast(run: Runner, part: Part) -> Runner:
    """Give a runner inputs on its own device and in its own dtypes."""

    def cast(inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        return run({name: value.to(part.inputs[name]) for name, value in inputs.items()}).cpu()

    return cast


def _compare(part: Part, run: Runner, dtype: str) -> float:
    """Return the largest absolute difference from PyTorch's float32, over batches that were not traced.

    Raises:
        ExportError: a float32 graph does not compute what PyTorch does.
    """
    difference = 0.0
    for seed, batch_size in enumerate(_CHECK_BATCHES):
        inputs = part.example(batch_size, seed)
        with torch.no_grad():
            expected = part.module(**inputs).float()
        difference = max(difference, (run(inputs).float() - expected).abs().max().item())
    if dtype == "float32" and not difference <= FLOAT32_TOLERANCE:
        raise ExportError(
            f"{part.file_stem}: differs from PyTorch by {difference:.3g}, expected at most "
            f"{FLOAT32_TOLERANCE}: the conversion is wrong with these versions; see docs/export.md"
        )
    return difference


def _graph(part: Part, path: Path, weights: Path | None, difference: float, build_s: float) -> ExportedGraph:
    return ExportedGraph(
        part=part.name,  # type: ignore[arg-type]
        file=path.name,
        weights=None if weights is None else weights.name,
        bucket=part.bucket,
        inputs={name: ("batch", *value.shape[1:]) for name, value in part.inputs.items()},
        max_abs_difference=difference,
        build_s=round(build_s, 2),
    )


def _line(graph: ExportedGraph) -> str:
    return f"{graph.file}: {graph.build_s:.1f} s, within {graph.max_abs_difference:.2g} of PyTorch"


# --- the rest of the folder ---------------------------------------------------------------------------------


def _configs(pipe: HummingbirdPipeline) -> dict[str, dict[str, Any]]:
    """Return what the pipeline asks its parts for, as JSON holds it."""
    unet = pipe.unet.config
    vae = pipe.vae.config
    wanted = ("in_channels", "cross_attention_dim", "time_cond_proj_dim", "channel_mult", "fps_conditioning")
    return {
        "text_encoder": {},
        "unet": {
            **{name: _plain(unet[name]) for name in wanted},
            "pixels_per_latent": pipe.vae_scale_factor,
        },
        "vae": {
            name: _plain(vae.get(name))
            for name in ("block_out_channels", "latent_channels", "scaling_factor", "shift_factor")
        },
    }


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, (list, tuple)) else value


def _save_rest(
    pipe: HummingbirdPipeline, folder: Path, format: str, target: str, dtype: str, buckets: list[Bucket]
) -> None:
    """Save tokenizer, scheduler and call defaults as in any model folder, and a card."""
    card = _CARD.format(
        version=__version__,
        format=format,
        target=target,
        dtype=dtype,
        buckets=", ".join(map(str, buckets)),
        trust=_TRUST.rstrip() if format == "aoti" else "",
    )
    (folder / "README.md").write_text(card, encoding="utf-8")
    first = buckets[0]
    sizes = {"num_frames": first.num_frames, "height": first.height, "width": first.width}
    parts: dict[str, Any] = {**pipe.components, "vae": None, "text_encoder": None, "unet": None}
    rest = HummingbirdPipeline(**parts, default_call={**pipe.config.default_call, **sizes})
    rest.save_pretrained(folder)
    (folder / "pipeline.py").unlink()  # other loaders would not find the parts


def _versions() -> dict[str, str]:
    versions = {"hummingbird": __version__}
    for name in ("torch", "diffusers", "transformers", "onnx", "onnxruntime", "onnxscript"):
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions
