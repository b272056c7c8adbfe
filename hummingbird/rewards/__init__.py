"""Rewards: frozen networks that score frames against prompts, differentiable in the frames."""

from hummingbird.rewards.base import ImageReward, Reward, VideoReward
from hummingbird.rewards.frame_selection import IMAGE_FRAMES, VIDEO_FRAMES, FrameSelection
from hummingbird.rewards.hpsv2 import HPSv2Reward
from hummingbird.rewards.internvideo2 import InternVideo2Reward
from hummingbird.rewards.pickscore import PickScoreReward
from hummingbird.rewards.preprocess import Preprocessing
from hummingbird.rewards.viclip import ViCLIPReward

__all__ = [
    "IMAGE_FRAMES",
    "VIDEO_FRAMES",
    "FrameSelection",
    "HPSv2Reward",
    "ImageReward",
    "InternVideo2Reward",
    "PickScoreReward",
    "Preprocessing",
    "Reward",
    "VideoReward",
    "ViCLIPReward",
]
