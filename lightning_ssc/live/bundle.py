"""The modules of the page as one script, for a page that is a single file."""

from __future__ import annotations

import re

from lightning_ssc.live.server import asset

_IMPORT = re.compile(r'^import (\{[^}]*\}) from "\./([\w.]+)";$', re.MULTILINE)
_EXPORT = re.compile(r"^export ((?:async )?(?:function|class|const) (\w+))", re.MULTILINE)


def bundle(entry: str) -> str:
    """A module and what it imports, in the order in which they need each other.

    The modules say ``import { a, b } from "./name.js";`` and ``export function``, ``class`` or ``const``, and nothing
    else of the kind, so that each becomes a function that returns what it exports.

    Args:
        entry: Name of the module whose exports are at hand in the end, as ``modules[entry]``.
    """
    done: dict[str, str] = {}

    def add(name: str) -> None:
        text = asset(name)
        for _, needed in _IMPORT.findall(text):
            if needed not in done:
                add(needed)
        exported = [found[1] for found in _EXPORT.findall(text)]
        body = _EXPORT.sub(r"\1", _IMPORT.sub(r'const \1 = modules["\2"];', text))
        done[name] = f'modules["{name}"] = (() => {{\n{body}\nreturn {{ {", ".join(exported)} }};\n}})();\n'

    add(entry)
    return "const modules = {};\n" + "".join(done.values())
