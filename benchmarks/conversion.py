"""How long does a full-size checkpoint take to a folder and back, and in how much memory? Last line JSON.

    python benchmarks/conversion.py [--folder FOLDER]

Writes random float16 weights under every key of the published VideoCrafter2 file (1,850,970,924 parameters,
3.7 GB) and needs 12 GB of disk while it runs. Each step is a process of its own, whose peak memory is what
the kernel says it ever held (VmHWM). The file has just been written, so reading it is served by the page
cache where memory allows.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

from hummingbird.checkpoints.families import schedule_buffers
from hummingbird.checkpoints.inspection import LDM_PREFIXES
from hummingbird.checkpoints.key_map import Recipe
from hummingbird.checkpoints.ldm import _text_config, _vae_options, text_encoder_layout, to_ldm, vae_layout
from hummingbird.evaluation.report import environment
from hummingbird.models import UNetSpatioTemporalModel, preset_config
from hummingbird.schedulers import VideoCrafterDDIMScheduler

ROOT = Path(__file__).parent.parent
VAE = {
    "embed_dim": 4,
    "ddconfig": {
        "ch": 128,
        "ch_mult": [1, 2, 4, 4],
        "num_res_blocks": 2,
        "z_channels": 4,
        "in_channels": 3,
        "out_ch": 3,
        "attn_resolutions": [],
        "resolution": 256,
    },
}
TEXT = {
    "embed_dim": 1024,
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 1024, "heads": 16, "layers": 24},
}
_STEP = """
import json, sys, time
from pathlib import Path
began = time.perf_counter()
import torch
from hummingbird import HummingbirdPipeline
from hummingbird.checkpoints import convert_checkpoint, inspect_checkpoint
imported = time.perf_counter()
kind, source, to = sys.argv[1:4]
if kind == "inspect":
    size = 0
    inspect_checkpoint(source)
elif kind == "convert":
    size = convert_checkpoint(source, to).size_bytes
else:
    pipe = HummingbirdPipeline.from_single_file(source, dtype=torch.float16)
    models = (pipe.unet, pipe.vae, pipe.text_encoder)
    size = sum(p.numel() * p.element_size() for model in models for p in model.parameters())
done = time.perf_counter()
status = Path("/proc/self/status").read_text()
peak = int(status.split("VmHWM:")[1].split()[0]) * 1024
times = {"seconds": done - imported, "import_s": imported - began}
print(json.dumps({**times, "peak_bytes": peak, "size_bytes": size}))
"""


def published_shapes() -> dict[str, tuple[int, ...]]:
    """Names and shapes of the networks' tensors in the published VideoCrafter2 file."""
    with torch.device("meta"):
        unet = UNetSpatioTemporalModel.from_config(preset_config("videocrafter2"))
    text = text_encoder_layout(_text_config(TEXT)).model
    models = {"unet": unet, "vae": vae_layout(_vae_options(VAE)).model, "text_encoder": text}
    shapes: dict[str, tuple[int, ...]] = {}
    for name, model in models.items():
        recipes = {
            key: Recipe(shape=tuple(tensor.shape), dtype=torch.float16, load=lambda: torch.empty(0))
            for key, tensor in model.state_dict().items()
        }
        named = {key: recipe.shape for key, recipe in to_ldm(model, recipes).items()}
        shapes |= {LDM_PREFIXES[name] + key: shape for key, shape in named.items()}
    prefix = LDM_PREFIXES["text_encoder"] + "model."
    last = {
        key: shape for key, shape in shapes.items() if key.startswith(f"{prefix}transformer.resblocks.22.")
    }
    shapes |= {key.replace("resblocks.22.", "resblocks.23."): shape for key, shape in last.items()}
    return {**shapes, f"{prefix}text_projection": (1024, 1024), f"{prefix}logit_scale": ()}


def write_random_checkpoint(path: Path, seed: int = 0) -> tuple[int, int]:
    """Write a full-size file as ``torch.save`` does.

    Returns:
        Parameters of the networks, and entries of the state dict.
    """
    generator = torch.Generator().manual_seed(seed)
    schedule = schedule_buffers(VideoCrafterDDIMScheduler(use_scale=True))
    tensors = {name: recipe.load() for name, recipe in schedule.items()}
    num_parameters = 0
    for key, shape in published_shapes().items():
        # every pattern below the first infinity is a finite positive number
        bits = torch.empty(shape, dtype=torch.int16).random_(0, 0x7C00, generator=generator)
        tensors[key] = bits.view(torch.float16)
        num_parameters += bits.numel()
    torch.save({"state_dict": tensors}, path)
    return num_parameters, len(tensors)


def run_step(kind: str, source: Path, to: Path | None = None) -> dict[str, Any]:
    """Inspect, convert or load in a process of its own: seconds, peak bytes, bytes of the result."""
    done = subprocess.run(
        [sys.executable, "-c", _STEP, kind, str(source), str(to)],
        check=True,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=formatter)
    parser.add_argument("--folder", type=Path, help="where to work (default: the system's temporary folder)")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
        place = Path(name)
        model, folder, back = place / "model.ckpt", place / "folder", place / "back.ckpt"
        num_parameters, num_entries = write_random_checkpoint(model)
        steps = {
            "inspect": run_step("inspect", model),
            "file to folder": run_step("convert", model, folder),
            "folder to file": run_step("convert", folder, back),
            "from_single_file, float16": run_step("load", model),
        }
        first, again = (
            torch.load(path, weights_only=True, mmap=True)["state_dict"] for path in (model, back)
        )
        equal = first.keys() == again.keys() and all(torch.equal(first[key], again[key]) for key in first)
    for label, step in steps.items():
        over = (step["peak_bytes"] - step["size_bytes"]) / 1e9
        print(  # noqa: T201
            f"{label:<26}{step['seconds']:>7.1f} s{step['peak_bytes'] / 1e9:>7.2f} GB at most, result "
            f"{step['size_bytes'] / 1e9:.2f} GB ({over:+.2f})"
        )
    result = {
        "num_parameters": num_parameters,
        "num_entries": num_entries,
        "equal_after_both": equal,
        "steps": {
            label: {key: round(value, 2) for key, value in step.items()} for label, step in steps.items()
        },
        "environment": environment(torch.device("cpu"), "float16"),
    }
    print(json.dumps(result))  # noqa: T201


if __name__ == "__main__":
    main()
