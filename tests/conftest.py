"""Shared by all tests: no network, no unexpected error in the log, a tiny model folder."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

# Before any library reads them: a test that needs a download is a wrong test.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"

# These do not hand their records to the root logger.
_OWN_ROOTS = ("", "diffusers", "transformers", "accelerate")


class ErrorCollector(logging.Handler):
    """Keeps the text of every error that reaches it."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(f"{record.name}: {record.getMessage()}")


@pytest.fixture(autouse=True)
def no_unexpected_errors(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fail a test that logs an error, unless ``@pytest.mark.logs_error("pattern")`` says that it does."""
    handler = ErrorCollector()
    loggers = [logging.getLogger(name) for name in _OWN_ROOTS]
    for logger in loggers:
        logger.addHandler(handler)
    yield
    for logger in loggers:
        logger.removeHandler(handler)
    expected = [str(mark.args[0]) for mark in request.node.iter_markers("logs_error")]
    surprises = [
        text for text in handler.messages if not any(re.search(pattern, text) for pattern in expected)
    ]
    if surprises:
        pytest.fail("unexpected errors in the log:\n" + "\n".join(surprises))


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a real pipeline made tiny, with classifier-free guidance and defaults of its own."""
    from tests.pipelines.tiny import CALL, tiny_pipeline

    folder = tmp_path_factory.mktemp("tiny") / "model"
    defaults = {name: value for name, value in CALL.items() if name != "output_type"}
    tiny_pipeline(few_step=False, default_call={**defaults, "guidance_scale": 2.0}).save_pretrained(folder)
    return folder
