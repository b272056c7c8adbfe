"""VBench: the official prompts and file names, made here; its scorers, run in an environment of their own.

``totals`` is the arithmetic of the leaderboard, ``suite`` reads the prompts, ``videos`` makes what is
missing, ``bridge`` has the ``vbench`` package score it, ``run`` is the whole, ``report`` what it leaves.
"""

from hummingbird.evaluation.vbench.run import evaluate_vbench
from hummingbird.evaluation.vbench.totals import DIMENSIONS, totals

__all__ = ["DIMENSIONS", "evaluate_vbench", "totals"]
