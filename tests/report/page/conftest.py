"""Pages in a browser, and the data that they carry."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from se_lab.spec import RunSpec
from se_lab.store import RunRecord, write_record


def page_data(page: Path) -> dict[str, Any]:
    found = re.search(
        r'<script type="application/json" id="data">(.*?)</script>', page.read_text(encoding="utf-8"), re.DOTALL
    )
    assert found
    return dict(json.loads(found[1]))


def keep(folder: Path, **fields: Any) -> str:
    """Write a record of a trial as training does; returns its folder."""
    host = {"name": "here", "device": "cpu"}
    defaults: dict[str, Any] = {
        "trial_id": folder.name,
        "status": "finished",
        "spec": RunSpec().flat(),
        "execution": {},
    }
    write_record(folder, RunRecord(**{**defaults, "host": host, **fields}))
    return str(folder)


@pytest.fixture
def show(browser: Any) -> Callable[..., Any]:
    """Open a page in the browser, at a fragment of its address, with every figure drawn."""

    def open_page(page: Path, fragment: str = "") -> Any:
        browser.get("about:blank")  # another fragment of the same page would not load it again
        browser.get_log("browser")
        browser.get(page.as_uri() + fragment)
        for _ in range(3000):
            if browser.execute_script("return document.body.dataset.ready"):
                break
            time.sleep(0.1)
        browser.execute_script("redrawAll(true)")
        return browser

    return open_page
