"""mkdocs hooks: adds generated pages and tables, and rewrites links to them."""

import json
import posixpath
import re
from pathlib import Path

from _config_reference import configuration_reference
from _notebooks import to_markdown
from _published_weights import MARKER, published_weights
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[1]
RESULT_PAGES = sorted(ROOT.glob("benchmarks/results/*.md"))
PAGES = {"experiments/RESULTS.md": "results/tables.md"}
PAGES |= {f"benchmarks/results/{path.name}": f"results/{path.name}" for path in RESULT_PAGES}
PAGES |= {"CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md"}
LINK = re.compile(r"(!?\[[^\]]*\])\(([^)\s]+)\)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds generated pages, their pictures and the configuration reference."""
    for source, target in (PAGES | _pictures()).items():
        files.append(File.generated(config, target, abs_src_path=str(ROOT / source)))
    reference = configuration_reference()
    files.append(File.generated(config, "reference/configuration.md", content=reference))
    for notebook in sorted(ROOT.glob("docs/notebooks/*.ipynb")):
        page = to_markdown(json.loads(notebook.read_text()))
        files.append(File.generated(config, f"notebooks/{notebook.stem}.md", content=page))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Inserts the table of published weights; rewrites links between files to links between pages."""
    if MARKER in markdown:
        markdown = markdown.replace(MARKER, published_weights())
    sources = {target: source for source, target in PAGES.items()}
    here = sources.get(page.file.src_uri, f"docs/{page.file.src_uri}")

    def rewrite(match: re.Match) -> str:
        text, link = match.groups()
        path, _, anchor = link.partition("#")
        if "://" in link or not path:
            return match[0]
        source = posixpath.normpath(posixpath.join(posixpath.dirname(here), path))
        target = _site_path(source)
        if target is None:  # a file of the repository that is no page
            return text.strip("[]") if (ROOT / source).exists() else match[0]
        relative = posixpath.relpath(target, posixpath.dirname(page.file.src_uri) or ".")
        return f"{text}({relative}{'#' + anchor if anchor else ''})"

    return LINK.sub(rewrite, markdown)


def _site_path(source: str) -> str | None:
    if source.startswith("docs/"):
        return source.removeprefix("docs/").replace(".ipynb", ".md")
    return (PAGES | _pictures()).get(source)


def _pictures() -> dict[str, str]:
    """Paths on the site of the pictures that result pages show."""
    pictures = {}
    for folder in ("benchmarks", "experiments"):
        for path in ROOT.glob(f"{folder}/results/**/*.png"):
            relative = path.relative_to(ROOT / folder).as_posix()
            pictures[f"{folder}/{relative}"] = relative
    return pictures
