"""Raw videos to curated, captioned, sharded clips."""
