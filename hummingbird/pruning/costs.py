"""What every layer of a video U-Net costs: parameters, FLOPs, and seconds on this machine."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from diffusers.utils import is_peft_available
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from hummingbird.models import UNetSpatioTemporalModel
from hummingbird.models.blocks import PassThrough
from hummingbird.pruning.plan import TEMPORAL_CONV

if TYPE_CHECKING:
    from hummingbird.pipelines import HummingbirdPipeline

__all__ = ["OTHER", "Cost", "Probe", "measure_layers", "total"]

OTHER = "(joining)"
"""Time of a forward outside of every layer: skips are joined, frames laid out."""
MAX_TIMING_S = 60.0


@dataclass(frozen=True, kw_only=True)
class Probe:
    """The latent video that costs are counted and timed on.

    Args:
        num_frames: frames.
        height: of the latents.
        width: of the latents.
        num_tokens: text tokens.
        repeats: timed forward passes, of which the fastest counts, because other programs only ever add to
            it; 0 leaves the time out. No pass begins after ``MAX_TIMING_S``, except the first.
    """

    num_frames: int
    height: int
    width: int
    num_tokens: int = 77
    repeats: int = 5

    @staticmethod
    def of(pipe: HummingbirdPipeline, repeats: int = 5) -> Probe:
        """One video of the frames and size that a pipeline makes by default."""
        call, factor = pipe.default_call, pipe.vae_scale_factor
        return Probe(
            num_frames=int(call["num_frames"]),
            height=int(call["height"]) // factor,
            width=int(call["width"]) // factor,
            num_tokens=pipe.tokenizer.model_max_length,
            repeats=repeats,
        )

    def inputs(
        self, unet: UNetSpatioTemporalModel, device: torch.device | str
    ) -> dict[str, torch.Tensor | int]:
        """Arguments of one forward, drawn from seed 0."""
        config, generator = unet.config, torch.Generator().manual_seed(0)

        def draw(*shape: int) -> torch.Tensor:
            if str(device) == "meta":
                return torch.empty(shape, device="meta", dtype=unet.dtype)
            return torch.randn(shape, generator=generator).to(device, unet.dtype)

        inputs: dict[str, torch.Tensor | int] = {
            "sample": draw(1, config.in_channels, self.num_frames, self.height, self.width),
            "timestep": 500,
            "encoder_hidden_states": draw(1, self.num_tokens, config.cross_attention_dim),
        }
        if config.time_cond_proj_dim is not None:
            inputs["timestep_cond"] = draw(1, config.time_cond_proj_dim)
        return inputs


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What a part costs. FLOPs count a multiply-add as two; seconds are None where nothing was timed."""

    parameters: int = 0
    flops: int = 0
    latency_s: float | None = None


def total(costs: Iterable[Cost]) -> Cost:
    """Add costs up; the time of the sum is None where any part has none."""
    costs = list(costs)
    seconds = [cost.latency_s for cost in costs if cost.latency_s is not None]
    return Cost(
        parameters=sum(cost.parameters for cost in costs),
        flops=sum(cost.flops for cost in costs),
        latency_s=sum(seconds) if len(seconds) == len(costs) else None,
    )


def layers_of(unet: UNetSpatioTemporalModel) -> dict[str, nn.Module]:
    """Layers that costs are given for: entries of blocks, convolutions over frames apart, and the rest."""
    layers: dict[str, nn.Module] = {}
    for name, module in unet.named_children():
        if name not in ("input_blocks", "middle_block", "output_blocks"):
            layers[name] = module
            continue
        blocks = (
            {name: module}
            if name == "middle_block"
            else {f"{name}.{index}": block for index, block in enumerate(module.children())}
        )
        for block_name, block in blocks.items():
            for index, layer in enumerate(block.children()):
                if isinstance(layer, PassThrough):
                    continue
                layers[f"{block_name}.{index}"] = layer
                frames_conv = getattr(layer, TEMPORAL_CONV, None)
                if frames_conv is not None:
                    layers[f"{block_name}.{index}.{TEMPORAL_CONV}"] = frames_conv
    return layers


def measure_layers(unet: UNetSpatioTemporalModel, probe: Probe | None = None) -> dict[str, Cost]:
    """Give the cost of every layer; a residual block's is without its convolutions over frames.

    Args:
        unet: any network of the family; on the meta device nothing is timed.
        probe: what to run; None counts parameters only.

    Returns:
        Layer name -> cost, and ``OTHER`` -> what is left of the time. They add up to the network's.

    Raises:
        ValueError: the network cannot take the probe's size.
    """
    layers = layers_of(unet)
    costs = {name: Cost(parameters=count_parameters(layer)) for name, layer in layers.items()}
    if probe is not None:
        flops = _count_flops(unet, probe)
        costs = {name: replace(cost, flops=flops.get(name, 0)) for name, cost in costs.items()}
        if probe.repeats and unet.device.type != "meta":
            seconds = _time_layers(unet, layers, probe)
            costs = {name: replace(cost, latency_s=seconds[name]) for name, cost in costs.items()}
            costs[OTHER] = Cost(latency_s=seconds[OTHER])
    for name in layers:
        if name.endswith(f".{TEMPORAL_CONV}"):
            owner = name.removesuffix(f".{TEMPORAL_CONV}")
            costs[owner] = _without(costs[owner], costs[name])
    return costs


def count_parameters(module: nn.Module) -> int:
    """Parameters of a module, adapters left out."""
    names = _adapter_names(module)
    return sum(p.numel() for name, p in module.named_parameters() if not names & set(name.split(".")))


def _adapter_names(module: nn.Module) -> set[str]:
    """Names under which peft keeps the parameters of adapters inside the layers that it wraps."""
    if not is_peft_available():
        return set()
    from peft.tuners.tuners_utils import BaseTunerLayer

    wrapped = [layer for layer in module.modules() if isinstance(layer, BaseTunerLayer)]
    return {name for layer in wrapped for name in layer.adapter_layer_names}


def _without(whole: Cost, part: Cost) -> Cost:
    latency_s = None
    if whole.latency_s is not None and part.latency_s is not None:
        latency_s = max(0.0, whole.latency_s - part.latency_s)
    return Cost(
        parameters=whole.parameters - part.parameters,
        flops=whole.flops - part.flops,
        latency_s=latency_s,
    )


def _count_flops(unet: UNetSpatioTemporalModel, probe: Probe) -> dict[str, int]:
    with torch.device("meta"):
        shapes = UNetSpatioTemporalModel.from_config(dict(unet.config))
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        shapes(**probe.inputs(shapes, "meta"), return_dict=False)
    root = type(shapes).__name__
    return {
        name.removeprefix(f"{root}."): sum(operations.values())
        for name, operations in counter.get_flop_counts().items()
    }


def _time_layers(
    unet: UNetSpatioTemporalModel, layers: dict[str, nn.Module], probe: Probe
) -> dict[str, float]:
    """Fewest seconds inside each layer over the probe's repeats, after one forward that warms up."""
    inputs = probe.inputs(unet, unet.device)
    runs: dict[str, list[float]] = defaultdict(list)
    was_training = unet.training
    unet.eval()
    with torch.no_grad(), _stopwatches(layers, unet.device) as spent:
        started = time.perf_counter()
        for repeat in range(probe.repeats + 1):
            if repeat > 1 and time.perf_counter() - started > MAX_TIMING_S:
                break
            spent.clear()
            _wait(unet.device)
            began = time.perf_counter()
            unet(**inputs, return_dict=False)
            _wait(unet.device)
            whole = time.perf_counter() - began
            if repeat == 0:
                continue
            outer = sum(seconds for name, seconds in spent.items() if not name.endswith(TEMPORAL_CONV))
            for name in layers:
                runs[name].append(spent.get(name, 0.0))
            runs[OTHER].append(max(0.0, whole - outer))
    unet.train(was_training)
    return {name: min(seconds) for name, seconds in runs.items()}


@contextmanager
def _stopwatches(layers: dict[str, nn.Module], device: torch.device) -> Iterator[dict[str, float]]:
    """Add up the seconds spent inside each layer while the block runs."""
    spent: dict[str, float] = defaultdict(float)
    began: dict[str, float] = {}

    def start(name: str) -> Callable[..., None]:
        def hook(*_: object) -> None:
            _wait(device)
            began[name] = time.perf_counter()

        return hook

    def stop(name: str) -> Callable[..., None]:
        def hook(*_: object) -> None:
            _wait(device)
            spent[name] += time.perf_counter() - began[name]

        return hook

    handles = [layer.register_forward_pre_hook(start(name)) for name, layer in layers.items()]
    handles += [layer.register_forward_hook(stop(name)) for name, layer in layers.items()]
    try:
        yield spent
    finally:
        for handle in handles:
            handle.remove()


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
