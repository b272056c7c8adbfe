"""How far DOVER is from recorded reference values. Prints a line per value, last line JSON.

python benchmarks/dover_goldens.py [--goldens FOLDER] [--to FILE.json]

FOLDER has the sub-folders ``dover_*``, each with ``config.json``, ``inputs``, ``outputs`` and, for networks,
``state_dict.safetensors``; docs/judges.md says which part of the code each belongs to. Pictures and indices
have to be equal, features within 1e-5, fused scores within 1e-12.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file

from data_pipeline.dover.convnext import ConvNeXt3D
from data_pipeline.dover.model import QualityHead, fuse, load_dover
from data_pipeline.dover.sampling import (
    FragmentGrid,
    FrameSampler,
    Squash,
    View,
    draw_frames,
    normalise,
    sample_views,
)
from data_pipeline.dover.swin import SwinTransformer3D

GOLDENS = Path(__file__).parents[2] / "shared" / "reference" / "rewards" / "visible"
EXACT, FEATURES, FUSED = 0.0, 1e-5, 1e-12

Tensors = dict[str, torch.Tensor]


@dataclass(frozen=True, kw_only=True)
class Row:
    """One value of one golden: the largest difference, and how much may be."""

    golden: str
    value: str
    difference: float
    tolerance: float

    @property
    def passes(self) -> bool:
        return self.difference <= self.tolerance


def row(golden: str, value: str, ours: Any, reference: torch.Tensor, tolerance: float) -> Row:
    ours, expected = np.asarray(ours, np.float64), reference.numpy().astype(np.float64)
    same = ours.shape == expected.shape
    difference = float(np.abs(ours - expected).max()) if same else float("inf")
    return Row(golden=golden, value=value, difference=difference, tolerance=tolerance)


def read(folder: Path) -> tuple[dict[str, Any], Tensors, Tensors]:
    inputs, outputs = (load_file(folder / f"{kind}.safetensors") for kind in ("inputs", "outputs"))
    return json.loads((folder / "config.json").read_text()), inputs, outputs


@torch.inference_mode()
def branch(folder: Path) -> Iterator[Row]:
    """``dover_technical``, ``dover_aesthetic``, ``dover_mobile_branch``: one backbone and its head."""
    config, inputs, outputs = read(folder)
    tensors = load_file(folder / "state_dict.safetensors")
    name = "technical" if "embed_dim" in config["backbone"] else "aesthetic"
    backbone: SwinTransformer3D | ConvNeXt3D
    backbone = (
        SwinTransformer3D(**config["backbone"]) if name == "technical" else ConvNeXt3D(**config["backbone"])
    )
    head = QualityHead(**config["head"])
    indices = {key: value for key, value in backbone.state_dict().items() if key.endswith("position_index")}
    parts = {part: f"{name}_{part}." for part in ("backbone", "head")}
    own = {
        part: {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
        for part, prefix in parts.items()
    }
    backbone.load_state_dict(indices | own["backbone"])
    head.load_state_dict(own["head"])
    seen: Tensors = {}

    def keep(where: str) -> Any:
        return lambda module, args, output: seen.__setitem__(where, output)

    if isinstance(backbone, SwinTransformer3D):
        for index, layer in enumerate(backbone.layers):
            layer.register_forward_hook(keep(f"stage{index}"))
        blocks = backbone.layers[0].blocks
        blocks[min(1, len(blocks) - 1)].register_forward_hook(keep("layer0_block1_sample"))
    else:
        for index, stage in enumerate(backbone.stages):
            stage.register_forward_hook(keep("stage0_sample" if index == 0 else f"stage{index}"))
    features = backbone.eval()(normalise(inputs["video_u8"]))
    score_map = head.eval()(features)
    seen |= {"backbone": features, "score_map": score_map, "score": score_map.mean().reshape(1)}
    if isinstance(backbone, SwinTransformer3D):
        for index in range(len(backbone.layers)):
            seen[f"stage{index}"] = seen[f"stage{index}"].permute(0, 4, 1, 2, 3)
        seen["layer0_block1_sample"] = seen["layer0_block1_sample"][:, ::3, ::5, ::5]
        seen["relative_position_index"] = next(iter(indices.values()))
    else:
        seen["stage0_sample"] = seen["stage0_sample"][:, :, ::2, ::4, ::4]
    for value, expected in outputs.items():
        tolerance = EXACT if value == "relative_position_index" else FEATURES
        yield row(folder.name, value, seen[value], expected, tolerance)


def sampling(folder: Path) -> Iterator[Row]:
    """``dover_sampling``: frames, fragments and squashed pictures, also from equally seeded generators."""
    config, inputs, outputs = read(folder)
    for name, values in config["fragments"].items():
        settings = {key: values[key] for key in FragmentGrid.__dataclass_fields__}
        grid, video, expected = FragmentGrid(**settings), inputs[f"{name}.video_u8"], outputs
        generator = torch.Generator().manual_seed(values["seed"])
        ours = grid.sample(video, generator, compatible=True)
        yield row(folder.name, f"{name}, drawn", ours, expected[f"{name}.fragments_u8"], EXACT)
        generator.manual_seed(values["seed"])
        rows, columns = grid.draw(*video.shape[1:], generator, compatible=True)
        given = (expected.get(f"{name}.rnd_h", rows), expected.get(f"{name}.rnd_w", columns))
        ours = grid.sample(video, generator, compatible=True, offsets=given)
        yield row(folder.name, f"{name}, given offsets", ours, expected[f"{name}.fragments_u8"], EXACT)
    for name, values in config["frame_samplers"].items():
        sampler = FrameSampler(**values)
        for count in config["num_frames"]:
            key = f"frames.{name}.{count}"
            offsets = outputs.get(f"{key}.rnd_t")
            rng = np.random.RandomState(11 * 1000 + count)
            ours = sampler.indices(count, rng, compatible=True)
            yield row(folder.name, f"{key}, drawn", ours, outputs[key], EXACT)
            given = None if offsets is None else offsets.numpy()
            ours = sampler.indices(count, rng, compatible=True, offsets=given)
            yield row(folder.name, f"{key}, given offsets", ours, outputs[key], EXACT)
    for key, expected in outputs.items():
        if ".view_" in key:
            antialias = key.endswith(".view_u8")
            squash = Squash(size_h=expected.shape[-2], size_w=expected.shape[-1], antialias=antialias)
            yield row(folder.name, key, squash.sample(inputs["resize.video_u8"]), expected, EXACT)


def full(folder: Path) -> Iterator[Row]:
    """``dover_full``: frames to fused scores, through a checkpoint file."""
    config, inputs, outputs = read(folder)
    video = inputs["video_u8"]
    names = ("technical_backbone", "aesthetic_backbone", "head")
    with tempfile.TemporaryDirectory() as place:
        path = Path(place) / "DOVER.pth"
        torch.save({"state_dict": load_file(folder / "state_dict.safetensors")}, path)
        model = load_dover(path, "dover", {name: config[name] for name in names})
    indices = {name: outputs[f"frames.{name}"].numpy() for name in ("technical", "aesthetic")}
    offsets = (outputs["rnd_h"], outputs["rnd_w"])
    raw: dict[str, float] = {}
    for antialias in (False, True):
        views = {
            name: View.from_config(values, antialias=antialias)
            for name, values in config["sample_types"].items()
        }
        generator = torch.Generator()
        if not antialias:
            drawn = draw_frames(views, video.shape[1], np.random.default_rng(0), compatible=True)
            for name, found in drawn.items():
                yield row(folder.name, f"frames.{name}", found, outputs[f"frames.{name}"], EXACT)
        images = ((index, video[:, index]) for index in range(video.shape[1]))
        pixels = sample_views(images, views, indices, generator, compatible=True, offsets=offsets)
        with torch.inference_mode():
            maps = model(pixels)
        raw = {name: float(found.mean()) for name, found in maps.items()}
        if not antialias:
            ours = [raw["aesthetic"]]
            yield row(
                folder.name,
                "aesthetic_raw_no_antialias",
                ours,
                outputs["aesthetic_raw_no_antialias"],
                FEATURES,
            )
    for name in ("technical", "aesthetic"):
        yield row(folder.name, f"{name}_map", maps[name], outputs[f"{name}_map"], FEATURES)
        yield row(folder.name, f"{name}_raw", [raw[name]], outputs[f"{name}_raw"], FEATURES)
    # A raw score that is 1e-6 off moves the fused one by up to 1e-5: the constants divide by 0.04.
    for name, value in fuse(**raw).items():
        yield row(folder.name, f"fused.{name}", [value], outputs[f"fused.{name}"], 1e-4)


def fusion(folder: Path) -> Iterator[Row]:
    """``dover_fusion``: the formula; both published scripts."""
    _, inputs, outputs = read(folder)
    fused = fuse(technical=inputs["technical_raw"].numpy(), aesthetic=inputs["aesthetic_raw"].numpy())
    for name, expected in outputs.items():
        yield row(
            folder.name, name, fused["overall" if name.startswith("overall") else name], expected, FUSED
        )


GOLDEN_TESTS = {
    "dover_technical": branch,
    "dover_aesthetic": branch,
    "dover_mobile_branch": branch,
    "dover_sampling": sampling,
    "dover_full": full,
    "dover_fusion": fusion,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--goldens", type=Path, default=GOLDENS)
    parser.add_argument("--to", type=Path)
    args = parser.parse_args()
    rows = [found for name, test in GOLDEN_TESTS.items() for found in test(args.goldens / name)]
    for found in rows:
        verdict = "ok" if found.passes else "WRONG"
        sys.stdout.write(
            f"{found.golden:20} {found.value:34} {found.difference:9.2e} {found.tolerance:7.0e} {verdict}\n"
        )
    summary: dict[str, Any] = {
        "question": "Is DOVER the reference network, sampling and fusion?",
        "machine": platform.machine(),
        "torch": torch.__version__,
        "values": len(rows),
        "wrong": sum(not found.passes for found in rows),
        "worst": {
            name: max((found for found in rows if found.golden == name), key=lambda found: found.difference)
            for name in GOLDEN_TESTS
        },
    }
    summary["worst"] = {name: asdict(found) for name, found in summary["worst"].items()}
    if args.to is not None:
        args.to.write_text(json.dumps(summary, indent=1) + "\n")
    sys.stdout.write(json.dumps(summary) + "\n")


if __name__ == "__main__":
    main()
