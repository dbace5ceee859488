"""How Sphinx builds the site: ``make docs``. Nothing is fetched; `reference_tables` makes tables from the code."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

import reference_tables
import zmqagents

project = "zmqagents"
author = copyright = "The zmqagents authors"
release = version = zmqagents.__version__
extensions = [
    "sphinx.ext.autodoc", "sphinx.ext.viewcode", "sphinx_copybutton", "sphinx_design", "notfound.extension",
]  # fmt: skip
html_theme = "furo"
html_title = f"zmqagents {release}"
exclude_patterns = ["_build"]
root_doc = "index"
autodoc_typehints = "description"
autodoc_member_order = "bysource"
autoclass_content = "class"
copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True
notfound_urls_prefix = ""
smartquotes = False  # they would make one dash of the two of an option
suppress_warnings = ["ref.python"]  # of two classes of one name, `Connection` say, autodoc may link either


def setup(app: Any) -> None:
    """Add the directives that make tables from the code."""
    for name, directive in reference_tables.DIRECTIVES.items():
        app.add_directive(name, directive)
