"""From sources to examples: conversations in OASST1's schema, or the user's own pairs, become a task's data."""
