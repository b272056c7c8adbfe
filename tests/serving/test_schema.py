"""The OpenAPI schema says what the server does: schemathesis tries both."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.serving.conftest import Serving

pytestmark = [
    pytest.mark.usefixtures("no_jobs"),
    pytest.mark.skipif(importlib.util.find_spec("schemathesis") is None, reason="needs schemathesis"),
]


def run_schemathesis(serving: Serving, folder: Path, *options: str) -> str:
    """Try every operation with requests that fit the schema and ones that do not."""
    done = subprocess.run(
        [
            *(sys.executable, "-m", "schemathesis.cli", "run", f"{serving.url}/openapi.json"),
            # A request that fits the schema may still be too much work for this server: 400, not 200.
            *("--exclude-checks", "positive_data_acceptance"),
            *("--seed", "0", "--no-color", "--generation-database", "none", "--request-timeout", "60"),
            *options,
        ],
        cwd=folder,
        env={**os.environ, "SCHEMATHESIS_HOOKS": ""},
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
    return done.stdout


def test_the_schema_holds(serving: Serving, tmp_path: Path) -> None:
    told = run_schemathesis(serving, tmp_path, "--phases", "fuzzing", "--max-examples", "5")
    found = re.search(r"(\d+) generated, \d+ passed", told) or re.search(r"(\d+) generated", told)
    assert found, told
    assert int(found[1]) > 30


@pytest.mark.slow
def test_the_schema_holds_at_length(serving: Serving, tmp_path: Path) -> None:
    run_schemathesis(serving, tmp_path, "--max-examples", "60")
