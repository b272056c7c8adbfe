"""One file per stage: ingest, shots, basics, motion, quality, dedup, write."""
