"""How Sphinx builds these pages: `make docs`. No page needs the network, neither to be built nor to be read."""

from runner import __version__

project = "vecrun"
author = "the authors of vecrun"
project_copyright = "the authors of vecrun, Apache-2.0"
release = version = __version__

extensions = ["myst_parser"]
root_doc = "index"
nitpicky = True  # a reference that leads nowhere is a warning, and make docs takes warnings for errors
myst_heading_anchors = 4

html_theme = "alabaster"
html_title = f"vecrun {release}"
html_copy_source = False
html_show_sourcelink = False
html_theme_options = {
    "description": "Plan and apply for vector databases",
    "fixed_sidebar": True,
    "page_width": "1240px",
    "body_max_width": "960px",
    "sidebar_width": "260px",
    "show_powered_by": False,
}
html_sidebars = {"**": ["about.html", "searchfield.html", "navigation.html", "relations.html"]}
