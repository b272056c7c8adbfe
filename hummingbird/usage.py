"""The words that the ``hummingbird`` command understands; what they do is in ``hummingbird.cli``."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from hummingbird import __version__, runtime, video_io
from hummingbird.compilation import COMPILE_MODES
from hummingbird.quantization import QUANTIZATIONS

__all__ = ["Verb", "build_parser"]

Verb = Callable[[argparse.Namespace], dict[str, Any]]
"""Runs one command; its answer is what ``--json`` prints."""


def _count(text: str) -> int:
    try:
        value = int(text)
    except ValueError:
        value = 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"got {text!r}, expected a whole number from 1")
    return value


def _seed(text: str) -> int:
    try:
        value = int(text)
    except ValueError:
        value = -1
    if not 0 <= value < 2**63:
        raise argparse.ArgumentTypeError(f"got {text!r}, expected a whole number from 0")
    return value


def _number(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise argparse.ArgumentTypeError(f"got {text!r}, expected a number")
    return value


def _positive(text: str) -> float:
    value = _number(text)
    if value <= 0:
        raise argparse.ArgumentTypeError(f"got {text!r}, expected a number above 0")
    return value


def _rate(text: str) -> float:
    value = _number(text)
    if not 0 < value <= 1000:
        raise argparse.ArgumentTypeError(f"got {text!r}, expected frames per second above 0, up to 1000")
    return value


def _prompt(text: str) -> str:
    if not text.strip():
        raise argparse.ArgumentTypeError("got an empty prompt, expected a description of the video")
    return text


def _named_path(text: str) -> tuple[str, str | None]:
    name, _, path = text.partition("=")
    if not name:
        raise argparse.ArgumentTypeError(f"got {text!r}, expected NAME or NAME=PATH")
    return name, path or None


def _bucket(text: str) -> tuple[int, int, int]:
    numbers = text.lower().split("x")
    if len(numbers) != 3 or not all(
        number.isascii() and number.isdigit() and int(number) for number in numbers
    ):
        raise argparse.ArgumentTypeError(f"got {text!r}, expected FRAMESxHEIGHTxWIDTH such as 16x320x512")
    frames, height, width = map(int, numbers)
    return frames, height, width


def _port(text: str) -> int:
    if not (text.isascii() and text.isdigit() and int(text) < 65536):
        raise argparse.ArgumentTypeError(f"got {text!r}, expected a port from 0 to 65535")
    return int(text)


def _video_path(text: str) -> Path:
    path = Path(text)
    if path.suffix.lower() not in video_io.SUFFIXES:
        expected = ", ".join(video_io.SUFFIXES)
        raise argparse.ArgumentTypeError(f"got {text!r}, expected a name that ends in one of {expected}")
    return path


def _png_path(text: str) -> Path:
    path = Path(text)
    if path.suffix.lower() != ".png":
        raise argparse.ArgumentTypeError(f"got {text!r}, expected a name that ends in .png")
    return path


def _add_common(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--json", action="store_true", help="print one JSON object as the last line of stdout"
    )
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")


def _add_model(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--model", default="nano", help="nano (embedded), a diffusers folder or a hub id (default: nano)"
    )
    _add_device(parser)


def _add_device(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--device",
        default="auto",
        help="auto, cpu, cuda, cuda:N or mps (default: auto, a GPU where there is one)",
    )
    parser.add_argument(
        "--dtype",
        default="auto",
        choices=runtime.DTYPES,
        help="precision (default: auto, float16 on a GPU, else float32)",
    )


def _add_size(parser: argparse.ArgumentParser) -> None:
    own = "(default: the model's own)"
    parser.add_argument("--frames", type=_count, help=f"frames per video {own}")
    parser.add_argument("--height", type=_count, help=f"pixels {own}")
    parser.add_argument("--width", type=_count, help=f"pixels {own}")


def _add_quantize(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--quantize",
        default="none",
        choices=QUANTIZATIONS,
        help="linear layers of the U-Net in 8 bits: stored so (int8, fp8), or multiplied so too (-dynamic; "
        "fp8-dynamic needs a card that can); needs torchao (default: none)",
    )


def _add_compile(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--compile",
        default="none",
        choices=COMPILE_MODES,
        help="torch.compile: blocks makes kernels for each kind of block, once, and keeps them on disk; "
        "graphs replays the whole U-Net on a GPU (default: none)",
    )


def _add_config(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--config",
        type=Path,
        metavar="FILE_OR_FOLDER",
        help="JSON file, or model folder, of options that the tensors' shapes do not tell",
    )


def _shard(text: str) -> str:
    index, _, count = text.partition("/")
    if not (index.isascii() and index.isdigit() and count.isascii() and count.isdigit()) or not (
        int(index) < int(count) <= 100_000
    ):
        raise argparse.ArgumentTypeError(f"got {text!r}, expected INDEX/COUNT such as 0/4")
    return text


def _add_vbench(parser: argparse.ArgumentParser) -> None:
    only = parser.add_argument_group("for --suite vbench")
    only.add_argument("--dimensions", nargs="+", metavar="NAME", help="which to score (default: all 16)")
    only.add_argument("--samples", type=_count, default=5, help="videos of each prompt (default: 5)")
    only.add_argument(
        "--rewritten", type=Path, metavar="FILE", help="JSON, original prompt to the wording for the model"
    )
    only.add_argument(
        "--shard", type=_shard, default="0/1", help="INDEX/COUNT: this process's part of the videos"
    )
    only.add_argument(
        "--vbench-python",
        type=Path,
        metavar="PATH",
        help="interpreter of an environment with the vbench package (default: nothing is scored)",
    )
    only.add_argument(
        "--vbench-device",
        default="auto",
        choices=["auto", "cuda", "cpu"],
        help="of the scorers (default: auto)",
    )
    only.add_argument(
        "--score-timeout", type=_count, default=21600, help="seconds for one dimension (default: 21600)"
    )


def build_parser(run: Mapping[str, Verb], suites: Sequence[str]) -> argparse.ArgumentParser:
    """The whole command line; nothing heavy is imported.

    Args:
        run: what each verb does.
        suites: what ``evaluate --suite`` can be.
    """
    parser = argparse.ArgumentParser(
        prog="hummingbird", description="Text to video in few steps.", allow_abbrev=False
    )
    parser.add_argument("--version", action="version", version=f"hummingbird {__version__}")
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="COMMAND")

    make = verbs.add_parser("generate", help="make videos from prompts", allow_abbrev=False)
    make.set_defaults(run=run["generate"])
    make.add_argument(
        "prompts", nargs="+", type=_prompt, metavar="PROMPT", help="what to show; several make several"
    )
    _add_model(make)
    own = "(default: the model's own)"
    make.add_argument(
        "--decoder",
        help="small decoder in the autoencoder's place: nano, or the folder or hub id of an AutoencoderTiny "
        "such as TAESD (default: the model's own)",
    )
    make.add_argument(
        "--memory",
        default="auto",
        choices=runtime.MEMORY_MODES,
        help="none: all of the model on the device; fp8: the U-Net stored in 8 bits; model: one network at a "
        "time on the GPU; group: one layer at a time (default: auto, model where memory is short, else none)",
    )
    _add_quantize(make)
    _add_compile(make)
    _add_size(make)
    make.add_argument("--steps", type=_count, help=f"denoising steps {own}")
    make.add_argument("--guidance-scale", type=_number, help=f"how strictly the prompt is followed {own}")
    make.add_argument("--fps", type=_rate, help=f"frames per second {own}")
    make.add_argument(
        "--negative-prompt", help="what to keep out (models with classifier-free guidance only)"
    )
    make.add_argument("--num-videos", type=_count, default=1, help="videos of each prompt (default: 1)")
    make.add_argument(
        "--seed", type=_seed, default=0, help="of the first video; each further one adds 1 (default: 0)"
    )
    make.add_argument(
        "--out",
        type=_video_path,
        default=Path("outputs/video.mp4"),
        help="FILE.mp4, .gif, .webm or .png (contact sheet); numbered where several are made "
        "(default: outputs/video.mp4)",
    )
    make.add_argument(
        "--contact-sheet", type=_png_path, help="FILE.png that shows frames of every video made"
    )
    _add_common(make)

    judge = verbs.add_parser("evaluate", help="measure how well a model follows prompts", allow_abbrev=False)
    judge.set_defaults(run=run["evaluate"], usage_error=judge.error)
    judge.add_argument(
        "--model",
        action="append",
        metavar="MODEL[@STEPS]",
        help="nano (embedded), a diffusers folder or a hub id; repeat to compare several, each with steps of "
        "its own where they are given (default: nano)",
    )
    _add_device(judge)
    judge.add_argument("--suite", required=True, choices=suites, help="what to measure on")
    judge.add_argument(
        "--num-prompts",
        type=_count,
        help="of moving-shapes and metrics (default: 512, half unseen), of vbench (default: all)",
    )
    judge.add_argument(
        "--videos",
        type=Path,
        action="append",
        metavar="FOLDER",
        help="metrics: videos to measure, with prompts in .txt files beside them; repeat for several",
    )
    judge.add_argument(
        "--prompts",
        type=Path,
        metavar="FILE_OR_FOLDER",
        help="metrics: a prompt a line for --model (default: prompts of the moving-shapes world); vbench: "
        "VBench_full_info.json or a folder with it or with prompts_per_dimension/ (default: that of an "
        "installed package)",
    )
    judge.add_argument(
        "--reward",
        type=_named_path,
        action="append",
        default=[],
        metavar="NAME=PATH",
        help="metrics: score videos against their prompts, such as hpsv2=PATH; repeat for several",
    )
    judge.add_argument(
        "--features",
        type=_named_path,
        action="append",
        default=[],
        metavar="NAME=PATH",
        help="metrics: Frechet distances over features of a reward, or of a model's autoencoder (vae=MODEL)",
    )
    judge.add_argument(
        "--reference",
        metavar="FOLDER",
        help="metrics: videos that the others are compared with, or moving-shapes for clips of that world",
    )
    judge.add_argument("--steps", type=_count, help=f"denoising steps {own}")
    judge.add_argument("--guidance-scale", type=_number, help=f"how strictly the prompt is followed {own}")
    judge.add_argument("--seed", type=_seed, default=0, help="of prompts and noise (default: 0)")
    judge.add_argument(
        "--batch-size", type=_count, help="videos at once (default: 16 on a GPU, else 4; for vbench 1)"
    )
    judge.add_argument(
        "--workers",
        type=_count,
        default=1,
        help="processes that share the CPU's cores; figures do not depend on it (default: 1)",
    )
    judge.add_argument(
        "--to", type=Path, required=True, help="folder for report.json, report.html and videos"
    )
    _add_vbench(judge)
    _add_common(judge)

    pick = verbs.add_parser(
        "compare",
        help="let people choose between the videos of two models, blind, and test what they chose",
        allow_abbrev=False,
    )
    pick.set_defaults(run=run["compare"], usage_error=pick.error)
    pick.add_argument(
        "sides",
        nargs="*",
        metavar="A B",
        help="two of: nano (embedded), a diffusers folder, a hub id, or a folder of videos, which belong to "
        "the prompts in the order of their names; @STEPS after a model sets its steps",
    )
    pick.add_argument("--prompts", type=Path, metavar="FILE", help="a prompt a line")
    pick.add_argument("--num-prompts", type=_count, help="only so many of them, from the first on")
    pick.add_argument("--steps", type=_count, help=f"denoising steps {own}")
    pick.add_argument("--guidance-scale", type=_number, help=f"how strictly the prompt is followed {own}")
    pick.add_argument("--seed", type=_seed, default=0, help="of noise, order and sides (default: 0)")
    pick.add_argument("--batch-size", type=_count, help="videos at once (default: 16 on a GPU, else 4)")
    pick.add_argument("--workers", type=_count, default=1, help="processes that make videos (default: 1)")
    _add_device(pick)
    pick.add_argument(
        "--results",
        type=Path,
        nargs="+",
        metavar="FILE",
        help="answers that people downloaded from the page; writes report.json and report.html",
    )
    pick.add_argument("--to", type=Path, help="folder of the page; with --results, where its key.json lies")
    _add_common(pick)

    show = verbs.add_parser(
        "inspect", help="say what a checkpoint file or model folder holds", allow_abbrev=False
    )
    show.set_defaults(run=run["inspect"])
    show.add_argument("path", type=Path, metavar="FILE_OR_FOLDER", help="nothing in it is run")
    _add_config(show)
    _add_common(show)

    turn = verbs.add_parser(
        "convert", help="turn a checkpoint file into a diffusers folder, or back", allow_abbrev=False
    )
    turn.set_defaults(run=run["convert"])
    turn.add_argument("path", type=Path, metavar="FILE_OR_FOLDER", help="what to read; nothing in it is run")
    turn.add_argument(
        "--to",
        type=Path,
        required=True,
        help="new FILE.ckpt, .pt, .pth or .safetensors in the original's layout; any other name is a folder",
    )
    turn.add_argument(
        "--base", type=Path, help="file or folder that has what the file lacks: needed under a LoRA"
    )
    turn.add_argument(
        "--dtype",
        default="keep",
        choices=["keep", *runtime.DTYPES[1:]],
        help="precision of the result (default: keep, that of the file)",
    )
    turn.add_argument(
        "--time-cond-proj",
        default="random",
        choices=["random", "zeros"],
        help="what stands in for the guidance projection under unet_lora.pt, which does not hold it "
        "(default: random, as in the original's application)",
    )
    turn.add_argument("--seed", type=_seed, default=0, help="of that random draw (default: 0)")
    _add_config(turn)
    _add_common(turn)

    cut = verbs.add_parser(
        "prune", help="make a smaller model of a model, by a plan or a search", allow_abbrev=False
    )
    cut.set_defaults(run=run["prune"], usage_error=cut.error)
    _add_model(cut)
    how = cut.add_mutually_exclusive_group(required=True)
    how.add_argument("--plan", help="0.9b, 0.7b, or a YAML file that names the blocks that stay")
    how.add_argument(
        "--search", action="store_true", help="find the plan under a budget that raises the loss least"
    )
    budget = cut.add_mutually_exclusive_group()
    budget.add_argument("--budget-parameters", help="of the U-Net: a share (0.55) or a number")
    budget.add_argument("--budget-flops", help="of one forward pass: a share or a number")
    budget.add_argument("--budget-latency", help="of one forward pass here: a share, or 120ms or 1.5s")
    cut.add_argument(
        "--granularity",
        default="layers",
        choices=["layers", "blocks"],
        help="what a search may drop: whole blocks as the published students did, or single layers too "
        "(default: layers)",
    )
    cut.add_argument(
        "--data",
        help="what a search measures the loss on: moving-shapes (default for embedded models), a folder of "
        "videos with captions in .txt files, or a .safetensors file of latents",
    )
    cut.add_argument("--num-clips", type=_count, default=16, help="clips of it (default: 16)")
    cut.add_argument("--seed", type=_seed, default=0, help="of clips and noise (default: 0)")
    cut.add_argument(
        "--no-timing", action="store_true", help="count parameters and FLOPs, but do not measure time"
    )
    cut.add_argument("--to", type=Path, required=True, help="new folder for the model, its plan and reports")
    _add_common(cut)

    heat = verbs.add_parser(
        "warmup",
        help="pay for the kernels of one size, once, before the first video",
        allow_abbrev=False,
    )
    heat.set_defaults(run=run["warmup"])
    _add_model(heat)
    _add_size(heat)
    heat.add_argument("--guidance-scale", type=_number, help=f"as it will be given to generate {own}")
    _add_compile(heat)
    _add_common(heat)

    ship = verbs.add_parser(
        "export", help="write a model as ONNX graphs or compiled packages, as a folder", allow_abbrev=False
    )
    ship.set_defaults(run=run["export"])
    ship.add_argument(
        "--model", default="nano", help="nano (embedded), a diffusers folder or a hub id (default: nano)"
    )
    ship.add_argument(
        "--format",
        required=True,
        choices=["aoti", "onnx"],
        help="aoti: code compiled for this machine; onnx: graphs for ONNX Runtime",
    )
    ship.add_argument("--target", required=True, choices=["cpu", "cuda", "rocm"], help="where it will run")
    ship.add_argument(
        "--dtype",
        default="float32",
        choices=["float32", "float16", "bfloat16", "int8", "int8-dynamic"],
        help="precision (default: float32); int8 stores weights in 8 bits, int8-dynamic also multiplies in 8 "
        "bits (both for onnx only; bfloat16 for aoti only)",
    )
    ship.add_argument(
        "--bucket",
        action="append",
        type=_bucket,
        metavar="FRAMESxHEIGHTxWIDTH",
        help="size of the videos, such as 16x320x512; repeat for several (default: the model's own)",
    )
    ship.add_argument("--to", type=Path, required=True, help="new folder; then: generate --model FOLDER")
    _add_common(ship)

    host = verbs.add_parser(
        "serve",
        help="answer requests for videos over HTTP, as OpenAI's clients send them",
        allow_abbrev=False,
    )
    host.set_defaults(run=run["serve"])
    host.add_argument(
        "--model",
        action="append",
        help="nano (embedded), a diffusers folder or a hub id; repeat for several, of which one at a time is "
        "loaded, the first from the start (default: nano)",
    )
    host.add_argument("--device", default="auto", help="as for generate (default: auto)")
    host.add_argument("--dtype", default="auto", choices=runtime.DTYPES, help="precision (default: auto)")
    host.add_argument(
        "--host", default="127.0.0.1", help="address to listen on (default: this machine alone)"
    )
    host.add_argument(
        "--port", type=_port, default=8000, help="to listen on; 0 takes a free one (default: 8000)"
    )
    host.add_argument(
        "--data",
        type=Path,
        default=Path("outputs/serve"),
        help="folder for jobs and videos, of this server alone (default: outputs/serve)",
    )
    host.add_argument(
        "--api-key-file",
        type=Path,
        metavar="FILE",
        help="one key a line, KEY or NAME:KEY; HUMMINGBIRD_API_KEY gives a single one (default: none needed)",
    )
    host.add_argument(
        "--limits", type=Path, metavar="FILE.yaml", help="how much is taken and kept (docs/serving.md)"
    )
    host.add_argument(
        "--max-batch",
        type=_count,
        default=1,
        help="videos at once where several of one shape wait: faster, but not bit-equal to generate "
        "(default: 1)",
    )
    host.add_argument(
        "--allowed-host",
        action="append",
        default=[],
        metavar="NAME",
        help="further name in requests' Host headers, such as that of a proxy; repeat for several",
    )
    host.add_argument("--no-page", action="store_true", help="the API alone, without the page")
    _add_common(host)

    guess = verbs.add_parser(
        "plan",
        help="say what a training recipe, or a video, will need in memory and time",
        description="With CONFIG: peak memory and hours of a training. Without: what videos of --model need, "
        "and what to switch on for which card.",
        allow_abbrev=False,
    )
    guess.set_defaults(run=run["plan"], usage_error=guess.error)
    guess.add_argument("config", nargs="?", type=Path, metavar="CONFIG.yaml", help="a training recipe")
    guess.add_argument("--gpus", type=_count, help="that share the training (default: 1)")
    guess.add_argument(
        "--device",
        default="auto",
        choices=["auto", "cpu", "gpu"],
        help="what the training will run on (default: auto, a GPU where --gpus is given or one is here)",
    )
    guess.add_argument(
        "--tflops", type=_positive, help="TFLOP/s that one device is known to reach in the training"
    )
    guess.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="plan with another value of a setting, such as student.lora_rank=0 or rewards.0.dtype=float32; "
        "repeat for several",
    )
    guess.add_argument(
        "--model",
        default="hummingbird-0.7b",
        help="videos of: hummingbird-0.7b, hummingbird-0.9b, videocrafter2, nano or a folder "
        "(default: hummingbird-0.7b)",
    )
    guess.add_argument("--decoder", help="tiny (TAESD's network), or a folder (default: the model's own)")
    guess.add_argument("--dtype", default="float16", choices=runtime.DTYPES[1:], help="(default: float16)")
    _add_size(guess)
    guess.add_argument("--steps", type=_count, help=f"denoising steps {own}")
    _add_common(guess)

    race = verbs.add_parser(
        "bench",
        help="time a model on this machine, part by part, against what the device could do",
        allow_abbrev=False,
    )
    race.set_defaults(run=run["bench"])
    which = race.add_mutually_exclusive_group()
    which.add_argument("--model", help="nano (embedded) or a diffusers folder (default: nano)")
    which.add_argument(
        "--config",
        choices=["hummingbird-0.7b", "hummingbird-0.9b", "videocrafter2"],
        help="a published network with random weights: time does not depend on them",
    )
    race.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N (default: auto)")
    race.add_argument("--dtype", default="auto", choices=runtime.DTYPES, help="(default: auto)")
    race.add_argument("--decoder", help="tiny (TAESD's network), or a folder (default: the model's own)")
    _add_quantize(race)
    _add_compile(race)
    race.add_argument("--repeats", type=_count, default=10, help="runs of each part (default: 10)")
    race.add_argument("--no-end-to-end", action="store_true", help="leave out the run of a whole video")
    _add_size(race)
    race.add_argument("--steps", type=_count, help=f"denoising steps {own}")
    _add_common(race)

    look = verbs.add_parser("doctor", help="say what this machine can run", allow_abbrev=False)
    look.set_defaults(run=run["doctor"])
    _add_common(look)
    return parser
