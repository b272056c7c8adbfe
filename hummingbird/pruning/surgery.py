"""Make the smaller network: what stays is copied, name by name; the unpruned network is not touched."""

from __future__ import annotations

import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from diffusers.utils import is_peft_available

from hummingbird.config import save_config
from hummingbird.models import UNetSpatioTemporalModel
from hummingbird.pipelines import HummingbirdPipeline
from hummingbird.pruning.costs import Probe, measure_layers
from hummingbird.pruning.plan import PlanError, PruningPlan, load_plan
from hummingbird.pruning.report import AdapterReport, PruningReport, compare

__all__ = ["new_folder", "prune_pipeline", "prune_unet", "save_pruned", "student_of"]


def prune_unet(
    unet: UNetSpatioTemporalModel, plan: PruningPlan | str, probe: Probe | None = None
) -> tuple[UNetSpatioTemporalModel, PruningReport]:
    """Make the network that a plan leaves, with the weights it inherits.

    Low-rank adapters stay with the layers that stay, active, merged or trainable as they were; the report
    names the layers whose adapters went.

    Args:
        unet: the network to prune; unchanged. On the meta device the result is there too.
        plan: a plan, a published one's name (``0.9b``, ``0.7b``), or a YAML file.
        probe: what FLOPs and time are measured on; None reports parameters only.

    Returns:
        The pruned network, which shares no memory with the other, and what it costs before and after.

    Raises:
        PlanError: the plan does not fit this network, or an adapter is not a low-rank one.

    Reference:
        AMD Hummingbird, arXiv 2503.18559, section 3.1.
    """
    if isinstance(plan, str):
        plan = load_plan(plan, unet.config)
    student, adapters = _inherit(unet, plan, share_weights=False)
    before, after = measure_layers(unet, probe), measure_layers(student, probe)
    return student, compare(plan, before, after, adapters, probe, unet)


def student_of(unet: UNetSpatioTemporalModel, plan: PruningPlan) -> UNetSpatioTemporalModel:
    """Make the network that a plan leaves on the very tensors of ``unet``: a trial without a copy."""
    return _inherit(unet, plan, share_weights=True)[0]


def _inherit(
    unet: UNetSpatioTemporalModel, plan: PruningPlan, *, share_weights: bool
) -> tuple[UNetSpatioTemporalModel, dict[str, AdapterReport]]:
    config = plan.student_config(unet.config)
    with torch.device("meta"):
        student = UNetSpatioTemporalModel.from_config(config)
    adapters = _add_adapters(unet, student, plan)
    weights = unet.state_dict()
    inherited = {key: weights[plan.source_key(key)] for key in student.state_dict()}
    if not share_weights:
        inherited = {key: tensor.clone() for key, tensor in inherited.items()}
    student.load_state_dict(inherited, strict=True, assign=True)
    trained = {name: parameter.requires_grad for name, parameter in unet.named_parameters()}
    for name, parameter in student.named_parameters():
        parameter.requires_grad_(trained[plan.source_key(name)])
    student.train(unet.training)
    student.temporal_layers_enabled = unet.temporal_layers_enabled
    student.channels_last = unet.channels_last
    return student, adapters


# --- adapters ----------------------------------------------------------------------------------------------


def _add_adapters(
    unet: UNetSpatioTemporalModel, student: UNetSpatioTemporalModel, plan: PruningPlan
) -> dict[str, AdapterReport]:
    """Give the student the adapters of the layers that it keeps, still without weights."""
    configs: dict[str, Any] = getattr(unet, "peft_config", {})
    if not configs or not is_peft_available():
        return {}
    from peft import LoraConfig
    from peft.tuners.lora import LoraLayer

    layers = {name: module for name, module in unet.named_modules() if isinstance(module, LoraLayer)}
    kept = {name: plan.source_key(name) for name, _ in student.named_modules()}
    reports = {}
    for adapter, config in configs.items():
        if not isinstance(config, LoraConfig):
            raise PlanError(
                f"adapter {adapter!r} is {type(config).__name__}, expected LoraConfig; merge it into the "
                "weights or remove it before pruning"
            )
        before = {name: layer for name, layer in layers.items() if adapter in layer.r}
        after = {name: before[source] for name, source in kept.items() if source in before}
        gone = tuple(name for name in before if name not in set(kept.values()))
        reports[adapter] = AdapterReport(kept=len(after), dropped=gone)
        if not after:
            continue
        # every layer is named, so nothing is left to patterns that were written for other names
        student.add_adapter(
            replace(
                config,
                target_modules=list(after),
                exclude_modules=None,
                layers_to_transform=None,
                layers_pattern=None,
                rank_pattern={re.escape(name): layer.r[adapter] for name, layer in after.items()},
                alpha_pattern={re.escape(name): layer.lora_alpha[adapter] for name, layer in after.items()},
            ),
            adapter,
        )
    for name, module in student.named_modules():
        if isinstance(module, LoraLayer):
            source = layers[plan.source_key(name)]
            module.scaling = dict(source.scaling)
            module.set_adapter(list(source.active_adapters))
            module.enable_adapters(not source.disable_adapters)
            module.merged_adapters = list(source.merged_adapters)
    return reports


# --- pipelines ---------------------------------------------------------------------------------------------


def prune_pipeline(
    pipe: HummingbirdPipeline, plan: PruningPlan | str, probe: Probe | None = None
) -> tuple[HummingbirdPipeline, PruningReport]:
    """Make a pipeline around the pruned U-Net; the other parts and the call defaults are those of ``pipe``.

    Args:
        pipe: unchanged.
        plan: as in ``prune_unet``.
        probe: as in ``prune_unet``.
    """
    student, report = prune_unet(pipe.unet, plan, probe)
    parts = {**pipe.components, "unet": student}
    small = HummingbirdPipeline(**parts, default_call=pipe.config.default_call)
    small.origin = pipe.origin
    return small, report


def save_pruned(pipe: HummingbirdPipeline, plan: PruningPlan, report: dict[str, Any], folder: Path) -> None:
    """Write a pruned pipeline as users load it, with ``plan.yaml`` and ``pruning.json`` beside its parts.

    Args:
        pipe: from ``prune_pipeline``.
        plan: what it was made by.
        report: what JSON can hold.
        folder: exists; ``new_folder`` makes one that is whole or absent.
    """
    pipe.save_pretrained(folder)
    save_config(plan, folder / "plan.yaml")
    (folder / "pruning.json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """Give a folder beside ``folder`` that becomes it when the block ends well; otherwise nothing is left.

    Raises:
        FileExistsError: ``folder`` is a file, or has something in it: results are never overwritten.
    """
    if folder.is_file() or (folder.is_dir() and any(folder.iterdir())):
        raise FileExistsError(f"{folder}: exists and is not empty; give a new folder, or remove this one")
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}.", suffix=".part"))
    try:
        yield partial
        umask = os.umask(0)
        os.umask(umask)
        partial.chmod(0o777 & ~umask)
        partial.replace(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
