"""Runs: one recipe in one process."""
