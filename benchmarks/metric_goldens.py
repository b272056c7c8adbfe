"""What are the metrics of real clips? Writes tests/goldens/metrics/clips.json; last line JSON.

python benchmarks/metric_goldens.py CLIPS_FOLDER
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

from hummingbird.evaluation.metrics import measure_video

END_S = 0.7
NAMES = (
    "flower_timelapse.mp4",
    "highway_drive.mp4",
    "sign_walk.mkv",
    "phone_dog_rot180.mp4",
    "bird_flight.avi",
)
TARGET = Path(__file__).parents[1] / "tests" / "goldens" / "metrics" / "clips.json"


def main() -> None:
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=formatter)
    parser.add_argument("clips", type=Path)
    arguments = parser.parse_args()
    values: dict[str, object] = {
        "about": {"made_by": "benchmarks/metric_goldens.py", "date": "2026-11-24", "end_s": END_S}
    }
    seconds = {}
    for name in NAMES:
        began = time.process_time()
        values[name] = measure_video(arguments.clips / name, end_s=END_S)
        seconds[name] = round(time.process_time() - began, 2)
    TARGET.write_text(json.dumps(values, indent=1) + "\n")
    print(json.dumps({"cpu_seconds": seconds}))  # noqa: T201


if __name__ == "__main__":
    main()
