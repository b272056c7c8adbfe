"""The embedded no-reference video quality model, ``nano-vqa``: features, network, and how it is trained."""
