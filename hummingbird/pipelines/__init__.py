"""Text to video in one call."""

from hummingbird.pipelines.decoding import FrameDecodeError
from hummingbird.pipelines.output import HummingbirdPipelineOutput
from hummingbird.pipelines.pipeline_hummingbird import HummingbirdPipeline

__all__ = ["FrameDecodeError", "HummingbirdPipeline", "HummingbirdPipelineOutput"]
