"""Rewards: frozen networks that score frames against prompts, differentiable in the frames."""

from hummingbird.rewards.base import ImageReward, Reward, VideoReward
from hummingbird.rewards.feedback import RewardTerm, WeightSchedule, decode_frames, reward_loss
from hummingbird.rewards.frame_selection import IMAGE_FRAMES, VIDEO_FRAMES, FrameSelection
from hummingbird.rewards.hpsv2 import HPSv2Reward
from hummingbird.rewards.internvideo2 import InternVideo2Reward
from hummingbird.rewards.loading import load_reward
from hummingbird.rewards.nano import NanoImageReward, NanoVideoReward
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
    "NanoImageReward",
    "NanoVideoReward",
    "PickScoreReward",
    "Preprocessing",
    "Reward",
    "RewardTerm",
    "ViCLIPReward",
    "VideoReward",
    "WeightSchedule",
    "decode_frames",
    "load_reward",
    "reward_loss",
]
