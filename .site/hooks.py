"""What the site is made of: pages from the texts that the repository has, formulae as MathML, notebooks with outputs.

The site's paths are the repository's, so that links between its files hold on both. With SITE_NOTEBOOKS set, notebooks
are run, which takes minutes; without, they are shown as they lie there.
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

from lightning_ssc import measures

ROOT = Path(__file__).resolve().parents[1]
TEXTS = {
    "README.md": "README.md",
    "CHANGELOG.md": "CHANGELOG.md",
    "CONTRIBUTING.md": ".github/CONTRIBUTING.md",
    "recipes/README.md": "recipes/README.md",
    "tests/benchmarks/README.md": "tests/benchmarks/README.md",
}
REFERENCE = {
    "lightning_ssc": "lightning_ssc",
    **{room: f"lightning_ssc.{room}" for room in ("functional", "analysis", "plots", "measures", "metrics")},
}


def on_files(files: Files, config: Any) -> Files:
    """Add the pages that are made, and what they link to."""
    # Links to a page's source are links to the page: pages lie at the site's root.
    pages = {name: text(source).replace("](.site/pages/", "](") for name, source in TEXTS.items()}
    pages |= {f"reference/{page}.md": reference(module) for page, module in REFERENCE.items()}
    pages |= {
        f"recipes/notebooks/{path.stem}.md": notebook(path) for path in sorted(ROOT.glob("recipes/notebooks/*.ipynb"))
    }
    pages |= {"curves.md": curves(), "costs.md": section("README.md", "What it costs"), "citing.md": citing()}
    for name, content in pages.items():
        files.append(File.generated(config, name, content=content))
    for name, source in TEXTS.items():
        for link in re.findall(r"\]\(([^)#:]+)\)", pages[name]):
            target = (ROOT / source).parent / link
            uri = os.path.normpath(Path(name).parent / link)
            if target.is_file() and target.suffix != ".md" and files.get_file_from_path(uri) is None:
                files.append(File.generated(config, uri, abs_src_path=str(target)))
    return files


def text(source: str) -> str:
    """A file of the repository."""
    return (ROOT / source).read_text(encoding="utf-8")


def section(source: str, title: str) -> str:
    """A part of a file, as a page of its own."""
    found = re.search(rf"^## {re.escape(title)}\n(.*?)(?=^## |\Z)", text(source), re.M | re.S)
    if found is None:
        raise KeyError(f"{source} has no section {title!r}")
    return f"# {title}\n{found[1]}"


def reference(module: str) -> str:
    """Everything that a module gives away."""
    return f"# {module}\n\n::: {module}\n    options:\n      show_root_heading: false\n      heading_level: 2\n"


def curves() -> str:
    """What each curve means, and where its axis runs, from the records."""
    parts = ["# What does this curve mean?\n"]
    for record in measures.MEASURES:
        parts += [f"## {record.title}\n", f"`{record.tag}` — {record.axis}\n", record.meaning + "\n"]
    return "\n".join(parts)


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
