"""Hooks of the documentation site: pages that live outside of ``docs/``, and the roles in docstrings.

Links in Markdown are written for readers of the repository. Here those that cross the border of ``docs/`` are turned
into links within the site, so that both kinds of readers get links that work, and ``mkdocs build --strict`` checks
them.
"""

import posixpath
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

PAGES = {"CONTRIBUTING.md": "contributing.md", "benchmarks/README.md": "benchmarks.md"}
"""Files of the repository that are pages of the site, and where."""

SOURCES = {page: source for source, page in PAGES.items()}

LINK = re.compile(r"\]\((?!\w+:|#|/)([^)#\s]+)(#[^)\s]*)?\)")
ROLE = re.compile(r":(?:attr|class|data|func|meth|mod):(?=<code>)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that live elsewhere."""
    root = Path(config.config_file_path).parent
    for source, page in PAGES.items():
        files.append(File.generated(config, page, abs_src_path=str(root / source)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turn links between files of the repository into links between pages of the site."""
    uri = page.file.src_uri
    here = posixpath.dirname(SOURCES.get(uri, f"docs/{uri}"))

    def in_site(match: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join(here, match[1]))
        inside = PAGES.get(target) or target.removeprefix("docs/")
        return f"]({posixpath.relpath(inside, posixpath.dirname(uri) or '.')}{match[2] or ''})"

    return LINK.sub(in_site, markdown)


def on_page_content(html: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Show ``:func:`name``` in a docstring as the name alone, and ``::`` before a block as a colon."""
    return ROLE.sub("", html).replace("::</p>", ":</p>")
