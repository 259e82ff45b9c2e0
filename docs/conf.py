"""How Sphinx builds the documentation: strictly, without a network, from the sources as they are."""

import re
import sys
from pathlib import Path

from pydantic import BaseModel
from sphinx.application import Sphinx

sys.path.insert(0, str(Path(__file__).parent))

import generate

project = "ftbench"
author = "The ftbench authors"
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx_copybutton"]
exclude_patterns = ["_build", "generated/parts"]
myst_heading_anchors = 3
myst_enable_extensions = ["deflist"]

# "--from" is an option, and no dash.
smartquotes = False

html_theme = "furo"
pygments_dark_style = "github-dark"
html_title = "ftbench"
html_static_path = ["static"]
html_css_files = ["own.css"]
html_show_sphinx = False
html_show_copyright = False
html_copy_source = False

# A name between backticks is looked up, and is code where it is nobody's.
default_role = "py:obj"
# Types and exceptions that signatures and `Raises:` name are on some page, but for these:
nitpicky = True
nitpick_ignore_regex = [
    ("py:obj", ".*"),  # between backticks, see above
    # Their pages are on the network
    ("py:class|py:meth", r"Tensor|PreTrainedModel|Path|PluginManager(\.\w+)?|(collections\.abc|pathlib)\..*"),
    # Handed over or raised, never imported
    ("py:class|py:exc", r"ftbench(\.\w+){2,}|FtbenchError|ContractError|EvaluatedPrompt|AttackReply"),
]
autodoc_member_order = "bysource"
autodoc_class_signature = "mixed"
autodoc_preserve_defaults = True
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 80


def _write(app: Sphinx) -> None:
    generate.write(Path(app.srcdir) / "generated")


def _without_fields(
    app: Sphinx, what: str, name: str, obj: object, options: object, signature: str | None, returned: str | None
) -> tuple[str | None, str | None]:
    """Leave out the signature of a model of pydantic's: its fields stand in a table."""
    is_model = isinstance(obj, type) and issubclass(obj, BaseModel)
    return ("" if is_model else signature), returned


def _sections(app: Sphinx, what: str, name: str, obj: object, options: object, lines: list[str]) -> None:
    """Turn `Args:`, `Returns:` and `Raises:` into fields; Napoleon would take any attribute's colon for its type's."""
    fields = {"Args": "param {}", "Raises": "raises {}", "Returns": "returns"}
    section, made = "", []
    for line in lines:
        start = re.fullmatch(r"(Args|Returns|Raises):", line)
        entry = re.fullmatch(r" {4}(\w[\w.]*): (.*)", line)
        if start:
            section = start[1]
        elif section == "Returns" and line.startswith("    ") and made[-1] == "":
            made.append(f":returns: {line.strip()}")
        elif section and section != "Returns" and entry:
            made.append(f":{fields[section].format(entry[1])}: {entry[2]}")
        else:
            made.append(line)
    lines[:] = made


def setup(app: Sphinx) -> None:
    """Have pages generated before Sphinx looks for them."""
    app.connect("builder-inited", _write)
    app.connect("autodoc-process-signature", _without_fields)
    app.connect("autodoc-process-docstring", _sections)
