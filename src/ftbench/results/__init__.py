"""What runs measured: stored, listed, shown."""
