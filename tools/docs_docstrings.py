"""An extension of griffe, which reads docstrings for the site: x[n][c] in them is a formula, not Markdown's link."""

import re
from typing import Any

import griffe

CODE_OR_INDEX = re.compile(r"`[^`]*`|\]\[")


class Formulas(griffe.Extension):
    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        if obj.docstring:
            escaped = CODE_OR_INDEX.sub(lambda m: r"]\[" if m[0] == "][" else m[0], obj.docstring.value)
            obj.docstring.value = escaped
