"""Models that score clips: one file each, one interface (``base``); ``stages.quality`` chooses among them."""
