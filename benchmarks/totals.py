"""Parameters, state-dict entries and FLOPs of every preset, counted on the meta device; last line JSON.

python benchmarks/totals.py
"""

from __future__ import annotations

import json

import torch

from hummingbird.models import UNetSpatioTemporalModel, preset_config
from hummingbird.models.flops import count_flops


def main() -> None:
    rows = []
    for name in ("videocrafter2", "hummingbird-0.9b", "hummingbird-0.7b"):
        for guidance_embedding in (False, True):
            config = preset_config(name, guidance_embedding)
            with torch.device("meta"):
                unet = UNetSpatioTemporalModel.from_config(config)
            rows.append(
                {
                    "preset": name,
                    "guidance_embedding": guidance_embedding,
                    "parameters": sum(p.numel() for p in unet.parameters()),
                    "entries": len(unet.state_dict()),
                    "tflop_16x40x64": round(count_flops(config, 16, 40, 64) / 1e12, 3),
                }
            )
            print(" | ".join(str(value) for value in rows[-1].values()), flush=True)  # noqa: T201
    print(json.dumps(rows))  # noqa: T201


if __name__ == "__main__":
    main()
