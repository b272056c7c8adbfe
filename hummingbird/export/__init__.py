"""Models that run without their Python code: ONNX graphs and AOTInductor packages, in a folder of their own.

``build.export_pipeline`` writes such a folder, ``components.load_parts`` reads it; the pipeline that samples
with the parts is the one and only ``HummingbirdPipeline``.
"""

from hummingbird.export.manifest import (
    DTYPES,
    FORMATS,
    TARGETS,
    Bucket,
    ExportError,
    ExportManifest,
    is_exported,
    read_manifest,
)

__all__ = [
    "DTYPES",
    "FORMATS",
    "TARGETS",
    "Bucket",
    "ExportError",
    "ExportManifest",
    "is_exported",
    "read_manifest",
]
