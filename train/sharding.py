"""Fully sharded training: each process keeps a part of every weight, gradient, average and optimizer state.

Chosen by an accelerate configuration with ``distributed_type: FSDP`` (configs/accelerate/4gpu_fsdp.yaml).
Sharding is torch's ``fully_shard``, on any device; accelerate itself shards on accelerators only, and nothing
here could then be tried without one. What wants whole weights (samples, ``model/``) gets a copy on the main
process.

Reference:
    Zhao et al., "PyTorch FSDP", arXiv 2304.11277; Rajbhandari et al., "ZeRO", arXiv 1910.02054 (stage 3).
"""

from __future__ import annotations

import copy
import os
import warnings
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from diffusers.training_utils import EMAModel
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from hummingbird.config import ConfigError


def is_sharded(accelerator: Accelerator) -> bool:
    """Whether this run was launched for FSDP; on a CPU, accelerate leaves the wish in the environment."""
    wished = os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true"
    return accelerator.distributed_type == DistributedType.FSDP or (wished and accelerator.num_processes > 1)


def whole(tensor: Tensor) -> Tensor:
    """The tensor itself, or all of a sharded one; then every process must call."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


class Sharding:
    """Shards a network in place and knows the way back.

    Args:
        network: its repeated blocks (``_no_split_modules``) become units of their own; on return its
            parameters are distributed tensors.
        accelerator: of the run.

    Raises:
        ConfigError: fp16, whose loss scaling does not know sharded gradients.
    """

    def __init__(self, network: nn.Module, accelerator: Accelerator) -> None:
        if accelerator.mixed_precision == "fp16":
            raise ConfigError("mixed_precision: got fp16 with FSDP, expected no or bf16")
        self.accelerator = accelerator
        self.copy = (
            copy.deepcopy(network).cpu().requires_grad_(False) if accelerator.is_main_process else None
        )
        self.names = [name for name, _ in network.named_parameters()]
        network.to(accelerator.device)
        # Outputs that are views matter to operations in place on them, and these networks have none.
        warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view tensor")
        mesh = init_device_mesh(accelerator.device.type, (accelerator.num_processes,))
        units = set(getattr(network, "_no_split_modules", None) or ())
        for module in network.modules():
            if type(module).__name__ in units:
                fully_shard(module, mesh=mesh)
        fully_shard(network, mesh=mesh)

    def gather(self, ema: EMAModel) -> None:
        """Brings the copy of the main process up to the averaged weights; every process calls this."""
        parameters = dict(self.copy.named_parameters()) if self.copy is not None else {}
        for name, shadow in zip(self.names, ema.shadow_params, strict=True):
            value = whole(shadow)
            if self.copy is not None:
                parameters[name].copy_(value)

    def save(self, network: nn.Module, optimizer: Optimizer, ema: EMAModel, folder: Path) -> None:
        """Every process writes its part into ``folder``."""
        save(self._state(network, optimizer, ema), checkpoint_id=folder / "shards")
        own = {"ema_step": ema.optimization_step, "rng": _rng()}
        torch.save(own, folder / f"process-{self.accelerator.process_index}.pt")

    def load(self, network: nn.Module, optimizer: Optimizer, ema: EMAModel, folder: Path) -> None:
        """Restores what ``save`` wrote.

        Raises:
            RuntimeError: it is of another network, or of another number of processes.
        """
        num_processes = len(list(folder.glob("process-*.pt")))
        if num_processes != self.accelerator.num_processes:
            raise RuntimeError(
                f"got {self.accelerator.num_processes} processes, expected {num_processes}, which wrote it"
            )
        state = self._state(network, optimizer, ema)
        load(state, checkpoint_id=folder / "shards")
        set_state_dict(
            network, optimizer, model_state_dict=state["model"], optim_state_dict=state["optimizer"]
        )
        own = torch.load(folder / f"process-{self.accelerator.process_index}.pt", weights_only=True)
        ema.optimization_step = own["ema_step"]
        torch.set_rng_state(own["rng"][0])
        if len(own["rng"]) > 1:
            torch.cuda.set_rng_state(own["rng"][1], self.accelerator.device)

    def _state(self, network: nn.Module, optimizer: Optimizer, ema: EMAModel) -> dict[str, Any]:
        """What is sharded. The average's tensors are those it works with: loading fills them in place."""
        model_state, optimizer_state = get_state_dict(network, optimizer)
        average = dict(zip(self.names, ema.shadow_params, strict=True))
        return {"model": model_state, "optimizer": optimizer_state, "ema": average}


def _rng() -> list[Tensor]:
    return [torch.get_rng_state(), *([torch.cuda.get_rng_state()] if torch.cuda.is_available() else [])]
