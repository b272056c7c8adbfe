"""The page: what is shown and what a press of a button asks for. No sampling code lives here.

Every video is a job of ``hummingbird.serving``'s engine, the same queue that the HTTP interface uses.
"""
