"""From a model's name to a model in memory, its chat format, and user text made harmless."""
