"""Runs in the environment that has the ``vbench`` package, as a file: nothing of ours is imported.

That environment may be years older than ours: standard library and vbench's documented Python API only. Its
command line is not used because it needs a GPU even for dimensions that do not.
"""

import argparse
import importlib
import importlib.metadata
import json
import os
import platform
import sys


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--facts", required=True, help="file for versions and the place of the prompts")
    parser.add_argument("--dimension", help="what to score; left out: facts only")
    parser.add_argument("--videos", help="folder")
    parser.add_argument("--prompts", help="JSON file of prompts")
    parser.add_argument("--output", help="folder for the package's own result files")
    parser.add_argument("--device", default="auto")
    args = parser.parse_args()
    try:
        vbench = importlib.import_module("vbench")
    except ImportError as error:
        sys.stderr.write(f"cannot import vbench: {error}\n")
        return 3
    versions = {"python": platform.python_version()}
    for name in ("vbench", "torch", "torchvision", "transformers", "numpy"):
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    device = args.device
    if device == "auto":
        device = "cpu"
        if "torch" in versions:
            device = "cuda" if importlib.import_module("torch").cuda.is_available() else "cpu"
    if args.dimension:
        scorer = vbench.VBench(device, args.prompts, args.output)
        scorer.evaluate(
            videos_path=args.videos,
            name=args.dimension,
            dimension_list=[args.dimension],
            mode="vbench_standard",
            imaging_quality_preprocessing_mode="longer",
        )
    info = os.path.join(os.path.dirname(os.path.abspath(str(vbench.__file__))), "VBench_full_info.json")
    facts = {"versions": versions, "device": device, "full_info": info if os.path.isfile(info) else None}
    with open(args.facts, "w", encoding="utf-8") as file:
        json.dump(facts, file)
    return 0


if __name__ == "__main__":
    sys.exit(main())
