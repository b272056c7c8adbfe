"""Trains ``nano-vqa``: python -m data_pipeline.vqa.train CONFIG.yaml [--field.name VALUE ...]

Clean shots (real and procedural) are damaged at rising strengths; a shot with one kind of damage at all
strengths is a ladder. The network learns to put each ladder in order. Real sources that are held out are
never read for training; the last step scores ladders made of them. Features are kept in
OUTPUT/features.npz, so that a second run with the same data settings only fits.
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
from tqdm import tqdm

from data_pipeline.vqa.degrade import DEGRADATIONS, Shot, degrade, through_codec
from data_pipeline.vqa.features import TEMPORAL_SHORT_SIDE, clip_features
from data_pipeline.vqa.model import CLEAN_LOGIT, NanoVqa, save_nano_vqa
from data_pipeline.vqa.scenes import RealSource, procedural_shot, real_shot, varied
from hummingbird.config import ConfigError, config_dataclass, load_config
from hummingbird.video_io import VideoError, atomic_path

__all__ = ["Ladders", "TrainConfig", "collect", "evaluate", "fit", "main", "spearman"]

TEMPORAL = ("frame_drops", "shake")
"""Damage of the motion: its ladders are long shots, those of the picture are short ones, to save time."""
EXPOSURE = ("overexposure", "underexposure")
"""Ladders from shots as they are: a dark shot made brighter need not get worse."""
NUM_LEVELS = 5


@config_dataclass
class TrainConfig:
    """Settings of a training run.

    Attributes:
        clips: folder of the real clips.
        sources: the real clips, and which of their parts have no cuts.
        held_out: groups that are only tested on.
        output: folder for features and the report.
        weights: folder that the trained model is written to.
        num_real: shots cut from real sources for training.
        num_procedural: procedural shots for training.
        num_test: shots cut from held-out sources for the test.
        workers: processes that make the ladders.
        seed: of everything.
        steps: optimizer steps.
        batch_size: ladders per step.
        learning_rate: of AdamW, falling to 0 along a cosine.
        weight_decay: of AdamW.
        feature_noise: spread of the noise added to normalised features at each step.
        masking_weight: of the penalty for damage that hides other damage.
        leave_one_out: also fit throw-away models, each on all groups but one, and test each on that one.
    """

    clips: Path
    sources: tuple[RealSource, ...]
    held_out: tuple[str, ...]
    output: Path
    weights: Path
    num_real: int = 60
    num_procedural: int = 40
    num_test: int = 12
    workers: int = 2
    seed: int = 0
    steps: int = 400
    batch_size: int = 96
    learning_rate: float = 1e-2
    weight_decay: float = 0.5
    feature_noise: float = 0.05
    masking_weight: float = 6.0
    leave_one_out: bool = True


@dataclass(frozen=True, kw_only=True)
class Ladders:
    """Features of damaged shots.

    Attributes:
        features: ``(L, 1 + NUM_LEVELS, N)`` float32; index 0 on the second axis is the clean shot.
        strengths: ``(L, 1 + NUM_LEVELS)`` in [0, 1]; 0 for the clean shot.
        degradations: ``(L,)`` names.
        groups: ``(L,)`` source groups; ``procedural`` for scenes.
    """

    features: np.ndarray
    strengths: np.ndarray
    degradations: np.ndarray
    groups: np.ndarray

    def where(self, mask: np.ndarray) -> Ladders:
        """The ladders under a mask ``(L,)``."""
        return Ladders(
            features=self.features[mask],
            strengths=self.strengths[mask],
            degradations=self.degradations[mask],
            groups=self.groups[mask],
        )


def shot_features(shot: Shot, num_frames: int = 3) -> dict[str, float]:
    """Features of a shot in memory; fewer full-size frames than in use, to save time."""
    height, width = shot.frames.shape[1:3]
    scale = min(1.0, TEMPORAL_SHORT_SIDE / min(height, width))
    size = round(width * scale), round(height * scale)
    small = np.stack([cv2.resize(image, size, interpolation=cv2.INTER_AREA) for image in shot.frames])
    picked = ((np.arange(num_frames) + 0.5) * len(shot.frames) / num_frames).astype(int)
    return clip_features(shot.frames[np.unique(picked)], small, shot.times_s)


def _deliver(shot: Shot, seed: int) -> Shot:
    """Pass a shot through a codec without visible loss, as files do; one shot in four stays as it is."""
    generator = np.random.default_rng(seed)
    choice = generator.random()
    if choice < 0.25:
        return shot
    if choice < 0.35:
        frames = through_codec(shot.frames, "mpeg4", {"g": "12"}, int(generator.integers(2, 4)))
    else:
        options = {"crf": str(int(generator.integers(10, 20))), "preset": "veryfast", "g": "48"}
        frames = through_codec(shot.frames, "libx264", options)
    return Shot(frames=frames, times_s=shot.times_s)


@dataclass(frozen=True, kw_only=True)
class _Task:
    clips: Path
    source: RealSource | None
    seed: int


def _start(shot: Shot) -> Shot:
    return Shot(frames=shot.frames[:8], times_s=shot.times_s[:8])


def _make_ladders(task: _Task) -> list[tuple[str, list[float], list[dict[str, float]]]]:
    """Every degradation of one shot, at strengths drawn anew for each."""
    generator = np.random.default_rng(task.seed)
    num_frames = int(generator.integers(20, 41))
    seed = int(generator.integers(2**31))
    if task.source is None:
        long = procedural_shot(num_frames, seed)
    else:
        long = real_shot(task.clips, task.source, num_frames, seed)
    other = varied(long, int(generator.integers(2**31))) if generator.random() < 0.7 else long
    delivery = int(generator.integers(2**31))
    shots = {"long": other, "short": _start(other), "plain": _start(long)}
    clean = {kind: shot_features(_deliver(shot, delivery)) for kind, shot in shots.items()}
    ladders = []
    for name in DEGRADATIONS:
        kind = "long" if name in TEMPORAL else "plain" if name in EXPOSURE else "short"
        strengths = (np.arange(NUM_LEVELS) + generator.random(NUM_LEVELS)) / NUM_LEVELS
        variant = int(generator.integers(2**31))
        damaged = [degrade(name, shots[kind], float(strength), variant) for strength in strengths]
        rows = [shot_features(_deliver(shot, delivery)) for shot in damaged]
        ladders.append((name, [0.0, *map(float, strengths)], [clean[kind], *rows]))
    return ladders


def _start_worker() -> None:
    cv2.setNumThreads(1)


def _tasks(cfg: TrainConfig) -> list[_Task]:
    seeds = np.random.default_rng(cfg.seed).integers(
        2**31, size=cfg.num_real + cfg.num_procedural + cfg.num_test
    )
    groups = sorted({source.group for source in cfg.sources})
    unknown = set(cfg.held_out) - set(groups)
    if unknown:
        raise ConfigError(
            f"held_out: {', '.join(sorted(unknown))} unknown, expected some of {', '.join(groups)}"
        )
    training = [group for group in groups if group not in cfg.held_out]
    picks = [(training[index % len(training)], index // len(training)) for index in range(cfg.num_real)]
    picks += [
        (cfg.held_out[index % len(cfg.held_out)], index // len(cfg.held_out)) for index in range(cfg.num_test)
    ]
    files = {group: [source for source in cfg.sources if source.group == group] for group in groups}
    sources: list[RealSource | None] = [files[group][turn % len(files[group])] for group, turn in picks]
    sources += [None] * cfg.num_procedural
    return [
        _Task(clips=cfg.clips, source=source, seed=int(seed))
        for source, seed in zip(sources, seeds, strict=True)
    ]


def collect(cfg: TrainConfig) -> tuple[Ladders, tuple[str, ...]]:
    """Make all ladders, or read them where a run with the same data settings left them.

    Returns:
        The ladders and the names of their features.

    Raises:
        ConfigError: a held-out group is unknown.
        VideoError: a real clip cannot be read.
    """
    tasks = _tasks(cfg)
    code = b"".join(
        Path(__file__).with_name(name).read_bytes() for name in ("degrade.py", "features.py", "scenes.py")
    )
    key = hashlib.sha256(repr(tasks).encode() + code).hexdigest()
    path = cfg.output / "features.npz"
    if path.exists():
        stored = np.load(path)
        if str(stored["key"]) == key:
            names = tuple(str(name) for name in stored["names"])
            return Ladders(**{name: stored[name] for name in Ladders.__annotations__}), names
    features, strengths, degradations, groups = [], [], [], []
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(cfg.workers, mp_context=context, initializer=_start_worker) as pool:
        results = tqdm(pool.map(_make_ladders, tasks), total=len(tasks), desc="ladders", mininterval=5)
        for task, ladders in zip(tasks, results, strict=True):
            for name, levels, rows in ladders:
                features.append([list(row.values()) for row in rows])
                strengths.append(levels)
                degradations.append(name)
                groups.append(task.source.group if task.source else "procedural")
                names = tuple(rows[0])
    made = Ladders(
        features=np.array(features, np.float32),
        strengths=np.array(strengths, np.float32),
        degradations=np.array(degradations),
        groups=np.array(groups),
    )
    with atomic_path(path) as partial:
        np.savez(partial, key=key, names=np.array(names), **vars(made))
    return made, names


def fit(cfg: TrainConfig, ladders: Ladders, names: Sequence[str]) -> NanoVqa:
    """Fit the network to put ladders in order.

    Each pair of rungs should differ in logit by half of what their strengths ask for, at least (a logistic
    ranking loss with a margin); so should the amounts of the ladder's own damage; and no other damage may
    seem to get less. A weak term ties the scale to the strengths, so that scores of different damage compare.
    """
    generator = torch.Generator().manual_seed(cfg.seed)
    kinds = tuple(DEGRADATIONS)
    model = NanoVqa(names, kinds)
    features = torch.from_numpy(ladders.features)  # (L, R, N)
    model.feature_mean.copy_(features.mean(dim=(0, 1)))
    model.feature_std.copy_(features.flatten(0, 1).std(dim=0) + 1e-3)
    inputs = model.normalised(features)
    strengths = torch.from_numpy(ladders.strengths)
    goals = torch.where(strengths > 0, 1.8 - 4.6 * strengths, 2.6)  # (L, R) logits of the rungs
    upper, lower = torch.triu_indices(goals.shape[1], goals.shape[1], offset=1)
    margins = 0.5 * (goals[:, upper] - goals[:, lower])  # (L, pairs)
    own_kinds = torch.tensor([kinds.index(name) for name in ladders.degradations])
    optimizer = torch.optim.AdamW(model.parameters(), lr=cfg.learning_rate, weight_decay=cfg.weight_decay)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, cfg.steps)
    for _ in range(cfg.steps):
        picked = torch.randint(len(goals), (cfg.batch_size,), generator=generator)
        noise = torch.randn(inputs[picked].shape, generator=generator)
        damage = model.damage(inputs[picked] + cfg.feature_noise * noise)  # (B, R, D)
        logits = CLEAN_LOGIT - damage.sum(dim=-1)
        rise = damage[:, lower] - damage[:, upper]  # (B, pairs, D)
        own = rise[torch.arange(cfg.batch_size), :, own_kinds[picked]]  # (B, pairs)
        ranking = torch.nn.functional.softplus(2 * (margins[picked] - rise.sum(dim=-1))).mean()
        naming = torch.nn.functional.softplus(2 * (margins[picked] - own)).mean()
        masking = torch.nn.functional.relu(-rise).sum(dim=-1).mean()
        scale = torch.nn.functional.smooth_l1_loss(logits, goals[picked])
        loss = ranking + 0.5 * naming + cfg.masking_weight * masking + 0.1 * scale
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return model.eval()


def spearman(scores: np.ndarray) -> np.ndarray:
    """Rank correlation of each row of ``(L, n)`` with falling order; ties share their mean rank."""
    less = (scores[:, :, None] > scores[:, None, :]).sum(axis=2)
    equal = (scores[:, :, None] == scores[:, None, :]).sum(axis=2)
    ranks = less + (equal - 1) / 2
    ranks = ranks - ranks.mean(axis=1, keepdims=True)
    order = np.arange(scores.shape[1])[::-1] - (scores.shape[1] - 1) / 2
    spread = np.sqrt((ranks**2).sum(axis=1) * (order**2).sum())
    return np.divide(ranks @ order, spread, out=np.zeros(len(scores)), where=spread > 0)


@torch.no_grad()
def evaluate(model: NanoVqa, ladders: Ladders) -> dict[str, dict[str, float]]:
    """Figures by degradation, and their mean under ``all``.

    Returns:
        ``spearman``: mean rank correlation of score with falling strength; ``pairs``: share of pairs, clean
        against the two highest strengths, in which the clean shot scores higher.
    """
    scores = model(torch.from_numpy(ladders.features)).numpy()
    correlations = spearman(scores)
    right = (scores[:, :1] > scores[:, -2:]).mean(axis=1)
    report = {}
    for name in DEGRADATIONS:
        mask = ladders.degradations == name
        report[name] = {"spearman": float(correlations[mask].mean()), "pairs": float(right[mask].mean())}
    report["all"] = {
        figure: float(np.mean([report[name][figure] for name in DEGRADATIONS]))
        for figure in ("spearman", "pairs")
    }
    return report


def _print_report(title: str, report: dict[str, dict[str, float]]) -> None:
    sys.stdout.write(f"{title}\n")
    for name, figures in report.items():
        sys.stdout.write(f"  {name:15} spearman {figures['spearman']:6.3f}   pairs {figures['pairs']:6.3f}\n")


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit status."""
    words = list(sys.argv[1:] if argv is None else argv)
    if not words or words[0].startswith("-"):
        sys.stderr.write("usage: python -m data_pipeline.vqa.train CONFIG.yaml [--field.name VALUE ...]\n")
        return 0 if words[:1] in (["-h"], ["--help"]) else 2
    try:
        _train(load_config(TrainConfig, words[0], words[1:]))
    except ConfigError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    except (VideoError, OSError) as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    return 0


def _train(cfg: TrainConfig) -> None:
    ladders, names = collect(cfg)
    testing = np.isin(ladders.groups, cfg.held_out)
    training = ladders.where(~testing)
    reports = {}
    if cfg.leave_one_out:
        left_out = []
        for group in sorted(set(ladders.groups) - {"procedural"}):
            model = fit(cfg, ladders.where(ladders.groups != group), names)
            left_out.append(evaluate(model, ladders.where(ladders.groups == group)))
            reports[f"without {group}"] = left_out[-1]
        reports["leave-one-source-out"] = {
            name: {
                figure: float(np.mean([report[name][figure] for report in left_out])) for figure in figures
            }
            for name, figures in left_out[0].items()
        }
        _print_report("leave-one-source-out, mean over sources", reports["leave-one-source-out"])
    model = fit(cfg, training, names)
    reports["training"] = evaluate(model, training)
    _print_report("training", reports["training"])
    if testing.any():
        reports["held out"] = evaluate(model, ladders.where(testing))
        _print_report(f"held out: {', '.join(cfg.held_out)}", reports["held out"])
    save_nano_vqa(model, cfg.weights)
    with atomic_path(cfg.output / "report.json") as partial:
        partial.write_text(json.dumps(reports, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    torch.set_num_threads(1)  # the same sums in the same order on any machine
    sys.exit(main())
