"""The examples in the documentation give what it says."""

import doctest
from pathlib import Path

import pytest

DOCS = Path(__file__).resolve().parent.parent / "docs"


@pytest.mark.parametrize("page", [page.name for page in sorted(DOCS.glob("*.md")) if ">>>" in page.read_text()])
def test_page(page):
    outcome = doctest.testfile(str(DOCS / page), module_relative=False)
    assert outcome.attempted > 0 and outcome.failed == 0
