"""How long does each judge take for a clip? Prints a line per judge, last line JSON.

python benchmarks/judges.py [--video FILE] [--seconds 4] [--repeats 2] [--judges dover,text] [--to FILE.json]

Networks have their full published size and random weights: the time does not depend on the weights, the
scores mean nothing. Times include decoding the frames that the judge looks at, and are the best of the
repeats, after one clip to warm up. CPU seconds are what a clip costs on a machine that is busy otherwise.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import resource
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch

from data_pipeline.clip import Clip, ClipSpec, Stage
from data_pipeline.dover.model import CONFIGS, Dover, DoverName
from data_pipeline.judges.clip_aesthetic import ClipAestheticConfig
from data_pipeline.judges.dover import DoverConfig
from data_pipeline.judges.onnx_model import OnnxConfig
from data_pipeline.stages.quality import QualityConfig
from data_pipeline.stages.text import TextConfig
from hummingbird.video_io import iter_frames, write_video

JUDGES = ("nano-vqa", "dover", "dover-mobile", "clip-aesthetic", "onnx", "text")
FPS = 24


def pan(num_frames: int) -> np.ndarray:
    """A pan over a random texture, 1280x720."""
    coarse = np.random.default_rng(0).uniform(20, 235, (90, 160 + num_frames // 2, 3)).astype(np.float32)
    texture = cv2.resize(coarse, (coarse.shape[1] * 8, 720), interpolation=cv2.INTER_CUBIC).clip(0, 255)
    return np.stack([texture[:, 4 * k : 4 * k + 1280] for k in range(num_frames)]).astype(np.uint8)


def spec_of(video: Path, seconds: float) -> ClipSpec:
    frames = list(iter_frames(video, start_s=0.0, end_s=seconds))
    span = {"start_s": 0.0, "end_s": seconds, "num_frames": len(frames), "fps": len(frames) / seconds}
    size = {"width": frames[0].width, "height": frames[0].height}
    return ClipSpec(clip_id=video.stem, source_id=video.name, path=video, **span, **size)


def dover_file(name: DoverName, folder: Path) -> Path:
    torch.manual_seed(0)
    model = Dover(**CONFIGS[name])
    for head in (model.technical_head, model.aesthetic_head):
        head.fc_last.weight.data *= 0.01
    torch.save(model.state_dict(), folder / f"{name}.pth")
    return folder / f"{name}.pth"


def clip_files(folder: Path) -> tuple[Path, Path]:
    import open_clip

    torch.manual_seed(0)
    tower = open_clip.create_model("ViT-L-14-quickgelu").visual
    torch.save({f"visual.{name}": value for name, value in tower.state_dict().items()}, folder / "clip.pt")
    head = {"weight": torch.zeros(1, 768), "bias": torch.tensor([5.0])}
    torch.save(head, folder / "head.pth")
    return folder / "clip.pt", folder / "head.pth"


def onnx_file(folder: Path) -> Path:
    from torchvision.models import resnet18

    torch.manual_seed(0)
    model = torch.nn.Sequential(resnet18(num_classes=1), torch.nn.Sigmoid()).eval()
    batch = torch.export.Dim("frames", min=1, max=64)
    torch.onnx.export(
        model,
        (torch.zeros(2, 3, 224, 224),),
        folder / "resnet18.onnx",
        dynamo=True,
        dynamic_shapes=({0: batch},),
        verbose=False,
    )
    return folder / "resnet18.onnx"


def stage_of(judge: str, folder: Path) -> Stage:
    if judge == "text":
        return TextConfig(model="rapidocr", max_area=None)
    if judge in ("dover", "dover-mobile"):
        name: DoverName = "dover" if judge == "dover" else "dover-mobile"
        return QualityConfig(model=name, dover=DoverConfig(checkpoint=dover_file(name, folder)))
    if judge == "clip-aesthetic":
        checkpoint, head = clip_files(folder)
        files = ClipAestheticConfig(checkpoint=checkpoint, head=head)
        return QualityConfig(model="clip-aesthetic", clip_aesthetic=files)
    if judge == "onnx":
        return QualityConfig(model="onnx", onnx=OnnxConfig(file=onnx_file(folder), layout="NCHW"))
    return QualityConfig()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--video", type=Path)
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--judges", default=",".join(JUDGES))
    parser.add_argument("--to", type=Path)
    args = parser.parse_args()
    times: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        video = args.video or write_video(pan(int(args.seconds * FPS)), folder / "pan.mp4", FPS)
        spec = spec_of(video, args.seconds)
        for judge in args.judges.split(","):
            stage = stage_of(judge, folder)
            started = time.perf_counter()
            stage.setup()
            setup_s = time.perf_counter() - started
            best, cpu_s = math.inf, math.inf
            for repeat in range(args.repeats + 1):
                started, started_cpu = time.perf_counter(), time.process_time()
                verdict = stage.process(Clip(spec, stage.views))
                if repeat:
                    best = min(best, time.perf_counter() - started)
                    cpu_s = min(cpu_s, time.process_time() - started_cpu)
            times[judge] = {
                "seconds_per_clip": round(best, 3),
                "cpu_seconds_per_clip": round(cpu_s, 3),
                "setup_s": round(setup_s, 2),
            }
            scores = {name: round(value, 3) for name, value in verdict.scores.items()}
            sys.stdout.write(
                f"{judge:15} {best:8.2f} s/clip, {cpu_s:8.2f} CPU s, setup {setup_s:6.2f} s, {scores}\n"
            )
            sys.stdout.flush()
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    clip = f"{spec.num_frames} frames of {spec.width}x{spec.height}"
    machine = {"machine": platform.machine(), "device": device, "threads": torch.get_num_threads()}
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    summary = {**machine, "torch": torch.__version__, "clip": clip, "peak_mib": round(peak), "judges": times}
    if args.to is not None:
        args.to.write_text(json.dumps(summary, indent=1) + "\n")
    sys.stdout.write(json.dumps(summary) + "\n")


if __name__ == "__main__":
    main()
