"""Find a Chromium for the stories, or get one: `python tests/e2e/browser.py`.

Debian's package when root on Debian, else Playwright's own download.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

NAMES = ("chromium", "chromium-browser", "google-chrome")


def installed() -> str | None:
    """The path of a browser that is here, or None."""
    for name in NAMES:
        if program := shutil.which(name):
            return program
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        own = playwright.chromium.executable_path
    return own if Path(own).is_file() else None


def install() -> None:
    """Get a browser. Raises CalledProcessError if neither way works."""
    if os.geteuid() == 0 and shutil.which("apt-get"):
        print("Installing Debian's Chromium for the browser tests ...", flush=True)
        quiet = {
            "stdout": subprocess.DEVNULL,
            "env": os.environ | {"DEBIAN_FRONTEND": "noninteractive"},
        }
        subprocess.run(["apt-get", "update", "-qq"], check=True, **quiet)
        subprocess.run(["apt-get", "install", "-y", "-qq", "chromium"], check=True, **quiet)
    else:
        print("Downloading Playwright's Chromium for the browser tests ...", flush=True)
        subprocess.run([sys.executable, "-m", "playwright", "install", "chromium"], check=True)


def main() -> int:
    if installed() is not None:
        return 0
    try:
        install()
    except (OSError, subprocess.CalledProcessError) as error:
        print(
            f"No browser for the tests, and getting one failed: {error}\n"
            "Install Chromium with your package manager, then run `make test` again.",
            file=sys.stderr,
        )
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
