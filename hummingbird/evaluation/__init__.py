"""Measuring how well a model follows its prompts, and what its videos are like."""

from hummingbird.evaluation.moving_shapes import evaluate_moving_shapes, judge_videos, summarize

__all__ = ["evaluate_moving_shapes", "judge_videos", "summarize"]
