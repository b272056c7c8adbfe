"""RAFT and VBench's rules against recorded reference values."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from torchvision.models.optical_flow import raft_large

from data_pipeline.stages.raft import (
    RaftFlow,
    farneback_score,
    is_dynamic,
    is_static,
    to_torchvision,
    top_share_mean,
)

GOLDENS = Path(__file__).parents[1] / "goldens" / "rewards"
RULES = ("c0", "c1", "c3", "c4")


def formula_weights(seed: int) -> dict[str, torch.Tensor]:
    """Weights by the formula in the golden's config.json."""
    state_dict = raft_large(weights=None, progress=False).state_dict()
    for name, tensor in state_dict.items():
        if name.endswith("num_batches_tracked"):
            continue
        place = sum((index + 1) * ord(letter) for index, letter in enumerate(name)) + seed * 7919
        wave = np.sin(np.arange(tensor.numel()) * 12.9898 + place * 0.37) * 43758.5453
        x = (wave - np.floor(wave)) * 2 - 1
        if name.endswith("running_var"):
            x = 1 + 0.3 * x
        elif name.endswith(("running_mean", "bias")):
            x = 0.1 * x
        elif tensor.ndim == 1:
            x = 1 + 0.2 * x
        else:
            x = x * np.sqrt(3 * tensor.shape[0] / tensor.numel())
        state_dict[name] = torch.from_numpy(x.astype(np.float32)).reshape(tensor.shape)
    return state_dict


def original_names(state_dict: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The same weights under the names of ``raft-things.pth``, written down by hand from its layout."""
    pairs = (
        ("feature_encoder.", "fnet."),
        ("context_encoder.", "cnet."),
        (".convnormrelu.0.", ".conv1."),
        (".convnormrelu.1.", ".norm1."),
        ("net.conv.", "net.conv2."),
        *((f".convnormrelu{k}.0.", f".conv{k}.") for k in (1, 2)),
        *((f".convnormrelu{k}.1.", f".norm{k}.") for k in (1, 2)),
        *((f"motion_encoder.convcorr{k}.0.", f"encoder.convc{k}.") for k in (1, 2)),
        *((f"motion_encoder.convflow{k}.0.", f"encoder.convf{k}.") for k in (1, 2)),
        ("motion_encoder.conv.0.", "encoder.conv."),
        *((f"recurrent_block.convgru{k}.conv{g}.", f"gru.conv{g}{k}.") for k in (1, 2) for g in "zrq"),
        ("mask_predictor.convrelu.0.", "update_block.mask.0."),
        ("mask_predictor.conv.", "update_block.mask.2."),
    )
    renamed = {}
    for name, tensor in state_dict.items():
        new = name
        for ours, theirs in pairs:
            new = new.replace(ours, theirs)
        renamed[f"module.{new}"] = tensor
        if ".downsample.1." in new:
            renamed[f"module.{new.replace('.downsample.1.', '.norm3.')}"] = tensor
    return renamed


@pytest.fixture(scope="module")
def weights() -> dict[str, torch.Tensor]:
    return formula_weights(json.loads((GOLDENS / "raft_large" / "config.json").read_text())["seed"])


def test_original_names_are_mapped(weights: dict[str, torch.Tensor]) -> None:
    original = original_names(weights)
    assert len(original) > len(weights)
    assert "module.cnet.layer2.0.norm3.weight" in original
    assert "module.update_block.gru.convq2.weight" in original
    mapped = to_torchvision(original)
    assert mapped.keys() == weights.keys()
    assert all(mapped[name] is weights[name] for name in weights)
    assert to_torchvision(weights).keys() == weights.keys()


@pytest.mark.golden
def test_flow_is_the_references(weights: dict[str, torch.Tensor], tmp_path: Path) -> None:
    torch.save(original_names(weights), tmp_path / "raft-things.pth")
    flow = RaftFlow(tmp_path / "raft-things.pth")
    a, b = load_file(GOLDENS / "raft_large" / "inputs.safetensors")["frames_u8"].transpose(0, 2, 3, 1)
    expected = load_file(GOLDENS / "raft_large" / "outputs.safetensors")
    after_3 = flow.padded(a, b, num_iterations=3)
    np.testing.assert_allclose(after_3.transpose(2, 0, 1), expected["flow_3_iters"][0], atol=1e-3)
    after_20 = flow.padded(a, b)
    np.testing.assert_allclose(after_20.transpose(2, 0, 1), expected["flow_20_iters"][0], atol=0.05)
    assert top_share_mean(after_20, 0.02) == pytest.approx(float(expected["static_score"][0]), abs=0.01)
    np.testing.assert_array_equal(flow(a, b), after_20[2:134, 2:182])


@pytest.mark.parametrize("what", ["code", "other"])
def test_a_file_that_is_no_raft_is_refused(what: str, tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    torch.save({"weight": torch.zeros(1)} if what == "other" else {"weight": Path("x")}, path)
    with pytest.raises(ValueError, match="is not RAFT" if what == "other" else "cannot be read as tensors"):
        RaftFlow(path)


@pytest.mark.golden
@pytest.mark.parametrize("case", RULES)
def test_scores_and_rules_on_flows(case: str) -> None:
    inputs, outputs = (
        load_file(GOLDENS / "motion_filters" / f"{kind}.safetensors") for kind in ("inputs", "outputs")
    )
    config = json.loads((GOLDENS / "motion_filters" / "config.json").read_text())[case]
    flows = inputs[f"{case}.flows"].transpose(0, 2, 3, 1)
    static = [top_share_mean(flow, 0.02) for flow in flows]
    dynamic = [top_share_mean(flow, 0.05) for flow in flows[:-2]]
    np.testing.assert_allclose(static, outputs[f"{case}.static_scores"], rtol=1e-5)
    np.testing.assert_allclose(dynamic, outputs[f"{case}.dynamic_scores"], rtol=1e-5)
    size = config["H"], config["W"]
    assert is_static(static[:-2], static[-2:], *size) == bool(outputs[f"{case}.is_static"][0])
    assert is_dynamic(dynamic, *size, config["fps"]) == bool(outputs[f"{case}.is_dynamic"][0])


@pytest.mark.golden
def test_rules_at_their_limits() -> None:
    inputs, outputs = (
        load_file(GOLDENS / "motion_filters" / f"{kind}.safetensors") for kind in ("inputs", "outputs")
    )
    wrong, without_rate = [], 0
    for row, (count, height, width, fps) in enumerate(inputs["decide.meta_N_H_W_fps"].tolist()):
        pairs = inputs["decide.pair_scores"][row, : count - 1].tolist()
        wraps = inputs["decide.tail_scores"][row].tolist()
        static = is_static(pairs, wraps, height, width)
        dynamic = is_dynamic(pairs, height, width, fps)
        if (static, dynamic) != (
            bool(outputs["decide.is_static"][row]),
            bool(outputs["decide.is_dynamic"][row]),
        ):
            wrong.append(row)
        without_rate += is_dynamic(pairs, height, width, fps, slow_rates_need_more=False) != dynamic
    assert not wrong
    assert without_rate > 0


@pytest.mark.golden
def test_farneback_score() -> None:
    frames = load_file(GOLDENS / "motion_filters" / "inputs.safetensors")["farneback.frames_bgr_u8"]
    expected = load_file(GOLDENS / "motion_filters" / "outputs.safetensors")["farneback.score"][0]
    assert farneback_score(frames[..., ::-1].copy()) == pytest.approx(float(expected), abs=1e-3)
