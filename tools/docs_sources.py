"""A hook of mkdocs: pages show the sources themselves, read when the site is built.

A code block of a single comment that names a file of the repository is replaced: `# FILE.py: name, name` by these
functions or classes, `/* FILE.h: name */` by this kernel with its comment, `/* FILE.h */` by the file's first comment.
"""

import ast
import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
MARK = re.compile(
    r"^```(?:python\n# (?P<py>\S+\.py): (?P<names>.+)|c\n/\* (?P<c>\S+\.h)(?:: (?P<kernel>\w+))? \*/)\n```$",
    re.MULTILINE,
)


def definitions(path: str, names: list[str]) -> str:
    """The functions or classes of a Python file, as they stand there."""
    text = (ROOT / path).read_text()
    found = {node.name: node for node in ast.parse(text).body if isinstance(node, (ast.FunctionDef, ast.ClassDef))}
    missing = [name for name in names if name not in found]
    if missing:
        raise ValueError(f"{path} has no {', '.join(missing)}")
    return "\n\n\n".join(ast.get_source_segment(text, found[name]) for name in names)


def kernel(path: str, name: str | None) -> str:
    """A kernel of a C file with its comment, or without a name the comment that the file begins with."""
    comment = r"/\*(?:(?!\*/).)*\*/"
    pattern = rf"\A{comment}" if name is None else rf"^(?:{comment}\n)?static void {name}\(.*?^}}$"
    found = re.search(pattern, (ROOT / path).read_text(), re.DOTALL | re.MULTILINE)
    if found is None:
        raise ValueError(f"{path} has no {name or 'comment at its beginning'}")
    return found[0]


def _shown(mark: re.Match[str]) -> str:
    if mark["c"]:
        return f'```c title="{mark["c"]}"\n{kernel(mark["c"], mark["kernel"])}\n```'
    return f'```python title="{mark["py"]}"\n{definitions(mark["py"], mark["names"].split(", "))}\n```'


def on_page_markdown(markdown: str, **_: Any) -> str:
    return MARK.sub(_shown, markdown)
