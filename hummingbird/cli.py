"""The ``hummingbird`` command: thin verbs over library functions.

Exit status: 0 done, 1 failed (one line on stderr; ``--debug`` adds the traceback), 2 bad usage, 130 Ctrl-C.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

# Heavy libraries are imported by the verb that needs them, so that --help answers at once.
from hummingbird import __version__, nano, runtime, video_io

if TYPE_CHECKING:
    from hummingbird.pipelines import HummingbirdPipeline

__all__ = ["build_parser", "main"]

INTERRUPTED = 130


def _say(text: str) -> None:
    """One line for whoever watches; results go to stdout, everything else here."""
    sys.stderr.write(text + "\n")
    sys.stderr.flush()


def _answer(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


# --- usage --------------------------------------------------------------------------------------------------


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


def _rate(text: str) -> float:
    value = _number(text)
    if not 0 < value <= 1000:
        raise argparse.ArgumentTypeError(f"got {text!r}, expected frames per second above 0, up to 1000")
    return value


def _prompt(text: str) -> str:
    if not text.strip():
        raise argparse.ArgumentTypeError("got an empty prompt, expected a description of the video")
    return text


def _bucket(text: str) -> tuple[int, int, int]:
    numbers = text.lower().split("x")
    if len(numbers) != 3 or not all(
        number.isascii() and number.isdigit() and int(number) for number in numbers
    ):
        raise argparse.ArgumentTypeError(f"got {text!r}, expected FRAMESxHEIGHTxWIDTH such as 16x320x512")
    frames, height, width = map(int, numbers)
    return frames, height, width


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


def _add_config(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--config",
        type=Path,
        metavar="FILE_OR_FOLDER",
        help="JSON file, or model folder, of options that the tensors' shapes do not tell",
    )


def build_parser() -> argparse.ArgumentParser:
    """The whole command line; nothing heavy is imported."""
    parser = argparse.ArgumentParser(
        prog="hummingbird", description="Text to video in few steps.", allow_abbrev=False
    )
    parser.add_argument("--version", action="version", version=f"hummingbird {__version__}")
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="COMMAND")

    make = verbs.add_parser("generate", help="make videos from prompts", allow_abbrev=False)
    make.set_defaults(run=generate)
    make.add_argument(
        "prompts", nargs="+", type=_prompt, metavar="PROMPT", help="what to show; several make several"
    )
    _add_model(make)
    own = "(default: the model's own)"
    make.add_argument("--steps", type=_count, help=f"denoising steps {own}")
    make.add_argument("--frames", type=_count, help=f"frames per video {own}")
    make.add_argument("--height", type=_count, help=f"pixels {own}")
    make.add_argument("--width", type=_count, help=f"pixels {own}")
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
    judge.set_defaults(run=evaluate)
    _add_model(judge)
    judge.add_argument("--suite", required=True, choices=["moving-shapes"], help="what to measure on")
    judge.add_argument("--num-prompts", type=_count, default=512, help="prompts, half unseen (default: 512)")
    judge.add_argument("--steps", type=_count, help=f"denoising steps {own}")
    judge.add_argument("--guidance-scale", type=_number, help=f"how strictly the prompt is followed {own}")
    judge.add_argument("--seed", type=_seed, default=0, help="of prompts and noise (default: 0)")
    judge.add_argument("--batch-size", type=_count, default=16, help="videos at once (default: 16)")
    judge.add_argument(
        "--to", type=Path, required=True, help="folder for report.json, report.html and videos"
    )
    _add_common(judge)

    show = verbs.add_parser(
        "inspect", help="say what a checkpoint file or model folder holds", allow_abbrev=False
    )
    show.set_defaults(run=inspect)
    show.add_argument("path", type=Path, metavar="FILE_OR_FOLDER", help="nothing in it is run")
    _add_config(show)
    _add_common(show)

    turn = verbs.add_parser(
        "convert", help="turn a checkpoint file into a diffusers folder, or back", allow_abbrev=False
    )
    turn.set_defaults(run=convert)
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
    cut.set_defaults(run=prune, usage_error=cut.error)
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
        help="compile a GPU's kernels for one size, once, before the first video",
        allow_abbrev=False,
    )
    heat.set_defaults(run=warmup)
    _add_model(heat)
    heat.add_argument("--frames", type=_count, help=f"frames per video {own}")
    heat.add_argument("--height", type=_count, help=f"pixels {own}")
    heat.add_argument("--width", type=_count, help=f"pixels {own}")
    heat.add_argument("--guidance-scale", type=_number, help=f"as it will be given to generate {own}")
    _add_common(heat)

    ship = verbs.add_parser(
        "export", help="write a model as ONNX graphs or compiled packages, as a folder", allow_abbrev=False
    )
    ship.set_defaults(run=export)
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

    look = verbs.add_parser("doctor", help="say what this machine can run", allow_abbrev=False)
    look.set_defaults(run=doctor)
    _add_common(look)
    return parser


# --- verbs --------------------------------------------------------------------------------------------------


def generate(args: argparse.Namespace) -> dict[str, Any]:
    """Make one video after another; each is on disk before the next begins."""
    import torch

    jobs = [prompt for prompt in args.prompts for _ in range(args.num_videos)]
    paths = _numbered(args.out, len(jobs))
    _mention_world(args.model, args.prompts)
    pipe = runtime.load_pipeline(args.model, args.device, args.dtype)
    wanted = {
        "num_inference_steps": args.steps,
        "num_frames": args.frames,
        "height": args.height,
        "width": args.width,
        "guidance_scale": args.guidance_scale,
        "fps": args.fps,
        "negative_prompt": args.negative_prompt,
    }
    given = {name: value for name, value in wanted.items() if value is not None}
    settings = {**pipe.default_call, **given}
    made: list[dict[str, Any]] = []
    videos = []
    for index, (prompt, path) in enumerate(zip(jobs, paths, strict=True)):
        seed = args.seed + index
        progress = _show_progress(pipe, f"video {index + 1} of {len(jobs)}")
        start_s = time.perf_counter()
        # The CPU's generator draws the same numbers whatever the device.
        noise = torch.Generator("cpu").manual_seed(seed)
        out: Any = pipe(prompt, generator=noise, output_type="np", **given, **progress)
        frames = video_io.to_uint8(out.frames[0])
        seconds = time.perf_counter() - start_s
        video_io.write_video(frames, path, fps=float(settings["fps"]))
        made.append({"path": str(path), "prompt": prompt, "seed": seed, "seconds": round(seconds, 3)})
        if args.contact_sheet:
            videos.append(frames)
        _say(f"{prompt!r}: {len(frames)} frames in {seconds:.1f} s")
        _answer(str(path))
    if args.contact_sheet:
        with video_io.atomic_path(args.contact_sheet) as partial:
            video_io.contact_sheet(videos, jobs).save(partial)
        _answer(str(args.contact_sheet))
    where = {
        "model": args.model,
        "device": str(pipe.device),
        "dtype": str(pipe.unet.dtype).removeprefix("torch."),
        "vae_dtype": str(pipe.vae.dtype).removeprefix("torch."),
    }
    return {
        "files": made,
        "contact_sheet": args.contact_sheet and str(args.contact_sheet),
        **where,
        **settings,
    }


def _numbered(path: Path, count: int) -> list[Path]:
    if count == 1:
        return [path]
    digits = max(2, len(str(count)))
    return [path.with_name(f"{path.stem}-{index:0{digits}d}{path.suffix}") for index in range(1, count + 1)]


def _mention_world(model: str, prompts: Sequence[str]) -> None:
    """Say once, for an embedded model, which prompts it was not trained on; they still become videos."""
    if nano.resolve(model) is None:
        return
    from hummingbird.nano import world

    outside = [prompt for prompt in prompts if world.parse_caption(prompt) is None]
    if outside:
        example = world.evaluation_prompts(1)[0].prompt
        _say(
            f"note: {model!r} was trained on one moving shape only ({', '.join(world.SHAPES)}; "
            f"{len(world.COLORS)} colours, {len(world.MOTIONS)} motions, {len(world.BACKGROUNDS)} "
            f"backgrounds), as in {example!r}; outside that world: {', '.join(map(repr, outside))}"
        )


def _show_progress(pipe: HummingbirdPipeline, label: str) -> dict[str, Any]:
    """A bar on a terminal; otherwise a line at every tenth of the steps. Returns arguments for the call."""
    if sys.stderr.isatty():
        pipe.set_progress_bar_config(disable=False, desc=label, leave=False, file=sys.stderr)
        return {}
    pipe.set_progress_bar_config(disable=True)

    def line(
        pipe: HummingbirdPipeline, step: int, timestep: object, tensors: dict[str, Any]
    ) -> dict[str, Any]:
        total = pipe.num_timesteps
        if (step + 1) * 10 // total > step * 10 // total:
            _say(f"{label}: step {step + 1} of {total}")
        return {}

    return {"callback_on_step_end": line}


def evaluate(args: argparse.Namespace) -> dict[str, Any]:
    """Run a suite; the report is on disk and is also the answer."""
    from hummingbird.evaluation import evaluate_moving_shapes

    pipe = runtime.load_pipeline(args.model, args.device, args.dtype)
    pipe.set_progress_bar_config(disable=True)
    report: dict[str, Any] = evaluate_moving_shapes(
        pipe,
        model=args.model,
        num_prompts=args.num_prompts,
        num_inference_steps=args.steps,
        guidance_scale=args.guidance_scale,
        seed=args.seed,
        batch_size=args.batch_size,
        to=args.to,
        progress=True,
    )
    for name, share in report["accuracy"].items():
        _answer(f"{name:<11}{share:.1%}")
    _answer(str(args.to / "report.json"))
    return report


def inspect(args: argparse.Namespace) -> dict[str, Any]:
    """Say what a file or folder holds, without running or loading it."""
    from hummingbird.checkpoints import inspect_checkpoint, read_config

    report = inspect_checkpoint(args.path, config=args.config and read_config(args.config))
    if not args.json:
        _answer(report.to_text())
    return {**asdict(report), "num_parameters": report.num_parameters, "problems": report.problems}


def convert(args: argparse.Namespace) -> dict[str, Any]:
    """Write the folder or file; it is whole or absent."""
    import torch

    from hummingbird.checkpoints import convert_checkpoint, read_config

    with _written_bytes(f"write {args.to.name}") as progress:
        report = convert_checkpoint(
            args.path,
            args.to,
            base=args.base,
            config=args.config and read_config(args.config),
            dtype=None if args.dtype == "keep" else getattr(torch, args.dtype),
            time_cond_proj=args.time_cond_proj,
            seed=args.seed,
            progress=progress,
        )
    for note in report.notes:
        _say(f"note: {note}")
    _say(f"{report.family}, {report.dtype}: {report.size_bytes / 1e9:.2f} GB in {report.seconds:.1f} s")
    _answer(report.to)
    return asdict(report)


@contextmanager
def _written_bytes(label: str) -> Iterator[Callable[[int, int], None]]:
    """A bar on a terminal; otherwise a line at every tenth."""
    from tqdm import tqdm

    if sys.stderr.isatty():
        with tqdm(desc=label, unit="B", unit_scale=True, leave=False, file=sys.stderr) as bar:

            def move(written: int, total: int) -> None:
                bar.total = total
                bar.update(written - bar.n)

            yield move
        return
    tenths = 0

    def line(written: int, total: int) -> None:
        nonlocal tenths
        if written * 10 // max(total, 1) > tenths:
            tenths = written * 10 // max(total, 1)
            _say(f"{label}: {written / 1e6:.0f} of {total / 1e6:.0f} MB")

    yield line


def prune(args: argparse.Namespace) -> dict[str, Any]:
    """Write the smaller model, its plan and what it saves; the folder is whole or absent."""
    budgets: dict[Any, str] = {
        name: value
        for name in ("parameters", "flops", "latency")
        if (value := getattr(args, f"budget_{name}")) is not None
    }
    if args.search and not budgets:
        args.usage_error("--search needs one of --budget-parameters, --budget-flops and --budget-latency")
    if args.plan and budgets:
        args.usage_error("a budget is for --search; a plan says what stays by itself")
    if args.no_timing and "latency" in budgets:
        args.usage_error("--budget-latency cannot go with --no-timing")
    data = args.data or ("moving-shapes" if nano.resolve(args.model) else "")
    if args.search and not data:
        args.usage_error("--search needs --data for a model that is not embedded")
    from hummingbird.evaluation.report import environment
    from hummingbird.pruning import Probe, load_plan, prune_pipeline, search_pipeline
    from hummingbird.pruning.surgery import new_folder, save_pruned

    with new_folder(args.to) as folder:
        pipe = runtime.load_pipeline(args.model, args.device, args.dtype)
        probe = Probe.of(pipe, repeats=0 if args.no_timing else 5)
        found = None
        if args.search:
            ((resource, amount),) = budgets.items()
            found = search_pipeline(
                pipe,
                resource,
                amount,
                data,
                probe,
                num_clips=args.num_clips,
                seed=args.seed,
                granularity=args.granularity,
                progress=_say,
            )
            _say(found.to_text())
        plan = found.best.plan if found else load_plan(args.plan, pipe.unet.config)
        small, report = prune_pipeline(pipe, plan, probe)
        answer = {
            "model": args.model,
            "plan_name": args.plan,
            **report.to_dict(),
            "search": found and found.to_dict(),
            "environment": environment(pipe.device, report.dtype),
        }
        save_pruned(small, plan, answer, folder)
    if not args.json:
        _answer(report.to_text())
    _answer(str(args.to))
    return {"to": str(args.to), **answer}


def warmup(args: argparse.Namespace) -> dict[str, Any]:
    """Make the first video of a size quick: on ROCm it may otherwise take 10 to 30 minutes."""
    from hummingbird.warmup import warm_up

    pipe = runtime.load_pipeline(args.model, args.device, args.dtype)
    pipe.set_progress_bar_config(disable=True)
    report = warm_up(
        pipe,
        num_frames=args.frames,
        height=args.height,
        width=args.width,
        guidance_scale=args.guidance_scale,
        progress=_say,
    )
    for folder, size_bytes in report.cache_bytes.items():
        _answer(f"{folder}: {size_bytes / 1e6:.1f} MB of kernels and searches")
    if not report.cache_bytes:
        _answer(f"{report.device}: keeps no kernels on disk; nothing to do before the next process")
    return {"model": args.model, **report.to_dict()}


def export(args: argparse.Namespace) -> dict[str, Any]:
    """Write a folder that runs without the model's Python code; it is whole or absent."""
    from hummingbird.export import Bucket
    from hummingbird.export.build import export_pipeline
    from hummingbird.pruning.surgery import new_folder

    start_s = time.perf_counter()
    with new_folder(args.to) as folder:
        manifest, operators = export_pipeline(
            runtime.load_pipeline(args.model, "cpu", "float32"),
            folder,
            format=args.format,
            target=args.target,
            dtype=args.dtype,
            buckets=[
                Bucket(num_frames=frames, height=height, width=width)
                for frames, height, width in args.bucket or ()
            ],
            progress=_say,
        )
    for name, found in operators.get("graphs", {}).items():
        for verdict in ("fallback", "missing"):
            if found[verdict]:
                _say(f"note: {name}: {verdict} on {args.target}: {', '.join(found[verdict])}")
    _answer(str(args.to))
    graphs = [asdict(graph) for graph in manifest.graphs]
    return {
        "to": str(args.to),
        "model": args.model,
        "format": args.format,
        "target": args.target,
        "dtype": args.dtype,
        "opset": manifest.opset,
        "size_bytes": sum(file.size_bytes for file in manifest.files),
        "seconds": round(time.perf_counter() - start_s, 2),
        "versions": manifest.versions,
        "graphs": graphs,
        "operators": operators,
    }


def doctor(args: argparse.Namespace) -> dict[str, Any]:
    """Say what this machine can run."""
    from hummingbird.doctor import examine, to_text

    report = examine()
    if not args.json:
        _answer(to_text(report))
    return report


# --- entry --------------------------------------------------------------------------------------------------


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: arguments after the program's name; those of the process where left out.

    Returns:
        The exit status.

    Raises:
        SystemExit: status 2 after bad usage, 0 after ``--help`` and ``--version``.
    """
    args = build_parser().parse_args(argv)
    try:
        result = args.run(args)
    except KeyboardInterrupt:
        if args.debug:
            raise
        _say("interrupted: files that were finished are kept, nothing is half-written")
        return INTERRUPTED
    except Exception as error:  # the outermost boundary: whatever happened becomes one line and a status
        if args.debug:
            raise
        message = " ".join(str(error).split()) or "no message"
        plain = isinstance(error, (ValueError, OSError, RuntimeError, ImportError))
        _say(
            f"error: {message}"
            if plain
            else f"error: {type(error).__name__}: {message} (--debug shows where)"
        )
        return 1
    if args.json:
        _answer(json.dumps(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
