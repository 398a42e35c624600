"""What an evaluation writes row by row is what is read, behind a torn line too."""

from __future__ import annotations

from pathlib import Path

import pytest

from lab.data.batches import TokenSequence
from lab.paths import RunDir
from lab.runs.held_out_losses import held_out_losses
from lab.train import held_out_file

ROWS = [
    TokenSequence([1, 2, 3, 4], [-100, 2, 3, 4], (4,), (7,)),
    TokenSequence([5, 6, 7], [5, 6, 7], (3,)),
]


@pytest.mark.parametrize("torn", ["", '{"attempt": 1, "kind": "los', '{"attempt": 1}'])
def test_rows_and_losses_come_back_in_their_order(tmp_path: Path, torn: str) -> None:
    run = RunDir(tmp_path)
    held_out_file.write_rows(run, 1, "ab12", ROWS)
    held_out_file.write_losses(run, 1, 0, [3.0, 1.123456789], of="base")
    held_out_file.write_losses(run, 1, 4, [2.0, 0.5])
    with run.held_out.open("a") as file:
        file.write(torn)
    held_out_file.write_losses(run, 2, 6, [1.0, 0.25])
    losses = held_out_losses(run)
    assert losses is not None and losses.base is not None and losses.rows_hash == "ab12"
    assert losses.sources.tolist() == [7, -1], "rows of the file; -1 for one without"
    assert losses.tokens.tolist() == [3, 2], "the first token of a row is predicted by none"
    assert losses.base.tolist() == [3.0, 1.1234568], "eight digits"
    assert losses.steps.tolist() == [4, 6] and losses.sums.tolist() == [[2.0, 0.5], [1.0, 0.25]]
    lines = run.held_out.read_text().splitlines()
    assert len(lines) == 4 + bool(torn) and all(lines), "no empty line"
