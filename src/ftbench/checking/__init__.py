"""The contract tests of an algorithm: `ftbench check NAME`, and `pytest --ftbench-algo NAME`."""
