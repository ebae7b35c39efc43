"""Make a site of Markdown that is written to be read in the repository.

README.md is the front page, and the pages that nav names outside docs/ are pages of the site. Relative links are
written for the repository; here they lead to the pages, or, where the site has none, to the repository's web page.
Docstrings may say `Example:`.
"""

from __future__ import annotations

import re
from pathlib import Path, PurePosixPath
from posixpath import normpath, relpath
from typing import Any

import griffe
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]
LINK = re.compile(r"(?<=\]\()(?![a-z]+:|#)([^)#\s]+)(?=[)#])")


def _pages(nav: Any) -> list[str]:
    if isinstance(nav, str):
        return [nav]
    return [page for part in (nav.values() if isinstance(nav, dict) else nav) for page in _pages(part)]


def _source(page: str) -> str:
    """The path in the repository of a page of the site."""
    if page == "index.md":
        return "README.md"
    return page if (ROOT / page).exists() else f"docs/{page}"


def _add(files: Files, config: MkDocsConfig, uri: str, source: str) -> None:
    if files.get_file_from_path(uri) is None:
        files.append(File.generated(config, uri, abs_src_path=str(ROOT / source)))


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that are not in docs/, and without repo_url the files that pages link to."""
    for page in _pages(config.nav):
        if not _source(page).startswith("docs/"):
            _add(files, config, page, _source(page))
    if not config.repo_url:
        for page in _pages(config.nav):
            source = _source(page)
            for target in LINK.findall((ROOT / source).read_text()):
                path = normpath(PurePosixPath(source).parent / target)
                if _uri(path, config) is None and (ROOT / path).is_file():
                    _add(files, config, f"source/{path}", path)
    return files


def _uri(path: str, config: MkDocsConfig) -> str | None:
    """Where the site has a file of the repository, if it has it."""
    if path.startswith("docs/"):
        return path.removeprefix("docs/")
    return {_source(page): page for page in _pages(config.nav)}.get(path)


def on_page_markdown(markdown: str, *, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Rewrite the links of a page, which are relative to its place in the repository."""
    source = _source(page.file.src_uri)

    def rewrite(match: re.Match[str]) -> str:
        path = normpath(PurePosixPath(source).parent / match[1])
        if path.startswith("..") or not (ROOT / path).exists():
            raise PluginError(f"{source}: a link to {match[1]}, which does not exist")
        uri = _uri(path, config)
        if uri is None and config.repo_url:
            return f"{config.repo_url.rstrip('/')}/{'tree' if (ROOT / path).is_dir() else 'blob'}/HEAD/{path}"
        return relpath(uri or f"source/{path}", PurePosixPath(page.file.src_uri).parent)

    return LINK.sub(rewrite, markdown)


class Examples(griffe.Extension):
    """Let griffe take an `Example:` for its section `Examples:`, which is set as code."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        if obj.docstring:
            obj.docstring.value = re.sub("^( *)Example:$", r"\1Examples:", obj.docstring.value, flags=re.M)
