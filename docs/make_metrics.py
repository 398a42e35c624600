"""Writes docs/metrics.md from the table of the code: `python docs/make_metrics.py`."""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from lab.metrics import METRICS  # noqa: E402

INTRODUCTION = """# Metrics

A line of a run's `metrics.jsonl` is one JSON object with these keys. A key is left out where
there is nothing to say, such as the GPU's without a GPU. This page is written from the code by
`python docs/make_metrics.py`.

| key | in records of kind | unit | meaning |
|---|---|---|---|
"""


def text() -> str:
    rows = [
        f"| `{metric.key}` | {', '.join(metric.kinds)} | {metric.unit} | {metric.help} |"
        for metric in METRICS
    ]
    return INTRODUCTION + "\n".join(rows) + "\n"


if __name__ == "__main__":
    (ROOT / "docs" / "metrics.md").write_text(text(), encoding="utf-8")
