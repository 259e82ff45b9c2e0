"""A plugin to begin with: `ftbench new NAME` writes a distribution that installs, passes its tests and runs."""
