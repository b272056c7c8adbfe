"""The ``hummingbird`` command: thin verbs over library functions.

Exit status: 0 done, 1 failed (one line on stderr; ``--debug`` adds the traceback), 2 bad usage, 130 Ctrl-C.
"""

from __future__ import annotations

import argparse
import gc
import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

# Heavy libraries are imported by the verb that needs them, so that --help answers at once.
from hummingbird import backends, nano, runtime, usage, video_io

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


# --- verbs --------------------------------------------------------------------------------------------------


def generate(args: argparse.Namespace) -> dict[str, Any]:
    """Make one video after another; each is on disk before the next begins."""
    jobs = [prompt for prompt in args.prompts for _ in range(args.num_videos)]
    paths = _numbered(args.out, len(jobs))
    _mention_world(args.model, args.prompts)
    with _nothing_is_garbage(args.own_process):
        import torch

        pipe = runtime.load_pipeline(
            args.model, args.device, args.dtype, args.decoder, args.memory, args.quantize
        )
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
    if args.compile != "none":
        from hummingbird.warmup import warm_up

        size = {name: settings[name] for name in ("num_frames", "height", "width", "guidance_scale")}
        warm_up(pipe, **size, compile_mode=args.compile, progress=_say)
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


@contextmanager
def _nothing_is_garbage(own_process: bool) -> Iterator[None]:
    """Leave the garbage collector out of a process's start.

    Of the objects that importing and loading make hardly one can be collected, but each of many collections,
    and the one at the end of the process, looks through all of them: a quarter of a short run's time.
    """
    if not own_process or not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


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
    return _SUITES[args.suite](args)


def _split_steps(text: str) -> tuple[str, int | None]:
    """``MODEL@STEPS`` into its parts; a folder or file of that very name is a model."""
    model, at, steps = text.rpartition("@")
    if at and model and steps.isascii() and steps.isdigit() and int(steps) and not Path(text).exists():
        return model, int(steps)
    return text, None


def _evaluate_shapes(args: argparse.Namespace) -> dict[str, Any]:
    from hummingbird.evaluation import evaluate_moving_shapes
    from hummingbird.evaluation.sampling import open_sampler

    options: dict[str, Any] = {
        "num_prompts": args.num_prompts or 512,
        "guidance_scale": args.guidance_scale,
        "seed": args.seed,
        "batch_size": args.batch_size,
    }
    models = args.model or ["nano"]
    if len(models) > 1:
        return _compare_shapes(args, options)
    (name,) = models
    model, steps = _split_steps(name)
    load = partial(runtime.load_pipeline, model, args.device, args.dtype)
    with open_sampler(load, args.workers) as sampler:
        report: dict[str, Any] = evaluate_moving_shapes(
            sampler, model=name, num_inference_steps=steps or args.steps, to=args.to, **options
        )
    for attribute, share in report["accuracy"].items():
        _answer(f"{attribute:<11}{share:.1%}")
    _answer(str(args.to / "report.json"))
    return report


def _compare_shapes(args: argparse.Namespace, options: dict[str, Any]) -> dict[str, Any]:
    from hummingbird.evaluation.shapes_comparison import Contender, compare_models

    contenders = []
    for name in args.model:
        model, steps = _split_steps(name)
        if (Path(name) / "verdicts.jsonl").is_file():
            contenders.append(Contender(name=name, report=Path(name)))
        else:
            load = partial(runtime.load_pipeline, model, args.device, args.dtype)
            contenders.append(Contender(name=name, load=load, num_inference_steps=steps or args.steps))
    result = compare_models(contenders, to=args.to, workers=args.workers, progress=_say, **options)
    for report in result["models"]:
        low, high = report["interval_95"]["all"]
        _answer(
            f"{report['model']}: all four right {report['accuracy']['all']:.1%} ({low:.1%} to {high:.1%}), "
            f"{report['seconds_per_video']:.2f} s a video"
        )
    _answer(str(args.to / "report.html"))
    return result


def _evaluate_videos(args: argparse.Namespace) -> dict[str, Any]:
    from hummingbird.evaluation.frechet import load_features
    from hummingbird.evaluation.samples import list_videos, make_samples, read_prompts, render_world
    from hummingbird.evaluation.sampling import open_sampler
    from hummingbird.evaluation.shapes_comparison import folder_names
    from hummingbird.evaluation.video_suite import Source, evaluate_videos
    from hummingbird.nano import world
    from hummingbird.rewards import load_reward

    folders = args.videos or []
    models = [] if folders and not args.model else args.model or ["nano"]
    if args.reference is not None and not args.features:
        args.usage_error("--reference needs --features: what the distance is measured over")
    # What can be wrong is found before hours are spent.
    for folder in folders:
        list_videos(folder)
    if args.reference not in (None, "moving-shapes"):
        list_videos(Path(args.reference))
    device = runtime.resolve_device(args.device)
    rewards = {name: load_reward(name, path, device=device) for name, path in args.reward}
    for reward in rewards.values():
        reward.tokenize(["a"])  # a vocabulary may be missing
    features = {name: load_features(name, path, device=device) for name, path in args.features}
    num_prompts = args.num_prompts or 512
    attributes = world.evaluation_prompts(num_prompts, args.seed)
    if args.prompts is not None:
        prompts = read_prompts(args.prompts, num_prompts)
    else:
        prompts = [item.prompt for item in attributes]

    sources = [Source(name=str(folder), folder=folder) for folder in folders]
    for name, subfolder in zip(models, folder_names(models), strict=True):
        model, steps = _split_steps(name)
        videos = args.to / "samples" / subfolder
        with open_sampler(
            partial(runtime.load_pipeline, model, args.device, args.dtype), args.workers
        ) as sampler:
            made = make_samples(
                sampler,
                prompts,
                videos,
                num_inference_steps=steps or args.steps,
                guidance_scale=args.guidance_scale,
                seed=args.seed,
                batch_size=args.batch_size,
                progress=lambda text, name=name: _say(f"{name}: {text}"),
            )
        sources.append(Source(name=name, folder=videos, made=made))
    reference = None
    if args.reference == "moving-shapes":
        render_world(attributes, args.to / "reference", seed=args.seed)
        reference = Source(name="moving-shapes, rendered", folder=args.to / "reference")
    elif args.reference is not None:
        reference = Source(name=args.reference, folder=Path(args.reference))
    result = evaluate_videos(
        sources,
        args.to,
        rewards=rewards,
        features=features,
        reference=reference,
        workers=args.workers,
        progress=_say,
    )
    for summary in result["sources"]:
        _answer(f"{summary['name']}: {summary['num_videos']} videos, {summary['num_errors']} not measured")
    _answer(str(args.to / "report.html"))
    return result


def _evaluate_vbench(args: argparse.Namespace) -> dict[str, Any]:
    """Make the protocol's videos, have them scored where an environment for that is given."""
    from hummingbird.evaluation.vbench import evaluate_vbench

    name, *more = args.model or ["nano"]
    if more:
        args.usage_error("--suite vbench takes one --model: each needs a folder of its own")
    model, steps = _split_steps(name)
    pipe = runtime.load_pipeline(model, args.device, args.dtype)
    pipe.set_progress_bar_config(disable=True)
    report = evaluate_vbench(
        pipe,
        model=name,
        to=args.to,
        prompts=args.prompts,
        dimensions=args.dimensions,
        num_prompts=args.num_prompts,
        samples=args.samples,
        num_inference_steps=steps or args.steps,
        guidance_scale=args.guidance_scale,
        seed=args.seed,
        rewritten=args.rewritten,
        shard=args.shard,
        batch_size=args.batch_size or 1,
        vbench_python=args.vbench_python,
        vbench_device=args.vbench_device,
        score_timeout_s=args.score_timeout,
        progress=_say,
    )
    made, planned = report["videos"]["made"], report["videos"]["planned"]
    if report["status"] == "sampling" and args.shard != "0/1":
        _answer(f"shard {args.shard} is done; {made} of all {planned} videos are there")
        return report
    for name, value in report["totals"].items():
        _answer(f"{name:<11}{'-' if value is None else f'{value:.2f}'}")
    _answer(str(args.to / "report.json"))
    return report


_SUITES: dict[str, usage.Verb] = {
    "moving-shapes": _evaluate_shapes,
    "metrics": _evaluate_videos,
    "vbench": _evaluate_vbench,
}
"""What ``evaluate --suite`` can run."""


def compare(args: argparse.Namespace) -> dict[str, Any]:
    """Write the page that asks, or the result of what was answered."""
    if args.results:
        if args.sides or args.prompts:
            args.usage_error("--results goes with --to only: the page's folder knows the rest")
        from hummingbird.evaluation.preference import judge_answers

        folder = args.to or args.results[0].parent
        result = judge_answers(args.results, folder)
        test = result["test"]
        _answer(
            f"{result['a']}: {test['wins_a']}, {result['b']}: {test['wins_b']}, ties: {test['ties']}, "
            f"unanswered: {result['unanswered']}; two-sided sign test p = {test['p_value']:.4g}"
        )
        _answer(str(folder / "report.json"))
        return result
    if len(args.sides) != 2 or args.prompts is None or args.to is None:
        args.usage_error("needs A, B, --prompts FILE and --to FOLDER; or --results FILE")
    from hummingbird.evaluation.preference import make_page
    from hummingbird.evaluation.samples import read_prompts

    prompts = read_prompts(args.prompts, args.num_prompts)
    sides = [_side(args, name, label, prompts) for name, label in zip(args.sides, "ab", strict=True)]
    page = make_page(sides[0], sides[1], prompts, args.to, seed=args.seed, progress=_say)
    _answer(str(page))
    return {"page": str(page), "a": sides[0][0], "b": sides[1][0], "num_prompts": len(prompts)}


def _side(args: argparse.Namespace, name: str, label: str, prompts: Sequence[str]) -> tuple[str, Path]:
    """Name and folder of one side's videos; those of a model are made first."""
    from hummingbird.evaluation.samples import VIDEO_SUFFIXES, make_samples
    from hummingbird.evaluation.sampling import open_sampler

    folder = Path(name)
    is_model = nano.resolve(name) is not None or (folder / "model_index.json").is_file()
    if (
        not is_model
        and folder.is_dir()
        and any(path.suffix.lower() in VIDEO_SUFFIXES for path in folder.rglob("*"))
    ):
        return name, folder
    model, steps = _split_steps(name)
    videos: Path = args.to / "samples" / label
    with open_sampler(
        partial(runtime.load_pipeline, model, args.device, args.dtype), args.workers
    ) as sampler:
        make_samples(
            sampler,
            prompts,
            videos,
            num_inference_steps=steps or args.steps,
            guidance_scale=args.guidance_scale,
            seed=args.seed,
            batch_size=args.batch_size,
            progress=lambda text: _say(f"{name}: {text}"),
        )
    return name, videos


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
    """Make the first video of a size quick: on ROCm, or compiled, it may otherwise take many minutes."""
    from hummingbird.warmup import warm_up

    pipe = runtime.load_pipeline(args.model, args.device, args.dtype)
    pipe.set_progress_bar_config(disable=True)
    report = warm_up(
        pipe,
        num_frames=args.frames,
        height=args.height,
        width=args.width,
        guidance_scale=args.guidance_scale,
        compile_mode=args.compile,
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


def serve(args: argparse.Namespace) -> dict[str, Any]:
    """Answer requests until SIGINT or SIGTERM; whatever was accepted is taken up again by the next start."""
    import logging

    from hummingbird.config import load_config
    from hummingbird.serving import Engine, JobStore, Limits
    from hummingbird.serving.server import build_server, find_api_keys, listen

    start_s = time.perf_counter()
    logging.basicConfig(format="%(asctime)s %(levelname)s %(name)s: %(message)s", stream=sys.stderr)
    logging.getLogger("hummingbird").setLevel(logging.INFO)
    api_keys = find_api_keys(args.api_key_file)
    limits = load_config(Limits, args.limits) if args.limits else Limits()
    if api_keys is None and args.host not in ("127.0.0.1", "localhost", "::1"):
        _say(f"note: {args.host} may be reached by others, and no API key is asked for (--api-key-file)")
    socket = listen(args.host, args.port)
    port = socket.getsockname()[1]
    with Engine(
        args.model or ["nano"],
        JobStore(args.data),
        limits,
        device=args.device,
        dtype=args.dtype,
        max_batch=args.max_batch,
    ) as engine:
        engine.load_model(engine.default_model)
        server = build_server(
            engine,
            host=args.host,
            api_keys=api_keys,
            allowed_hosts=frozenset(args.allowed_host),
            with_page=not args.no_page,
            on_start=lambda: _say(
                f"listening on http://{args.host}:{port} after {time.perf_counter() - start_s:.1f} s"
            ),
        )
        server.run(sockets=[socket])
        stats = engine.stats()
    return {"host": args.host, "port": port, "submitted": stats.submitted, **stats.ended}


def plan(args: argparse.Namespace) -> dict[str, Any]:
    """Say what a training or a video will need; nothing is trained or made."""
    import torch

    if args.config is None:
        from hummingbird.planning.inference import plan_inference

        if args.gpus is not None or args.tflops is not None or args.device != "auto" or args.set:
            args.usage_error("--gpus, --device, --tflops and --set are for a training: give its CONFIG.yaml")
        video = plan_inference(
            args.model,
            num_frames=args.frames,
            height=args.height,
            width=args.width,
            num_inference_steps=args.steps,
            dtype=getattr(torch, args.dtype),
            decoder=args.decoder,
        )
        if not args.json:
            _answer(video.to_text())
        return video.to_dict()
    from hummingbird.ceilings import measure_ceilings
    from hummingbird.planning.recipe import read_changes
    from hummingbird.planning.training import plan_training

    has_gpu = torch.cuda.is_available()
    on_gpu = args.device == "gpu" or (args.device == "auto" and (has_gpu or args.gpus is not None))
    ceiling = None
    if args.tflops is None and has_gpu == on_gpu:  # this machine is of the kind that is planned for
        here = runtime.resolve_device("auto")
        dtype = torch.bfloat16 if on_gpu else torch.float32
        ceiling = measure_ceilings(here, dtype, repeats=5).flops_per_s / 1e12
    training = plan_training(
        args.config,
        device="gpu" if on_gpu else "cpu",
        num_processes=args.gpus or 1,
        tflops=args.tflops,
        ceiling_tflops=ceiling,
        changes=read_changes(args.set),
    )
    if not args.json:
        _answer(training.to_text())
    if training.hours is None:
        _say("note: no hours, because no GPU is here to measure: give --tflops")
    return training.to_dict()


def bench(args: argparse.Namespace) -> dict[str, Any]:
    """Time a model here."""
    from hummingbird.bench import bench_shell
    from hummingbird.compilation import check_mode
    from hummingbird.models.shells import build_shell
    from hummingbird.quantization import quantize_unet

    where = runtime.resolve_device(args.device)
    dtype = runtime.resolve_dtype(args.dtype, where)
    settings = backends.detect(where)
    backends.apply(settings)
    check_mode(args.compile, where.type)
    model = args.config or args.model or "nano"
    shell = build_shell(model, where, dtype, args.decoder)
    if args.quantize != "none":
        quantize_unet(shell.unet, args.quantize, settings)
    runtime.speed_up(shell.components().values(), where)
    report = bench_shell(
        shell,
        model=model,
        num_frames=args.frames,
        height=args.height,
        width=args.width,
        num_inference_steps=args.steps,
        decoder=args.decoder,
        quantization=args.quantize,
        compile_mode=args.compile,
        repeats=args.repeats,
        end_to_end=not args.no_end_to_end,
        progress=_say,
    )
    if not args.json:
        _answer(report.to_text())
    return report.to_dict()


def doctor(args: argparse.Namespace) -> dict[str, Any]:
    """Say what this machine can run."""
    from hummingbird.doctor import examine, to_text

    report = examine()
    if not args.json:
        _answer(to_text(report))
    return report


_VERBS: dict[str, usage.Verb] = {
    verb.__name__: verb
    for verb in (
        generate,
        evaluate,
        compare,
        inspect,
        convert,
        prune,
        warmup,
        export,
        serve,
        plan,
        bench,
        doctor,
    )
}


# --- entry --------------------------------------------------------------------------------------------------


def build_parser() -> argparse.ArgumentParser:
    """The whole command line, each verb with what it does."""
    return usage.build_parser(_VERBS, list(_SUITES))


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
    args.own_process = argv is None
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
