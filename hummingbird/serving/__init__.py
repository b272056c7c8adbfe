"""Many clients, one model: a bounded, fair queue of video jobs that survives restarts, and its HTTP API."""

from hummingbird.serving.engine import Engine, ModelInfo, Progress, QueueFull, StorageFull, UnknownModel
from hummingbird.serving.jobs import Job, JobStore
from hummingbird.serving.requests import Limits, RequestError, VideoRequest

__all__ = [
    "Engine",
    "Job",
    "JobStore",
    "Limits",
    "ModelInfo",
    "Progress",
    "QueueFull",
    "RequestError",
    "StorageFull",
    "UnknownModel",
    "VideoRequest",
]
