"""DOVER and DOVER-Mobile (Wu et al., ICCV 2023, arXiv 2211.04894), written anew; no weights are shipped.

``sampling`` turns a clip into the two views, ``swin`` and ``convnext`` are the backbones, ``model`` has the
heads, the fusion and the reading of checkpoints.
"""
