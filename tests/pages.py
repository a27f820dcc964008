"""What tests ask of any page."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest


def axe_findings(browser: Any, scheme: str) -> list[tuple[str, list[str]]]:
    """Return what axe-core says of the page in the browser, light or dark, with every table unfolded."""
    found = importlib.util.find_spec("axe_playwright_python")
    if found is None or found.origin is None:
        pytest.skip("there is no axe-core (axe-playwright-python) to check the page with")
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    try:
        browser.execute_script("document.querySelectorAll('details').forEach(box => { box.open = true; })")
        browser.execute_script((Path(found.origin).parent / "axe.min.js").read_text(encoding="utf-8"))
        result = browser.execute_async_script("axe.run().then(arguments[arguments.length - 1])")
    finally:
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})
    return [(one["id"], [node["html"][:200] for node in one["nodes"][:3]]) for one in result["violations"]]
