"""What every test of an error asks of it."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from ftbench.errors import FtbenchError


@contextmanager
def one_line(*parts: str, kind: type[FtbenchError] = FtbenchError) -> Iterator[None]:
    """Expect an error of one line that names all `parts`."""
    with pytest.raises(kind) as caught:
        yield
    text = str(caught.value)
    assert "\n" not in text
    assert not [part for part in parts if part not in text], text


@contextmanager
def one_line_at_most() -> Iterator[None]:
    """Allow an error of one line."""
    try:
        yield
    except FtbenchError as error:
        if "\n" in str(error):
            pytest.fail(f"more than one line: {error}")
