"""Measuring how well a model follows its prompts."""

from hummingbird.evaluation.moving_shapes import evaluate_moving_shapes, judge_videos, summarize

__all__ = ["evaluate_moving_shapes", "judge_videos", "summarize"]
