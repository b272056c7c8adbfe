"""Finds the pipeline's class in the installed package (``pip install hummingbird-t2v``), for

``DiffusionPipeline.from_pretrained(FOLDER, custom_pipeline="pipeline", trust_remote_code=True)``.
"""

from hummingbird import HummingbirdPipeline

__all__ = ["HummingbirdPipeline"]
