"""How far is each published network from what this device can do? Last line JSON.

    python benchmarks/inference.py                                    # a GPU: full size
    python benchmarks/inference.py --reduced                          # a CPU: 8 frames of 128x128

Every network has random weights: time does not depend on them. The classic recipe is `videocrafter2` with 50
DDIM steps and classifier-free guidance; rivals from diffusers are in benchmarks/rivals.py.
"""

from __future__ import annotations

import argparse
import json

from hummingbird import backends, runtime
from hummingbird.bench import bench_shell
from hummingbird.compilation import COMPILE_MODES
from hummingbird.models.shells import PRESETS, build_shell

REDUCED = {"num_frames": 8, "height": 128, "width": 128}


def main() -> None:
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=formatter)
    parser.add_argument("--config", action="append", choices=PRESETS, help="several: repeat (default: all)")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", default="auto", choices=runtime.DTYPES)
    parser.add_argument("--decoder", action="append", help="full or tiny; several: repeat (default: both)")
    parser.add_argument("--steps", type=int, help="of the few-step networks (default: 4)")
    parser.add_argument("--frames", type=int)
    parser.add_argument("--compile", default="none", choices=COMPILE_MODES, help="of the few-step networks")
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--reduced", action="store_true")
    arguments = parser.parse_args()
    device = runtime.resolve_device(arguments.device)
    dtype = runtime.resolve_dtype(arguments.dtype, device)
    backends.apply(backends.detect(device))
    size = dict(REDUCED) if arguments.reduced else {}
    if arguments.frames is not None:
        size["num_frames"] = arguments.frames
    reports = []
    for name in arguments.config or PRESETS:
        for decoder in arguments.decoder or ("full", "tiny"):
            if name == "videocrafter2" and decoder == "tiny":
                continue  # the classic recipe, as its users run it
            given = None if decoder == "full" else decoder
            shell = build_shell(name, device, dtype, given)
            if name != "videocrafter2":
                runtime.speed_up(shell.components().values(), device)
            report = bench_shell(
                shell,
                model=name,
                decoder=given,
                num_inference_steps=None if name == "videocrafter2" else arguments.steps,
                compile_mode="none" if name == "videocrafter2" else arguments.compile,
                repeats=arguments.repeats,
                end_to_end=device.type != "cpu",
                **size,
            )
            print(report.to_text(), flush=True)  # noqa: T201
            reports.append(report.to_dict())
    classic = next((r for r in reports if r["model"] == "videocrafter2"), None)
    for report in reports:
        if classic is not None:
            times = classic["video_s"] / report["video_s"]
            report["times_as_fast_as_classic"] = times
            print(f"{report['model']}, {report['decoder'] or 'full'}: x{times:.1f}")  # noqa: T201
    print(json.dumps({"reduced": arguments.reduced, "reports": reports}))  # noqa: T201


if __name__ == "__main__":
    main()
