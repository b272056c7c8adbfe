"""8-bit linear layers: near the plain video, only where they fit, only where the device can."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from hummingbird import runtime
from hummingbird.backends import BackendSettings
from hummingbird.bench import fill_zeros, random_pipeline
from hummingbird.models.shells import build_shell
from hummingbird.quantization import QUANTIZATIONS, quantize_unet

CPU = BackendSettings(backend="cpu")


@pytest.mark.parametrize(("how", "most"), [("int8", 0.01), ("int8-dynamic", 0.05), ("fp8", 0.1)])
def test_answers_stay_near(how: str, most: float) -> None:
    pytest.importorskip("torchao", reason="the package torchao is not here")
    torch.manual_seed(0)
    unet = random_pipeline(build_shell("nano", "cpu", torch.float32)).unet
    fill_zeros(unet)
    generator = torch.Generator().manual_seed(1)
    sample = torch.randn(1, 4, 2, 8, 8, generator=generator)
    embeds = torch.randn(1, 20, int(unet.config.cross_attention_dim), generator=generator)
    with torch.no_grad():
        plain = unet(sample, 500, embeds, fps=8, return_dict=False)[0]
        report = quantize_unet(unet, how, CPU)
        rounded = unet(sample, 500, embeds, fps=8, return_dict=False)[0]
    change = float((rounded - plain).norm() / plain.norm())
    assert 0.0 < change < most
    assert report.num_layers > 20
    assert 0.05 < report.share < 1.0


def test_only_wide_layers_take_part() -> None:
    pytest.importorskip("torchao", reason="the package torchao is not here")
    wide, narrow, odd = torch.nn.Linear(64, 32), torch.nn.Linear(16, 64), torch.nn.Linear(64, 40)
    network = torch.nn.ModuleList([wide, narrow, odd, torch.nn.Conv2d(32, 32, 1)])
    report = quantize_unet(network, "int8", CPU)
    assert (report.num_layers, report.num_parameters) == (1, 64 * 32)
    assert type(network[0].weight) is not torch.nn.Parameter
    assert type(network[1].weight) is type(network[2].weight) is type(network[3].weight) is torch.nn.Parameter


def test_a_device_that_cannot_multiply_so_is_told_what_can() -> None:
    with pytest.raises(ValueError, match="fp8-dynamic on sm_80, which does not multiply in 8-bit floats"):
        quantize_unet(
            torch.nn.Linear(64, 64), "fp8-dynamic", BackendSettings(backend="cuda", architecture="sm_80")
        )
    with pytest.raises(ValueError, match="got 'int4', expected one of int8, int8-dynamic, fp8, fp8-dynamic"):
        quantize_unet(torch.nn.Linear(64, 64), "int4", CPU)


def test_without_torchao_one_line_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchao.quantization", None)
    with pytest.raises(ImportError, match=r"hummingbird-t2v\[quantize\]"):
        quantize_unet(torch.nn.Linear(64, 64), "int8", CPU)


def test_a_pipeline_is_loaded_so(tiny_model: Path) -> None:
    pytest.importorskip("torchao", reason="the package torchao is not here")
    pipe = runtime.load_pipeline(str(tiny_model), "cpu", quantization="int8")
    kinds = {
        type(module.weight).__name__ for module in pipe.unet.modules() if isinstance(module, torch.nn.Linear)
    }
    assert len(kinds) == 2
    assert len(pipe("x", num_inference_steps=1, output_type="np").frames) == 1
    with pytest.raises(ValueError, match="got 'int8' with memory 'fp8', expected one of the two"):
        runtime.load_pipeline(str(tiny_model), "cpu", memory="fp8", quantization="int8")


def test_none_is_a_choice_but_no_way() -> None:
    assert QUANTIZATIONS[0] == "none"
    with pytest.raises(ValueError, match="got 'none'"):
        quantize_unet(torch.nn.Linear(64, 64), "none", CPU)
