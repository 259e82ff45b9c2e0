"""Memory: the budget that a run may use, and the meter that says what it used."""
