"""What Sphinx needs to know; `python -m workshop.site` calls it."""

import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

import mechsteer

# The one setting that addresses depend on: "owner/name" on GitHub. Without it there are no badges.
REPOSITORY = os.environ.get("SITE_REPOSITORY", "")

project, author, release = "mechsteer", "the authors of mechsteer", mechsteer.__version__
html_title = "mechsteer"
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx_copybutton", "sphinx_design"]
extensions += ["workshop.site.nodes", "workshop.site.docstrings"]
exclude_patterns = ["figures"]
root_doc = "index"

nb_execution_mode = "off"
nb_ipywidgets_js = {}  # nothing here has a kernel
nb_merge_streams = True
myst_enable_extensions = ["dollarmath", "colon_fence", "deflist"]
myst_heading_anchors = 4
html_math_renderer = "mathml"

autodoc_member_order = "bysource"
autodoc_use_type_comments = False  # there are none; looking for them takes two seconds
add_module_names = False
python_maximum_signature_line_length = 88
default_role = "code"
suppress_warnings = ["myst.header", "mystnb.unknown_mime_type", "config.cache"]

html_theme = "pydata_sphinx_theme"
html_static_path = ["_static"]
html_css_files, html_js_files = ["site.css"], ["site.js"]
html_context = {"default_mode": "auto"}
html_copy_source = html_show_sourcelink = False
html_show_sphinx = False
html_theme_options = {
    "logo": {"text": "mechsteer"},
    "navbar_align": "left",
    "header_links_before_dropdown": 6,
    "navbar_end": ["theme-switcher"],
    "article_header_start": [],
    "secondary_sidebar_items": ["page-toc"],
    "show_toc_level": 2,
    "footer_start": ["copyright"],
    "footer_end": [],
    "pygments_light_style": "a11y-high-contrast-light",
    "pygments_dark_style": "github-dark",
    "icon_links": [
        {"name": "GitHub", "url": f"https://github.com/{REPOSITORY}", "icon": "fa-brands fa-github"}
    ]
    if REPOSITORY
    else [],
}
html_sidebars = {"index": [], "glossary": [], "syllabus": [], "readme": []}
