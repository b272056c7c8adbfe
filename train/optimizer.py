"""The optimizer: AdamW, with its state in 8 bits where a library on this machine can do that."""

from __future__ import annotations

import importlib
import logging
from typing import Any, Literal

import torch
from torch import nn
from torch.optim import Optimizer

OptimizerName = Literal["adamw", "adamw8bit"]

logger = logging.getLogger(__name__)

_EIGHT_BIT = (("bitsandbytes", "bitsandbytes.optim", "AdamW8bit"), ("torchao", "torchao.optim", "AdamW8bit"))
"""Library, module and class, in the order in which they are tried."""


def make_optimizer(
    network: nn.Module,
    name: OptimizerName,
    learning_rate: float,
    weight_decay: float,
    beta2: float,
    device: torch.device,
) -> Optimizer:
    """AdamW over what ``network`` trains; weight decay on matrices and kernels only.

    Args:
        network: its parameters may still be elsewhere than on ``device``.
        name: ``adamw8bit`` takes bitsandbytes where it works, torchao's where not, torch's AdamW where
            neither does, and says in the log which.
        learning_rate: base rate.
        weight_decay: decoupled.
        beta2: decay of the second moment; that of the first is 0.9.
        device: where training happens.

    Reference:
        Loshchilov and Hutter, arXiv 1711.05101; 8-bit states: Dettmers et al., arXiv 2110.02861.
    """
    settings: dict[str, Any] = {"lr": learning_rate, "betas": (0.9, beta2)}
    groups = parameter_groups(network, weight_decay)
    if name == "adamw8bit":
        reasons = []
        for library, module, class_name in _EIGHT_BIT:
            optimizer_class, reason = _working(module, class_name, device)
            if optimizer_class is not None:
                logger.warning("optimizer: 8-bit AdamW of %s", library)
                return optimizer_class(groups, **settings)
            reasons.append(f"{library}: {reason}")
        logger.warning("optimizer: torch's AdamW, because no 8-bit one works here (%s)", "; ".join(reasons))
    return torch.optim.AdamW(groups, fused=True, **settings)  # one kernel; a third of the time on a CPU


def parameter_groups(network: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Weight decay on matrices and kernels only, not on norms and biases."""
    parameters = [p for p in network.parameters() if p.requires_grad]
    return [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]


def _working(module: str, class_name: str, device: torch.device) -> tuple[Any, str]:
    """The class if one step of it works on this device, else None and why not."""
    try:
        optimizer_class = getattr(importlib.import_module(module), class_name)
        weight = nn.Parameter(torch.ones(64, 128, device=device))  # 8-bit states begin at 4096 elements
        weight.grad = torch.ones_like(weight)
        optimizer_class([weight], lr=0.1).step()
        if not bool(((weight < 1.0) & torch.isfinite(weight)).all()):
            return None, "a step has no effect"
    except (ImportError, AttributeError, RuntimeError, NotImplementedError, OSError) as error:
        return None, " ".join(str(error).split())[:100] or type(error).__name__
    return optimizer_class, ""
