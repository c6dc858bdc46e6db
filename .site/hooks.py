"""What the site is made of: pages from the texts that the repository has, formulae as MathML, notebooks with outputs.

Links between the repository's files are links between pages, so that they hold on both. With SITE_NOTEBOOKS set,
notebooks are run, which takes minutes; without, they are shown as they lie there.
"""

import html
import os
import re
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import latex2mathml.converter
import nbformat
import yaml
from mkdocs.structure.files import File, Files
from nbclient import NotebookClient

ROOT = Path(__file__).resolve().parents[1]
TEXTS = [
    "README.md",
    "CHANGELOG.md",
    ".github/CONTRIBUTING.md",
    "recipes/README.md",
    "tests/benchmarks/README.md",
    *(f".site/pages/{path.name}" for path in sorted(ROOT.glob(".site/pages/*.md"))),
]
REFERENCE = {
    "lightning_ssc": "lightning_ssc",
    **{room: f"lightning_ssc.{room}" for room in ("functional", "analysis", "plots", "measures", "metrics")},
}
LINK = re.compile(r"(?<=\]\()(?!\w+:|#)([^)#\s]+)")


def on_files(files: Files, config: Any) -> Files:
    """Add the pages that are made, and what they link to."""
    pages = {f"reference/{page}.md": reference(module) for page, module in REFERENCE.items()}
    pages |= {
        f"recipes/notebooks/{path.stem}.md": notebook(path) for path in sorted(ROOT.glob("recipes/notebooks/*.ipynb"))
    }
    pages |= {"citing.md": citing()}
    linked = set()
    for source in TEXTS:
        content, targets = with_links(source, text(source))
        pages[placed(source)] = content
        linked |= targets
    for name, content in pages.items():
        if (same := files.get_file_from_path(name)) is not None:
            files.remove(same)
        files.append(File.generated(config, name, content=content))
    for target in sorted(linked):
        if not (ROOT / target).is_file():
            raise FileNotFoundError(f"{target}, which a page links to, is no file")
        if placed(target) not in pages:
            files.append(File.generated(config, target, abs_src_path=str(ROOT / target)))
    return files


def placed(path: str) -> str:
    """Where a file of the repository is on the site: mostly where it is in the repository."""
    path = re.sub(r"^\.(site/pages|github)/", "", path)
    return "citing.md" if path == "CITATION.cff" else re.sub(r"\.ipynb$", ".md", path)


def with_links(source: str, content: str) -> tuple[str, set[str]]:
    """A text with links from its place on the site, and the files of the repository that it links to."""
    targets = {link: os.path.normpath(Path(source).parent / link) for link in LINK.findall(content)}
    start = Path(placed(source)).parent
    moved = LINK.sub(lambda link: Path(os.path.relpath(placed(targets[link[1]]), start)).as_posix(), content)
    return moved, set(targets.values())


def text(source: str) -> str:
    """A file of the repository."""
    return (ROOT / source).read_text(encoding="utf-8")


def reference(module: str) -> str:
    """Everything that a module gives away."""
    return f"# {module}\n\n::: {module}\n    options:\n      show_root_heading: false\n      heading_level: 2\n"


def citing() -> str:
    """How to cite, from CITATION.cff."""
    said = yaml.safe_load(text("CITATION.cff"))
    (paper,) = said["references"]
    fields = {
        "software": {
            "author": "{" + said["authors"][0]["name"] + "}",
            "title": "{" + said["title"] + "}: " + said["abstract"].strip().rstrip("."),
            "year": said["date-released"].year,
            "version": said["version"],
        },
        "article": {
            "author": " and ".join(f"{a['family-names']}, {a['given-names']}" for a in paper["authors"]),
            "title": paper["title"],
            "year": paper["year"],
            "journal": paper["identifiers"][0]["value"],
            "url": paper["url"],
        },
    }
    entries = "\n\n".join(
        f"@{kind}{{{key},\n" + "".join(f"  {name} = {{{value}}},\n" for name, value in fields[kind].items()) + "}"
        for kind, key in (("software", "lightning_ssc"), ("article", "saini2021subspace"))
    )
    return f"# How do I cite it?\n\n{said['message']}\n\n```bibtex\n{entries}\n```\n"


def notebook(path: Path) -> str:
    """A notebook as a page, with outputs if it is to be run."""
    read = nbformat.read(path, as_version=4)
    if os.environ.get("SITE_NOTEBOOKS"):
        with TemporaryDirectory() as scratch:
            NotebookClient(read, timeout=600, resources={"metadata": {"path": scratch}}).execute()
    return "\n\n".join(part for cell in read.cells for part in shown(cell))


def shown(cell: Any) -> list[str]:
    """A cell and its outputs."""
    if cell.cell_type == "markdown":
        return [cell.source]
    parts = [f"```python\n{cell.source}\n```"]
    for output in cell.outputs:
        data = output.get("data", {})
        if "image/png" in data:
            parts.append(f'<img alt="figure" src="data:image/png;base64,{data["image/png"].strip()}">')
        elif "text/html" in data:
            parts.append(data["text/html"])
        elif said := data.get("text/plain") or (output.get("text") if output.get("name") == "stdout" else None):
            parts.append(f"```text\n{said.rstrip()}\n```")
    return parts


def on_page_content(content: str, **_: Any) -> str:
    """Formulae as MathML, which browsers draw without a script."""
    for pattern, display in (
        (r'<span class="arithmatex">\\\((.*?)\\\)</span>', "inline"),
        (r'<div class="arithmatex">\\\[(.*?)\\\]</div>', "block"),
    ):
        content = re.sub(pattern, partial(mathml, display), content, flags=re.S)
    return content


def mathml(display: str, found: re.Match[str]) -> str:
    """One formula; a command that the converter does not know would stand there as it is."""
    formula = str(latex2mathml.converter.convert(html.unescape(found[1]).strip(), display=display))
    if "\\" in formula:
        raise ValueError(f"No MathML for a command in {found[1]}")
    return formula
