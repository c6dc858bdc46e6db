"""Docstrings speak of each other as :func:`name` and in ``.. math::``; this makes links and formulae of that."""

import re
from typing import Any

import griffe

_ROLE = re.compile(r":(?:func|class|data|mod|meth|attr|exc):`(~?)([\w.]+)`")
_MATH = re.compile(r"^ *\.\. math:: (.+)$", re.M)
_INLINE = re.compile(r":math:`([^`]+)`")
_EXAMPLE = re.compile(r"^( *)Example:$", re.M)  # of which griffe knows the plural
_INNER = re.compile(r"<([\w']+), ([\w']+)>")  # an inner product, which Markdown would take for an element


class Docstrings(griffe.Extension):
    """Rewrites docstrings before they are parsed. A reference to what has no place on the site stays plain text."""

    def on_instance(self, *, obj: griffe.Object | griffe.Alias, **_: Any) -> None:
        """Rewrite the docstring of an object."""
        if obj.docstring is not None and not obj.is_alias:
            text = _EXAMPLE.sub(r"\1Examples:", _MATH.sub(r"$$\1$$", obj.docstring.value))
            text = _INLINE.sub(r"$\1$", text)
            text = _INNER.sub(r"⟨\1, \2⟩", text)
            obj.docstring.value = _ROLE.sub(lambda found: _link(obj.module.path, *found.groups()), text)


def _link(module: str, short: str, name: str) -> str:
    path = name if name.startswith("lightning_ssc.") else f"{module}.{name}"
    shown = name.rpartition(".")[2] if short else name
    return f'<autoref optional identifier="{path}"><code>{shown}</code></autoref>'
