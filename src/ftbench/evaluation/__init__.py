"""What a model says to held-out prompts, and how it is judged."""
