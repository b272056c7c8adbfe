"""Translation of original configuration files."""

from __future__ import annotations

from typing import Any

import pytest

from hummingbird.models import config_from_ldm, preset_config

ORIGINAL: dict[str, Any] = {
    "in_channels": 4,
    "out_channels": 4,
    "model_channels": 320,
    "attention_resolutions": [4, 2, 1],
    "num_res_blocks": 2,
    "channel_mult": [1, 2, 4, 4],
    "num_head_channels": 64,
    "transformer_depth": 1,
    "context_dim": 1024,
    "use_linear": True,
    "use_checkpoint": True,
    "temporal_conv": True,
    "temporal_attention": True,
    "temporal_selfatt_only": True,
    "use_relative_position": False,
    "use_causal_attention": False,
    "temporal_length": 16,
    "addition_attention": True,
    "fps_cond": True,
}


def test_original_configuration_gives_the_preset() -> None:
    config = config_from_ldm(ORIGINAL)
    preset = preset_config("videocrafter2")
    assert {key: config[key] for key in preset} == preset
    assert config["fps_conditioning"] is True
    assert config["init_attention"] is True


def test_guidance_embedding_and_middle_block() -> None:
    config = config_from_ldm(
        {**ORIGINAL, "num_res_blocks": 1, "time_cond_proj_dim": 256}, has_middle_block=False
    )
    preset = preset_config("hummingbird-0.7b", guidance_embedding=True)
    assert {key: config[key] for key in preset} == preset


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("use_relative_position", True),
        ("use_causal_attention", True),
        ("temporal_selfatt_only", False),
        ("use_linear", False),
        ("motion_cond_proj_dim", 256),
        ("use_scale_shift_norm", True),
        ("never_heard_of", 1),
    ],
)
def test_other_networks_are_refused_by_name(option: str, value: object) -> None:
    with pytest.raises(ValueError, match=option):
        config_from_ldm({**ORIGINAL, option: value})


def test_missing_option_and_unknown_preset() -> None:
    incomplete = {key: value for key, value in ORIGINAL.items() if key != "context_dim"}
    with pytest.raises(ValueError, match="missing context_dim"):
        config_from_ldm(incomplete)
    with pytest.raises(ValueError, match="videocrafter2"):
        preset_config("videocrafter3")
