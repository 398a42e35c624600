"""Makes the README's pictures from the runs of `make demo`, all or those that are named:
`python docs/make_pictures.py [NAME ...]`.

Needs what the tests need (`make setup-test`), and LAB_HOME with the two demo runs.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from playwright.sync_api import sync_playwright  # noqa: E402

from lab import paths  # noqa: E402
from lab.chat import client  # noqa: E402
from tests.e2e import browser  # noqa: E402
from tests.e2e.conftest import FLAGS, Server, settled  # noqa: E402

PICTURES = ROOT / "docs" / "pictures"
SHOTS = (
    ("home", "", "light"),
    ("new-run", "new_run", "light"),
    ("monitor", "monitor", "light"),
    ("monitor-dark", "monitor", "dark"),
    ("runs", "runs", "dark"),
    ("data", "data", "light"),
    ("memory", "memory", "light"),
)


def main() -> int:
    if len(paths.all_runs()) < 2:
        print("Run `make demo` first: the pictures show its runs.", file=sys.stderr)
        return 2
    wanted = set(sys.argv[1:]) or {name for name, *_ in SHOTS} | {"chat"}
    PICTURES.mkdir(exist_ok=True)
    server = Server(paths.home(), paths.models())
    server.start()
    try:
        with sync_playwright() as playwright:
            chrome = playwright.chromium.launch(
                executable_path=browser.installed(), args=list(FLAGS)
            )
            for name, path, theme in (shot for shot in SHOTS if shot[0] in wanted):
                page = open_page(chrome, theme, server)
                page.goto(f"{server.url}/{path}")
                settled(page)
                if path == "memory":  # quick estimates first, then the traced steps
                    page.get_by_text("traced …").wait_for(timeout=120_000)
                    page.get_by_text("traced …").wait_for(state="hidden", timeout=900_000)
                if path == "new_run":
                    page.get_by_text("TIME AND DISK").wait_for(timeout=60_000)
                settled(page)
                shoot(page, name)
            if "chat" in wanted:
                chat(open_page(chrome, "light", server), server)
            chrome.close()
    finally:
        client.end()
        server.kill()
        server.log.unlink(missing_ok=True)
    return 0


def chat(page: Any, server: Server) -> None:
    """A question with the answers of the base and both runs."""
    page.goto(f"{server.url}/chat")
    settled(page)
    page.get_by_text("Who created you?").first.click()
    stop = page.get_by_role("button", name="Stop all")
    stop.wait_for(timeout=180_000)
    stop.wait_for(state="hidden", timeout=180_000)
    settled(page)
    shoot(page, "chat")


def open_page(chrome: Any, theme: str, server: Server) -> Any:
    context = chrome.new_context(
        viewport={"width": 1440, "height": 900}, color_scheme=theme, device_scale_factor=1
    )
    page = context.new_page()
    page.goto(server.address)
    return page


def shoot(page: Any, name: str) -> None:
    page.wait_for_function("!document.querySelector('[data-testid=stSkeleton]')", timeout=30_000)
    time.sleep(2)  # charts draw after the script has ended
    page.evaluate("document.querySelectorAll('section').forEach(part => part.scrollTo(0, 0))")
    page.screenshot(path=PICTURES / f"{name}.png")


if __name__ == "__main__":
    raise SystemExit(main())
