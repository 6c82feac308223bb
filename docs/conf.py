"""Settings of the documentation site: `make docs` builds it with Sphinx into build/site, where any warning fails."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import monet
from monet.cli import GROUPS

ROOT = Path(__file__).resolve().parent.parent

# The notebooks run in separate processes: with this checkout, and with their own settings of IPython in place of the
# user's. Each process would warn that it listens on this machine's network.
os.environ["PYTHONPATH"] = str(ROOT)
os.environ["IPYTHONDIR"] = str(ROOT / "build" / "ipython")
PROFILE = ROOT / "build" / "ipython" / "profile_default"
PROFILE.mkdir(parents=True, exist_ok=True)
(PROFILE / "ipython_kernel_config.py").write_text("c.IPKernelApp.log_level = 40\n", encoding="utf-8")

project = "Monet"
author = "The Monet contributors"
release = monet.__version__
html_title = f"Monet {release}"
html_theme = "furo"
html_static_path: list[str] = []
html_copy_source = False

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["conf.py", "notebooks/quick_model.py"]
source_suffix = {".md": "myst-nb", ".py": "myst-nb"}
nb_custom_formats = {".py": ["jupytext.reads", {"fmt": "py:percent"}]}
nb_execution_mode = "force"
nb_execution_timeout = 600
nb_execution_raise_on_error = True
nb_merge_streams = True
myst_heading_anchors = 4
myst_enable_extensions: list[str] = []

default_role = "code"  # a single backtick in a docstring marks code
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_preserve_defaults = True
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 100
napoleon_numpy_docstring = False
napoleon_use_rtype = False
napoleon_custom_sections = ["Source"]


def commands() -> str:
    """A section for every verb of the `monet` command."""
    lines: list[str] = []
    for title, verbs in GROUPS.items():
        lines.append(f"## {title}\n")
        for name, verb in verbs.items():
            lines.append(f"### monet {name}\n\n{verb.summary}\n")
            if not verb.all_words:  # such a verb parses its own words
                lines.append(
                    "```{eval-rst}\n.. autofunction:: " + verb.target.replace(":", ".") + "\n   :no-index:\n```\n"
                )
    return "\n".join(lines)


def read_source(app: Any, name: str, source: list[str]) -> None:
    """Fill the page of all commands."""
    source[0] = source[0].replace("<!-- every command -->", commands())


def setup(app: Any) -> None:
    app.connect("source-read", read_source)
