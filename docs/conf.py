"""The documentation site: `make docs`. Its root is the repository, so that links work here as they do in a checkout."""

from maskco import __version__
from maskco.evaluate.options import Evaluation
from maskco.view_options import ViewConfig

project = "maskco"
author = copyright = "the maskco authors"
version = release = __version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode"]
root_doc = "docs/index"
include_patterns = [
    "docs/**.md",
    "README.md",
    "CONTRIBUTING.md",
    "CHANGELOG.md",
    "benchmarks/README.md",
    "tools/ptxsim/README.md",
]
exclude_patterns = [".*", "build", "runs"]
html_theme = "furo"
html_title = f"maskco {release}"

myst_enable_extensions = ["dollarmath", "amsmath"]
myst_heading_anchors = 3

default_role = "code"  # docstrings write names as Markdown does
smartquotes = False  # --data is no dash
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
autodoc_default_options = {"members": True}
napoleon_numpy_docstring = False
napoleon_use_ivar = True


def setup(app) -> None:
    """Keeps napoleon from reading "Kind: what it is" in an attribute's docstring as a type, and leaves out signatures
    that would list every option of a configuration."""
    written: dict[str, list[str]] = {}

    def remember(app, what, name, object, options, lines) -> None:
        if what in ("attribute", "property"):
            written[name] = list(lines)

    def restore(app, what, name, object, options, lines) -> None:
        if name in written:
            lines[:] = written.pop(name)

    def signature(app, what, name, object, options, arguments, returned) -> tuple[str, None] | None:
        return ("", None) if what == "class" and issubclass(object, (ViewConfig, Evaluation)) else None

    app.connect("autodoc-process-docstring", remember, priority=400)  # napoleon's is 500
    app.connect("autodoc-process-docstring", restore, priority=600)
    app.connect("autodoc-process-signature", signature)
