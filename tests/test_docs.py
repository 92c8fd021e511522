"""The examples in the documentation give what it says, and its site can be built."""

import doctest
import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"


@pytest.mark.parametrize("page", [page.name for page in sorted(DOCS.glob("*.md")) if ">>>" in page.read_text()])
def test_page(page):
    outcome = doctest.testfile(str(DOCS / page), module_relative=False)
    assert outcome.attempted > 0 and outcome.failed == 0


def sources():
    """tools/docs_sources.py, which is not part of the package."""
    spec = importlib.util.spec_from_file_location("docs_sources", ROOT / "tools" / "docs_sources.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_pages_show_sources_that_are_there():
    """The hook refuses a name that a file does not have; what it leaves alone would be shown as it is."""
    show, shown = sources().on_page_markdown, 0
    for page in DOCS.glob("*.md"):
        text = show(page.read_text())
        shown += text.count(' title="')
        assert not re.search(r"^```\w+\n(# |/\* )\S+\.(py|h)\b.*\n```$", text, re.MULTILINE), page.name
    assert shown > 20


@pytest.mark.parametrize(
    "mark", ["python\n# pycnn/reference/pool.py: no_such", "c\n/* csrc/kernels/pool.h: no_such */"]
)
def test_a_page_that_shows_what_is_not_there_is_refused(mark):
    with pytest.raises(ValueError, match=r"pool\.\w+ has no no_such"):
        sources().on_page_markdown(f"```{mark}\n```")


def test_site(tmp_path):
    """Every page is in the contents, every link leads somewhere, every name of the API pages is found."""
    for name in ("mkdocs", "material", "mkdocstrings_handlers.python"):
        pytest.importorskip(name)
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", tmp_path],
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    page = (tmp_path / "api" / "reference.html").read_text()
    assert 'id="pycnn.reference.conv2d"' in page and "y[n][k][oh][ow] = b[k] +" in page
    assert "def max_pool2d_backward" in re.sub(r"<[^>]+>", "", (tmp_path / "pooling.html").read_text())
