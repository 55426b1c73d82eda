"""Sphinx's configuration. `make docs` builds the site in `_build/html`, without network; a warning is an error."""

import os
import sys
from pathlib import Path

os.environ.setdefault("MPLBACKEND", "agg")
sys.path.insert(0, str(Path(__file__).parent / "_ext"))

import sccvae

project = "sccvae"
author = "The sccvae developers"
copyright = author
version = release = sccvae.__version__

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.napoleon",
    "sphinx.ext.mathjax",
    "sphinx-mathjax-offline",
    "sphinx_copybutton",
    "sphinx_design",
    "sphinxext.opengraph",
    "from_repository",
    "source_lines",
    "scvi_table",
]
templates_path = ["_templates"]
exclude_patterns = ["_build", "_ext", "_templates"]

# Pages and tutorials. Notebooks are shown with the outputs that are stored in them.
myst_enable_extensions = ["amsmath", "colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3
nb_execution_mode = "off"
nb_ipywidgets_js = {}  # they would come from a server; no tutorial has a widget
nb_merge_streams = True

# The API reference. Sections of prose are written as such, so napoleon need not look for types in them.
autosummary_generate = True
autosummary_imported_members = False
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
python_use_unqualified_type_names = True
maximum_signature_line_length = 80
napoleon_google_docstring = False
napoleon_use_param = False  # arguments that are described together stay together
napoleon_use_rtype = False
napoleon_use_admonition_for_examples = False
napoleon_custom_sections = ["Returns", "Raises"]
default_role = "py:obj"

html_theme = "sphinx_book_theme"
html_title = f"sccvae {release}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_theme_options = {
    "navbar_persistent": [],  # the search field stands in the side bar
    "show_navbar_depth": 1,
    "show_toc_level": 2,
    "use_download_button": False,
    "use_fullscreen_button": False,
}
html_copy_source = False
html_show_sourcelink = False
copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True

# Where the site is served, for the addresses in its opengraph tags.
ogp_site_url = os.environ.get("SCCVAE_DOCS_URL", "")
ogp_site_name = "sccvae"
ogp_social_cards = {"enable": False}
