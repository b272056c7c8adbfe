"""Smaller networks from larger ones: which blocks stay, whose weights they inherit, what that saves."""

from hummingbird.pruning.costs import Cost, Probe
from hummingbird.pruning.plan import NAMED_PLANS, PlanError, PruningPlan, load_plan, named_plan
from hummingbird.pruning.report import PruningReport
from hummingbird.pruning.search import SearchResult, search_pipeline, search_plan
from hummingbird.pruning.surgery import prune_pipeline, prune_unet

__all__ = [
    "NAMED_PLANS",
    "Cost",
    "PlanError",
    "Probe",
    "PruningPlan",
    "PruningReport",
    "SearchResult",
    "load_plan",
    "named_plan",
    "prune_pipeline",
    "prune_unet",
    "search_pipeline",
    "search_plan",
]
