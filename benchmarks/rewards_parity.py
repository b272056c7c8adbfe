"""Do the rewards give the original's numbers? One row per recorded value; the last line is JSON.

    python benchmarks/rewards_parity.py [FOLDER]

FOLDER holds ``hpsv2``, ``pickscore``, ``viclip`` and ``internvideo2``, each with ``config.json``,
``state_dict.safetensors``, ``inputs.safetensors`` and ``outputs.safetensors``; ../shared/reference/rewards/
visible where left out. A reward is built by its ``from_config`` from the folder's own configuration and
weights, so any folder of this layout can be given. What is not recorded is not compared.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor

from hummingbird.rewards import HPSv2Reward, InternVideo2Reward, PickScoreReward, ViCLIPReward

DEFAULT = Path(__file__).resolve().parents[2] / "shared" / "reference" / "rewards" / "visible"
FEATURES, SCORES, GRADIENTS = 1e-5, 2e-6, 1e-5


@dataclass(frozen=True)
class Row:
    """One comparison: the largest absolute difference, which must be at most the tolerance."""

    golden: str
    value: str
    max_abs_diff: float
    largest: float
    tolerance: float

    @property
    def passed(self) -> bool:
        return self.max_abs_diff <= self.tolerance


class Golden:
    """A folder, and rows of what is recorded there."""

    def __init__(self, folder: Path) -> None:
        self.name = folder.name
        self.config: dict[str, Any] = json.loads((folder / "config.json").read_text())
        self.state_dict, self.inputs, self.outputs = (
            load_file(folder / f"{part}.safetensors") for part in ("state_dict", "inputs", "outputs")
        )

    def row(self, key: str, ours: Tensor, tolerance: float) -> Iterator[Row]:
        if key in self.outputs:
            recorded = self.outputs[key].double()
            difference = (ours.detach().double().reshape(recorded.shape) - recorded).abs().max().item()
            yield Row(self.name, key, difference, recorded.abs().max().item(), tolerance)

    def gradient(self, prefix: str, scores: Tensor, frames: Tensor) -> Iterator[Row]:
        """Tolerances are relative to the largest recorded value."""
        (gradient,) = torch.autograd.grad(scores.sum(), frames)
        for key, ours in (
            ("input_grad_sub", gradient[..., ::16, ::16]),
            ("input_grad_norm", gradient.norm()),
        ):
            if prefix + key in self.outputs:
                largest = self.outputs[prefix + key].abs().max().item()
                yield from self.row(prefix + key, ours, GRADIENTS * largest)


def image_reward(golden: Golden, cls: Any) -> Iterator[Row]:
    reward = cls.from_config(golden.config, golden.state_dict)
    rough = cls(reward.network, replace(reward.preprocessing, antialias=False))
    prompts = golden.config["prompts"]
    if "tokens" in golden.outputs:
        yield from golden.row("tokens", reward.tokenize(prompts)["input_ids"], 0.0)
        yield from golden.row("text_features", F.normalize(reward.embed_prompts(prompts), dim=-1), FEATURES)
    for case in range(len(golden.config["sizes"])):
        prefix = f"case{case}."
        frames = (golden.inputs[f"{prefix}images_u8"].float() / 255.0)[:, None].requires_grad_()
        asked = prompts[: len(frames)]
        pixels = reward.pixel_values(frames)[:, 0, :, ::4, ::4]
        yield from golden.row(f"{prefix}pixel_values_sub4", pixels, FEATURES)
        if f"{prefix}input_ids" in golden.outputs:
            yield from golden.row(f"{prefix}input_ids", reward.tokenize(asked)["input_ids"], 0.0)
            yield from golden.row(f"{prefix}text_features_raw", reward.embed_prompts(asked), FEATURES)
        features = F.normalize(reward.embed_frames(frames)[:, 0], dim=-1)
        yield from golden.row(f"{prefix}image_features", features, FEATURES)
        scores = reward(frames, asked)
        yield from golden.row(f"{prefix}score", scores, SCORES)
        yield from golden.row(f"{prefix}score_no_antialias", rough(frames, asked), SCORES)
        yield from golden.gradient(prefix, scores, frames)


def viclip(golden: Golden) -> Iterator[Row]:
    reward = ViCLIPReward.from_config(golden.config, golden.state_dict)
    prompts = golden.config["prompts"]
    yield from golden.row("tokens", reward.tokenize(prompts)["input_ids"], 0.0)
    yield from golden.row("text_features_raw", reward.embed_prompts(prompts), FEATURES)
    frames = (golden.inputs["video_u8"].float() / 255.0).requires_grad_()
    pixels = reward.pixel_values(frames)[:, min(3, frames.shape[1] - 1), :, ::2, ::2]
    yield from golden.row("pixel_values_frame3_sub2", pixels, FEATURES)
    yield from golden.row("vision_features_raw", reward.embed_frames(frames), FEATURES)
    scores = reward(frames, prompts)
    yield from golden.row("score", scores, SCORES)
    yield from golden.gradient("", scores, frames)


def internvideo2(golden: Golden) -> Iterator[Row]:
    reward = InternVideo2Reward.from_config(golden.config, golden.state_dict)
    tokens = {name: golden.inputs[name] for name in ("input_ids", "attention_mask")}
    vision, embeds = reward.network.vision_encoder, reward.embed_tokens(**tokens)
    yield from golden.row("pos_embed_8f_sub", vision.pos_embed[:, ::8], FEATURES)
    hidden = reward.network.text_encoder["bert"](**tokens).last_hidden_state
    yield from golden.row("text_last_hidden", hidden, FEATURES)
    yield from golden.row("text_proj", embeds, FEATURES)
    frames = (golden.inputs["video_u8"].float() / 255.0).requires_grad_()
    pixels = reward.pixel_values(frames)
    yield from golden.row(
        "pixel_values_frame3_sub2", pixels[:, min(3, pixels.shape[1] - 1), :, ::2, ::2], FEATURES
    )
    yield from golden.row("vision_tokens_sub", vision.tokens(pixels)[:, ::16], FEATURES)
    yield from golden.row("vision_pooled", vision(pixels), FEATURES)
    yield from golden.row("image_mode_pooled", vision(pixels[:, :1]), FEATURES)
    yield from golden.row("vision_proj", reward.embed_frames(frames), FEATURES)
    scores = reward(frames, prompt_embeds=embeds)
    yield from golden.row("score", scores, SCORES)
    yield from golden.gradient("", scores, frames)


def main() -> int:
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else DEFAULT
    rows = [
        *image_reward(Golden(folder / "hpsv2"), HPSv2Reward),
        *image_reward(Golden(folder / "pickscore"), PickScoreReward),
        *viclip(Golden(folder / "viclip")),
        *internvideo2(Golden(folder / "internvideo2")),
    ]
    head = (
        "| golden | value | max abs difference | largest value | tolerance | |\n|---|---|---:|---:|---:|---|"
    )
    print(head)  # noqa: T201
    for row in rows:
        numbers = f"{row.max_abs_diff:.1e} | {row.largest:.3g} | {row.tolerance:.1e}"
        verdict = "ok" if row.passed else "FAILED"
        print(f"| {row.golden} | {row.value} | {numbers} | {verdict} |")  # noqa: T201
    passed = all(row.passed for row in rows)
    result = {"passed": passed, "rows": [{**asdict(row), "passed": row.passed} for row in rows]}
    print(json.dumps(result))  # noqa: T201
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
