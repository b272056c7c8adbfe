"""Training: one loop (``loop.py``), task objects (``tasks.py``), losses (``losses.py``) and entry points."""
