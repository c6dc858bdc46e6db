"""Say whether a tag, the package, CITATION.cff and the changelog agree on a release: python .ci/changelog.py v1.2.3."""

import re
import sys
from datetime import date
from pathlib import Path

ROOT = Path(__file__).parents[1]


def first(pattern: str, file: str) -> str | None:
    """What the group of a pattern matches first in a file, if anything."""
    found = re.search(pattern, (ROOT / file).read_text(encoding="utf-8"), re.M)
    return found[1] if found else None


def disagreements(tag: str) -> list[str]:
    """What stands in the way of a release under a tag."""
    version = tag.removeprefix("v")
    versions = {
        "lightning_ssc/version.py": first(r'^__version__ = "(.+)"$', "lightning_ssc/version.py"),
        "CITATION.cff": first(r"^version: (.+)$", "CITATION.cff"),
    }
    said = [f"{file} has version {found}, the tag is {tag}." for file, found in versions.items() if found != version]
    day = first(rf"^## \[{re.escape(version)}\] - (\d{{4}}-\d\d-\d\d)$", "CHANGELOG.md")
    if day is None:
        return [*said, f'CHANGELOG.md has no "## [{version}] - <date>".']
    if day != first(r"^date-released: (.+)$", "CITATION.cff"):
        said.append(f"CITATION.cff has another date of release than CHANGELOG.md, {day}.")
    if date.fromisoformat(day) > date.today():
        said.append(f"CHANGELOG.md dates {version} in the future, {day}.")
    return said


if __name__ == "__main__":
    sys.exit("\n".join(disagreements(sys.argv[1])) or None)
