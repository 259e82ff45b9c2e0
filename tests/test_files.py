"""How files are written."""

import json
from pathlib import Path
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from ftbench.files import json_text, write_json

LEAVES = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()
VALUES = st.recursive(LEAVES, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner))


@given(st.dictionaries(st.text(), VALUES))
def test_json_says_what_it_was_given(value: dict[str, Any]) -> None:
    assert json.loads(json_text(value)) == value


def test_a_field_is_a_line_and_so_is_each_of_its_own(tmp_path: Path) -> None:
    write_json(tmp_path / "it", {"name": "ä", "list": [1, [2]], "of": {"one": {"deep": [3]}, "none": {}}, "empty": {}})
    assert (tmp_path / "it").read_text(encoding="utf-8").splitlines() == [
        "{",
        '  "name": "ä",',
        '  "list": [1, [2]],',
        '  "of": {',
        '    "one": {"deep": [3]},',
        '    "none": {}',
        "  },",
        '  "empty": {}',
        "}",
    ]
