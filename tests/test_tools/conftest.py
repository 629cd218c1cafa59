"""Fixtures of the tests of tools."""

import importlib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture
def tool(request, monkeypatch):
    """Return the module of tools/ that the test module names as its TOOL."""
    monkeypatch.syspath_prepend(ROOT)
    monkeypatch.syspath_prepend(ROOT / 'tools')
    return importlib.import_module(request.module.TOOL)
