"""ONNX: conversion of a trace, smaller variants of it, and a session that runs it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from hummingbird.export.manifest import ExportError, ExportManifest

if TYPE_CHECKING:
    import onnx

__all__ = [
    "EXTERNAL_DATA_BYTES",
    "OnnxRunner",
    "check_graph_file",
    "choose_opset",
    "choose_providers",
    "open_graph",
    "quantize_weights",
    "require_packages",
    "shrink_graph",
    "write_graph",
]

EXTERNAL_DATA_BYTES = 256 * 1024**2
"""Weights above this go to a file beside the graph; above 2 GB a graph cannot hold them anyway."""

# torch.onnx has translations of its own up to here; it makes later ones by conversion
_TORCH_NEWEST_OPSET = 23
# newest opset whose kernels the provider's published list has (operators.json); 19 is MIGraphX's own limit
_TARGET_NEWEST_OPSET = {"cpu": 23, "cuda": 23, "rocm": 19}
_PROVIDERS = {
    "cpu": (),
    "cuda": ("CUDAExecutionProvider",),
    "rocm": ("MIGraphXExecutionProvider", "ROCMExecutionProvider"),
}
_WHEELS = {"cuda": "onnxruntime-gpu", "rocm": "onnxruntime-migraphx (AMD's builds for ROCm)"}
_DOMAINS = {"", "ai.onnx", "com.microsoft"}
_GRAPH_OUTPUT = "output"
# sums over many values stay in float32, as in PyTorch's own half-precision kernels
_KEPT_FLOAT32 = ("GroupNormalization", "LayerNormalization", "InstanceNormalization", "Softmax", "ReduceMean")
_KEPT_FLOAT32_TRIGONOMETRY = ("Sin", "Cos")  # a timestep near 1000 has no fraction in float16
_LEAST_QUANTIZED_VALUES = 1024
_NO_LIMIT = 1 << 40  # of the size of what is folded


def require_packages() -> None:
    """See that the optional packages are there.

    Raises:
        ImportError: naming the extra.
    """
    import importlib.util

    missing = [
        name for name in ("onnx", "onnxruntime", "onnxscript") if importlib.util.find_spec(name) is None
    ]
    if missing:
        raise ImportError(
            f"ONNX needs {', '.join(missing)}, not installed: pip install 'hummingbird-t2v[onnx]'"
        )


# --- write --------------------------------------------------------------------------------------------------


def choose_opset(target: str) -> int:
    """Return the newest opset that torch writes, the target's kernels have and this ONNX Runtime takes."""
    import onnxruntime
    from onnx import TensorProto, helper

    for opset in range(min(_TORCH_NEWEST_OPSET, _TARGET_NEWEST_OPSET[target]), 17, -1):
        value = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in ("a", "b")]
        graph = helper.make_graph([helper.make_node("Identity", ["a"], ["b"])], "probe", value[:1], value[1:])
        imports = [helper.make_opsetid("", opset)]
        model = helper.make_model(graph, opset_imports=imports, ir_version=10)
        try:
            onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
        except onnxruntime.capi.onnxruntime_pybind11_state.Fail:
            continue
        return opset
    raise ExportError(
        f"onnxruntime {onnxruntime.__version__} takes no opset from 18: expected 1.20 or newer; upgrade it"
    )


def write_graph(
    program: Any, inputs: dict[str, torch.Tensor], path: Path, opset: int, dtype: str, external_bytes: int
) -> Path | None:
    """Convert a trace, shape-infer, check and write it.

    Args:
        program: the trace, in float32.
        inputs: its example.
        path: file to write.
        opset: of the graph.
        dtype: ``float32``, ``float16``, ``int8`` (weights alone are stored in 8 bits) or ``int8-dynamic``
            (matrix products also compute in 8 bits, their inputs scaled as they come).
        external_bytes: weights above this go to ``path`` + ``.data``.

    Returns:
        The file with the weights; None where they are inside.
    """
    import onnx

    with torch.no_grad():
        converted = torch.onnx.export(
            program,
            (),
            kwargs=inputs,
            dynamo=True,
            opset_version=opset,
            input_names=list(inputs),
            output_names=[_GRAPH_OUTPUT],
            optimize=False,
            verbose=False,
        )
    assert converted is not None
    _tidy(converted.model)
    size = sum(tensor.numel() * tensor.element_size() for tensor in program.state_dict.values())
    external = size > min(external_bytes, EXTERNAL_DATA_BYTES)
    converted.save(path, external_data=external)
    if dtype != "float32":
        shrink_graph(path, path, dtype, external)
    onnx.shape_inference.infer_shapes_path(path, path, data_prop=True)
    onnx.checker.check_model(path, full_check=True)
    return _data_file(path) if _data_file(path).exists() else None


def _tidy(model: Any) -> None:
    """Fold constants, transposed weights too, and drop what nobody uses, in place.

    torch's own ``optimize`` also matches dozens of rewrite rules at every node, which took most of the time
    of a conversion, for what ONNX Runtime does again when it loads the graph.
    """
    from onnx_ir.passes import common
    from onnxscript import optimizer

    optimizer.inline(model)
    optimizer.fold_constants(model, input_size_limit=_NO_LIMIT, output_size_limit=_NO_LIMIT)
    optimizer.remove_unused_nodes(model)
    common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    common.DeduplicateInitializersPass()(model)
    common.RemoveUnusedOpsetsPass()(model)
    common.OutputFixPass()(model)
    common.ClearMetadataAndDocStringPass()(model)  # a stack trace for every node


def shrink_graph(path: Path, to: Path, dtype: str, external: bool) -> None:
    """Write a float32 graph in ``float16``, ``int8`` or ``int8-dynamic``; inputs and outputs stay float32.

    Args:
        path: the graph.
        to: file to write; may be ``path``.
        dtype: as in ``write_graph``.
        external: whether weights go beside the graph.
    """
    import onnx

    model = onnx.load(path)
    if dtype == "int8-dynamic":
        model = _quantize_dynamic(model, to)
    elif dtype == "int8":
        quantize_weights(model)
    else:
        model = _to_float16(model, large=external)
    _save(model, to, external)


def _data_file(path: Path) -> Path:
    return path.with_name(path.name + ".data")


def _save(model: onnx.ModelProto, path: Path, external: bool) -> None:
    import onnx

    _data_file(path).unlink(missing_ok=True)  # the writer appends
    if external:
        onnx.save_model(
            model, path, save_as_external_data=True, location=_data_file(path).name, size_threshold=1024
        )
    else:
        onnx.save_model(model, path)


def _to_float16(model: onnx.ModelProto, large: bool) -> onnx.ModelProto:
    from onnxruntime.transformers import float16
    from onnxruntime.transformers.onnx_model import OnnxModel

    kept = [*float16.DEFAULT_OP_BLOCK_LIST, *_KEPT_FLOAT32, *_KEPT_FLOAT32_TRIGONOMETRY]
    # inputs and outputs stay float32: the sampler's arithmetic is
    converted = OnnxModel(
        float16.convert_float_to_float16(
            model, keep_io_types=True, op_block_list=kept, disable_shape_infer=large
        )
    )
    converted.topological_sort()  # the converter appends the casts of inputs
    del converted.model.graph.value_info[:]  # float32 in part; inferred again
    return converted.model


def _quantize_dynamic(model: onnx.ModelProto, path: Path) -> onnx.ModelProto:
    import onnx
    from onnxruntime.quantization import quantize_dynamic

    partial = path.with_name("quantized." + path.name)
    try:
        quantize_dynamic(
            model,
            partial,
            op_types_to_quantize=["MatMul", "Gemm"],
            per_channel=True,
            reduce_range=True,  # else sums of products overflow 16 bits on CPUs without VNNI
            use_external_data_format=True,
        )
        return onnx.load(partial)
    finally:
        partial.unlink(missing_ok=True)
        _data_file(partial).unlink(missing_ok=True)


def quantize_weights(model: onnx.ModelProto) -> int:
    """Store weights of convolutions and matrix products as int8 with one scale per output channel, in place.

    A ``DequantizeLinear`` gives the float back, so that the arithmetic stays what it was and only standard
    operators are needed: ``w ~ s * round(w / s)`` with ``s = max |w| / 127``.

    Args:
        model: with its weights in memory.

    Returns:
        How many tensors were quantized.

    Reference:
        Jacob et al., arXiv 1712.05877, section 2.1, symmetric (zero point 0).
    """
    from onnx import helper, numpy_helper

    graph = model.graph
    axes: dict[str, int] = {}
    for node in graph.node:
        for index, name in enumerate(node.input):
            last = node.op_type == "MatMul" and index == 1
            axes[name] = 1 if last else 0
    nodes = []
    for tensor in list(graph.initializer):
        if tensor.name not in axes:
            continue
        weight = numpy_helper.to_array(tensor)
        if weight.dtype != np.float32 or weight.ndim < 2 or weight.size < _LEAST_QUANTIZED_VALUES:
            continue
        axis = axes[tensor.name] if weight.ndim == 2 else 0
        others = tuple(index for index in range(weight.ndim) if index != axis)
        scale = np.abs(weight).max(axis=others, keepdims=True) / 127
        scale[scale == 0] = 1
        rounded = np.clip(np.rint(weight / scale), -127, 127).astype(np.int8)
        name = tensor.name
        graph.initializer.remove(tensor)
        graph.initializer.append(numpy_helper.from_array(rounded, f"{name}.int8"))
        graph.initializer.append(
            numpy_helper.from_array(scale.reshape(-1).astype(np.float32), f"{name}.scale")
        )
        inputs = [f"{name}.int8", f"{name}.scale"]
        nodes.append(
            helper.make_node("DequantizeLinear", inputs, [name], name=f"{name}.dequantize", axis=axis)
        )
    before = list(graph.node)
    del graph.node[:]
    graph.node.extend([*nodes, *before])
    return len(nodes)


# --- read and run -------------------------------------------------------------------------------------------


def choose_providers(target: str) -> list[str]:
    """Return ONNX Runtime's providers for a target, the CPU last.

    Raises:
        ExportError: the installed ONNX Runtime has no provider for it.
    """
    import onnxruntime

    available = onnxruntime.get_available_providers()
    wanted = _PROVIDERS[target]
    found = [name for name in wanted if name in available][:1]
    if wanted and not found:
        raise ExportError(
            f"the target is {target}, which needs {' or '.join(wanted)}, but onnxruntime "
            f"{onnxruntime.__version__} here has {', '.join(available)}: install {_WHEELS[target]}, or "
            "export with --target cpu"
        )
    return [*found, "CPUExecutionProvider"]


def check_graph_file(path: Path, weights: str | None) -> onnx.ModelProto:
    """Refuse a graph that reaches outside its folder or needs foreign code; return it without its weights.

    Raises:
        ExportError: not ONNX, weights in any file but ``weights``, or operators of an unknown domain.
    """
    import onnx
    from google.protobuf.message import DecodeError

    try:
        model = onnx.load(path, load_external_data=False)
    except DecodeError as error:
        raise ExportError(f"{path}: not an ONNX graph ({error}); export again") from error
    foreign = {entry.domain for entry in model.opset_import} - _DOMAINS
    foreign |= {node.domain for node in _nodes(model)} - _DOMAINS
    if foreign:
        raise ExportError(
            f"{path}: needs operators of {', '.join(sorted(foreign))}; expected only ONNX's and ONNX "
            "Runtime's own, since others would be foreign code"
        )
    for tensor in _tensors(model):
        if tensor.data_location != onnx.TensorProto.EXTERNAL:
            continue
        location = next((entry.value for entry in tensor.external_data if entry.key == "location"), "")
        if location != weights:
            raise ExportError(
                f"{path}: has weights in {location!r}; expected {weights or 'all of them inside'}, which "
                "export.json names"
            )
    return model


def _graphs(model: onnx.ModelProto) -> Iterator[Any]:
    """All graphs and functions, nested ones too."""
    stack: list[Any] = [model.graph, *model.functions]
    while stack:
        graph = stack.pop()
        yield graph
        for node in graph.node:
            for attribute in node.attribute:
                stack += [attribute.g] if attribute.HasField("g") else []
                stack += attribute.graphs


def _nodes(model: onnx.ModelProto) -> Iterator[onnx.NodeProto]:
    for graph in _graphs(model):
        yield from graph.node


def _tensors(model: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    for graph in _graphs(model):
        yield from getattr(graph, "initializer", ())
        for sparse in getattr(graph, "sparse_initializer", ()):
            yield from (sparse.values, sparse.indices)
        for node in graph.node:
            for attribute in node.attribute:
                if attribute.HasField("t"):
                    yield attribute.t
                yield from attribute.tensors


class OnnxRunner:
    """Runs one graph; tensors come and go on the CPU in float32, whatever the provider computes on.

    Args:
        path: of a graph that ``check_graph_file`` passed.
        providers: from ``choose_providers``.
    """

    def __init__(self, path: Path, providers: list[str]) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        self.session = onnxruntime.InferenceSession(path, options, providers=providers)
        self._names = {entry.name for entry in self.session.get_inputs()}

    def __call__(self, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        """Compute the output of named inputs."""
        arrays = {name: value.numpy(force=True) for name, value in inputs.items() if name in self._names}
        return torch.from_numpy(self.session.run(None, arrays)[0])


def open_graph(folder: Path, manifest: ExportManifest, file: str, weights: str | None) -> OnnxRunner:
    """Check a graph of a verified folder and make it ready to run."""
    providers = choose_providers(manifest.target)
    check_graph_file(folder / file, weights)
    return OnnxRunner(folder / file, providers)
