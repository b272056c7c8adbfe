"""Which operators of a graph a target's provider computes, by the provider's own published list.

``operators.json`` is that list, with its source and the day it was read. CUDA's names opset versions, and its
notation is kept: ``13+`` stands for the definition of opset 13 alone, for as long as no newer one exists.
MIGraphX names operators, and opset 19 as its limit.
"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import onnx

__all__ = ["report", "source"]

_LIST = Path(__file__).with_name("operators.json")
_MIGRAPHX_NEWEST_OPSET = 19
_FREE = {"Constant"}  # a value, which no provider computes


def source(target: str) -> dict[str, str]:
    """Say where the verdicts on a target come from, and of which day."""
    if target == "cpu":
        import onnxruntime

        return {
            "provider": "CPUExecutionProvider",
            "source": "not a list: every graph was run on it, where the export compares it with PyTorch",
            "version": f"onnxruntime {onnxruntime.__version__}",
        }
    entry = json.loads(_LIST.read_text(encoding="utf-8"))[target]
    return {name: entry[name] for name in ("provider", "source", "version", "read_on")}


def report(model: onnx.ModelProto, target: str) -> dict[str, Any]:
    """Sort a graph's operators by who computes them on a target.

    Args:
        model: a graph that runs on ONNX Runtime's CPU provider.
        target: ``cpu``, ``cuda`` or ``rocm``.

    Returns:
        ``supported``: number of nodes of each operator that the provider lists. ``expanded``: operators that
        it does not list, but that ONNX defines by simpler ones, which ONNX Runtime puts in their place.
        ``fallback``: those that ONNX Runtime computes on the CPU, with copies both ways. ``missing``: those
        that MIGraphX's list names as not supported (they fall back too). ``limits``: restrictions in the list
        on operators that are here.
    """
    counts = Counter((node.domain, node.op_type) for node in model.graph.node)
    opset = next(entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx"))
    answer: dict[str, Any] = {"supported": {}, "expanded": {}, "fallback": {}, "missing": {}, "limits": {}}
    entry = {} if target == "cpu" else json.loads(_LIST.read_text(encoding="utf-8"))[target]
    for (domain, name), count in sorted(counts.items()):
        verdict = "supported" if target == "cpu" else _judge(domain, name, opset, entry)
        answer[verdict][f"{domain}.{name}" if domain else name] = count
        if name in entry.get("limits", {}):
            answer["limits"][name] = entry["limits"][name]
    return answer


def _judge(domain: str, name: str, opset: int, entry: dict[str, Any]) -> str:
    import onnx

    if domain in ("", "ai.onnx") and name in _FREE:
        return "supported"
    if domain not in ("", "ai.onnx"):
        return "fallback"
    schema = onnx.defs.get_schema(name, opset)
    listed = entry["operators"]
    if isinstance(listed, dict):
        known = any(_covers(text, schema.since_version) for text in listed.get(name, ()))
    else:
        known = name in listed and opset <= _MIGRAPHX_NEWEST_OPSET
    if known:
        return "supported"
    if name in entry.get("missing", ()):
        return "missing"
    expands = schema.has_function or schema.has_context_dependent_function  # type: ignore[attr-defined]
    return "expanded" if expands else "fallback"


def _covers(text: str, version: int) -> bool:
    """Whether a kernel of ``13+``, ``13`` or ``6-12`` takes an operator as defined in ``version``."""
    if text.endswith("+"):
        return version == int(text[:-1])
    first, _, last = text.partition("-")
    return int(first) <= version <= int(last or first)
