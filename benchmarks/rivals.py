"""What would a user run instead, and how long does it take here? Last line JSON.

    python benchmarks/rivals.py [--only NAME]           # a GPU: full-size configurations, random weights
    python benchmarks/rivals.py --small-videos          # a CPU: the same networks, all steps, small videos
    python benchmarks/rivals.py --reduced               # does it run? The same classes with a few layers

Pipelines, networks and schedulers are diffusers' own and run as their model cards say, from embedded prompts:
text encoders, billions of parameters for some, are left out. Our rows are in benchmarks/inference.py.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import (
    AnimateDiffPipeline,
    AutoencoderKL,
    AutoencoderKLLTXVideo,
    AutoencoderKLWan,
    FlowMatchEulerDiscreteScheduler,
    LCMScheduler,
    LTXPipeline,
    LTXVideoTransformer3DModel,
    UNetMotionModel,
    UniPCMultistepScheduler,
    WanPipeline,
    WanTransformer3DModel,
)
from torch import nn

from hummingbird import runtime
from hummingbird.ceilings import Stopwatch
from hummingbird.evaluation.report import environment, peak_memory_mb

SMALL_SIZE = 128


@dataclass(frozen=True, kw_only=True)
class Rival:
    """A pipeline and the call that it is known for; ``small_frames`` of 128x128 make a small video."""

    build: Callable[[bool], Any]
    call: dict[str, Any]
    small_frames: int
    text: tuple[int, int]
    reduced_text: tuple[int, int]
    fps: float
    source: str
    has_negative: bool = False
    has_mask: bool = False


def animatediff(reduced: bool) -> Any:
    """Stable Diffusion 1.5 with motion modules: the defaults of the class, but for the text's width."""
    options: dict[str, Any] = {"cross_attention_dim": 768, "use_motion_mid_block": True}
    vae: dict[str, Any] = {"block_out_channels": (128, 256, 512, 512), "layers_per_block": 2}
    if reduced:
        options |= {
            "block_out_channels": (32, 32, 64, 64),
            "norm_num_groups": 8,
            "motion_num_attention_heads": 4,
            "num_attention_heads": 4,
            "cross_attention_dim": 32,
        }
        vae = {"block_out_channels": (8, 8, 8, 8), "layers_per_block": 1, "norm_num_groups": 4}
    levels = {"down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4}
    return AnimateDiffPipeline(
        vae=AutoencoderKL(**vae, **levels),
        text_encoder=None,  # type: ignore[arg-type]
        tokenizer=None,  # type: ignore[arg-type]
        unet=UNetMotionModel(**options),
        motion_adapter=None,  # type: ignore[arg-type]
        scheduler=LCMScheduler(beta_schedule="linear"),  # type: ignore[arg-type]
    )


def wan(reduced: bool) -> Any:
    """Wan2.1 T2V 1.3B: 30 layers of 12 x 128."""
    options: dict[str, Any] = {"num_attention_heads": 12, "num_layers": 30, "ffn_dim": 8960}
    vae: dict[str, Any] = {}
    if reduced:
        options = {"num_attention_heads": 2, "attention_head_dim": 16, "num_layers": 2, "ffn_dim": 64,
                   "text_dim": 32}  # fmt: skip
        vae = {"base_dim": 8}
    return WanPipeline(
        tokenizer=None,  # type: ignore[arg-type]
        text_encoder=None,  # type: ignore[arg-type]
        transformer=WanTransformer3DModel(**options),
        vae=AutoencoderKLWan(**vae),
        scheduler=UniPCMultistepScheduler(  # type: ignore[arg-type]
            prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=8.0
        ),
    )


def ltx(reduced: bool) -> Any:
    """LTX-Video 2B: the defaults of the classes."""
    options: dict[str, Any] = {}
    vae: dict[str, Any] = {}
    if reduced:
        options = {
            "num_attention_heads": 2,
            "attention_head_dim": 16,
            "num_layers": 2,
            "cross_attention_dim": 32,
            "caption_channels": 32,
        }
        vae = {"block_out_channels": (8, 8, 8, 8), "decoder_block_out_channels": (8, 8, 8, 8),
               "layers_per_block": (1, 1, 1, 1, 1), "decoder_layers_per_block": (1, 1, 1, 1, 1)}  # fmt: skip
    return LTXPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
        vae=AutoencoderKLLTXVideo(**vae),
        text_encoder=None,  # type: ignore[arg-type]
        tokenizer=None,  # type: ignore[arg-type]
        transformer=LTXVideoTransformer3DModel(**options),
    )


RIVALS = {
    "animatelcm": Rival(
        build=animatediff,
        call={"num_frames": 16, "height": 512, "width": 512, "num_inference_steps": 4, "guidance_scale": 2.0},
        small_frames=8,
        text=(77, 768),
        reduced_text=(77, 32),
        fps=8.0,
        source="AnimateLCM, guidance 2 of its card: two passes per step",
        has_negative=True,
    ),
    "animatediff-4-step": Rival(
        build=animatediff,
        call={"num_frames": 16, "height": 512, "width": 512, "num_inference_steps": 4, "guidance_scale": 1.0},
        small_frames=8,
        text=(77, 768),
        reduced_text=(77, 32),
        fps=8.0,
        source="AnimateDiff distilled to four steps without guidance",
    ),
    "wan2.1-1.3b": Rival(
        build=wan,
        call={"num_frames": 81, "height": 480, "width": 832, "num_inference_steps": 4, "guidance_scale": 1.0},
        small_frames=9,
        text=(512, 4096),
        reduced_text=(16, 32),
        fps=16.0,
        source="Wan2.1-T2V-1.3B distilled to four steps without guidance",
    ),
    "ltx-video": Rival(
        build=ltx,
        call={
            "num_frames": 121,
            "height": 480,
            "width": 704,
            "num_inference_steps": 8,
            "guidance_scale": 1.0,
        },
        small_frames=9,
        text=(128, 4096),
        reduced_text=(16, 32),
        fps=24.0,
        source="LTX-Video 2B distilled, eight steps without guidance",
        has_mask=True,
    ),
}


def time_rival(
    name: str,
    rival: Rival,
    device: torch.device,
    dtype: torch.dtype,
    repeats: int,
    reduced: bool,
    small_videos: bool,
) -> Any:
    torch.manual_seed(0)
    pipe = rival.build(reduced)
    networks = [part for part in pipe.components.values() if isinstance(part, nn.Module)]
    for network in networks:
        nn.Module.to(network, device, dtype).eval()
    pipe.set_progress_bar_config(disable=True)
    call = dict(rival.call)
    if small_videos or reduced:
        call |= {"num_frames": rival.small_frames, "height": SMALL_SIZE, "width": SMALL_SIZE}
    tokens, width = rival.reduced_text if reduced else rival.text
    embeds = torch.zeros(1, tokens, width, device=device, dtype=dtype)
    call["prompt_embeds"] = embeds
    if rival.has_negative:
        call["negative_prompt_embeds"] = embeds
    if rival.has_mask:
        call["prompt_attention_mask"] = torch.ones(1, tokens, device=device, dtype=torch.bool)
    watch = Stopwatch(device)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    seconds = {}
    for kind in ("latent", "pt"):
        runs = watch.median(lambda kind=kind: pipe(**call, output_type=kind), repeats)
        seconds[kind] = statistics.median(runs)
    peak = (
        torch.cuda.max_memory_allocated(device) / 1e9
        if device.type == "cuda"
        else peak_memory_mb(device) / 1e3
    )
    length_s = call["num_frames"] / rival.fps
    plain = {key: value for key, value in call.items() if not isinstance(value, torch.Tensor)}
    return {
        "name": name,
        "source": rival.source,
        "parameters": sum(p.numel() for network in networks for p in network.parameters()),
        "call": plain,
        "denoise_s": seconds["latent"],
        "decode_s": seconds["pt"] - seconds["latent"],
        "video_s": seconds["pt"],
        "seconds_per_second_of_video": seconds["pt"] / length_s,
        "peak_memory_gb": peak,
    }


def main() -> None:
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=formatter)
    parser.add_argument("--only", choices=RIVALS)
    parser.add_argument("--device", default="auto")
    parser.add_argument(
        "--dtype", default="auto", choices=runtime.DTYPES, help="(default: bfloat16 on a GPU)"
    )
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--small-videos", action="store_true")
    parser.add_argument("--reduced", action="store_true")
    arguments = parser.parse_args()
    device = runtime.resolve_device(arguments.device)
    wanted = "bfloat16" if arguments.dtype == "auto" and device.type == "cuda" else arguments.dtype
    dtype = runtime.resolve_dtype(wanted, device)
    rows = []
    for name in [arguments.only] if arguments.only else RIVALS:
        row = time_rival(
            name, RIVALS[name], device, dtype, arguments.repeats, arguments.reduced, arguments.small_videos
        )
        print(  # noqa: T201
            f"{name}: denoise {row['denoise_s']:.3f} s, decode {row['decode_s']:.3f} s, "
            f"{row['seconds_per_second_of_video']:.3f} s per second of video, {row['parameters']:,} weights",
            flush=True,
        )
        rows.append(row)
    facts = environment(device, str(dtype).removeprefix("torch."))
    size = {"reduced": arguments.reduced, "small_videos": arguments.small_videos}
    print(json.dumps({**size, "rows": rows, "environment": facts}))  # noqa: T201


if __name__ == "__main__":
    main()
