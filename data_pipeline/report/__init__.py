"""``python -m data_pipeline report``: what a run did to its data, on one page for people to look at."""
