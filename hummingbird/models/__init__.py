"""The spatio-temporal U-Net and its presets."""

from hummingbird.models.presets import config_from_ldm, preset_config
from hummingbird.models.unet import UNetSpatioTemporalModel, UNetSpatioTemporalOutput

__all__ = ["UNetSpatioTemporalModel", "UNetSpatioTemporalOutput", "config_from_ldm", "preset_config"]
