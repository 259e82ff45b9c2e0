"""The core's fixtures, for the plugins' tests too."""

import importlib.util
from pathlib import Path

_path = Path(__file__).parents[1] / "tests" / "conftest.py"
_spec = importlib.util.spec_from_file_location("ftbench_core_conftest", _path)
assert _spec is not None
assert _spec.loader is not None
_core = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(_core)

tiny_llama, tiny_gpt2, pairs_file, _own_folder = _core.tiny_llama, _core.tiny_gpt2, _core.pairs_file, _core._own_folder
