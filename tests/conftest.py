"""Marks of the tests outside the notebooks: `slow` runs when asked for (`-m slow`, make test-slow)."""
import pytest


def pytest_configure(config):
    config.addinivalue_line("markers", "slow: minutes or more; run by make test-slow")


def pytest_collection_modifyitems(config, items):
    if "slow" in (config.option.markexpr or ""): return
    for item in items:
        if "slow" in item.keywords: item.add_marker(pytest.mark.skip(reason="slow: make test-slow"))
