"""The estimates of all methods for one view of the Memory page, asked in the background."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import threading
from collections import OrderedDict
from typing import Any

from lab import methods
from lab.errors import LabError, SpecError
from lab.preflight.client import Abandoned, planner
from lab.ui.waiting import Watched

KEPT = 64  # views


class Survey(Watched):
    """The estimates of one view, asked one after another by a thread: outlines first, so that
    there is something to see soon, then the traced steps."""

    def __init__(self, asked: dict[str, Any], device: dict[str, Any]) -> None:
        super().__init__()
        self.asked, self.device = asked, device
        self.found: OrderedDict[str, dict[str, Any]] = OrderedDict()
        self.refused: dict[str, str] = {}
        self.limits: dict[str, Any] = {}
        self.error = ""
        self.is_complete = False
        threading.Thread(target=self._ask, name="survey", daemon=True).start()

    def _ask(self) -> None:
        try:
            with self.asking.active():
                for shadow in (False, True):
                    self._ask_all(shadow)
        except Abandoned:  # asked again if somebody comes back to it
            return
        except Exception as error:  # shown on the page; a thread's traceback reaches nobody
            self.error = str(error)
        self.is_complete = True

    def _ask_all(self, shadow: bool) -> None:
        for method in methods.all_methods():
            if method.name in self.refused:
                continue
            try:
                self.found[method.name] = planner.estimate(
                    spec_of(self.asked, method), self.device, shadow=shadow
                )
            except Abandoned:
                raise
            except LabError as error:
                self.found.pop(method.name, None)
                self.refused[method.name] = _reason(error)
        # once more at the end, for what could not be answered the first time
        if self.device.get("gpu") or self.device.get("memory_bytes"):
            self._ask_limits(is_last=shadow)

    def _ask_limits(self, *, is_last: bool) -> None:
        names = [m.name for m in methods.standard_methods() if m.name in self.found]
        for name in [name for name in names if name not in self.limits]:
            try:
                self.limits[name] = planner.limits(
                    spec_of(self.asked, methods.get(name)), self.device
                )
            except SpecError:
                continue  # its bar says why already
            except LabError as error:
                if is_last or isinstance(error, Abandoned):
                    raise

    def rows(self) -> list[dict[str, Any]]:
        order = [method.name for method in methods.all_methods()]
        found = dict(self.found)
        return [
            {"name": name, "title": methods.get(name).title, "estimate": found[name]}
            for name in order
            if name in found
        ]


_surveys: OrderedDict[str, Survey] = OrderedDict()
_lock = threading.Lock()


def survey(asked: dict[str, Any], device: dict[str, Any]) -> Survey:
    """The survey of this view, begun at the first look and shared by all who look."""
    text_of = json.dumps([asked, device], sort_keys=True)
    key = hashlib.sha256(text_of.encode()).hexdigest()
    with _lock:
        now = _surveys.get(key)
        if now is None or now.asking.is_cancelled or (now.is_complete and now.error):
            _surveys[key] = Survey(asked, device)
        _surveys.move_to_end(key)
        while len(_surveys) > KEPT:
            _surveys.popitem(last=False)
        return _surveys[key]


def spec_of(asked: dict[str, Any], method: methods.Method) -> dict[str, Any]:
    """The spec of one method under the page's settings: its rank too, where it has one."""
    options: dict[str, Any] = {"name": method.name}
    fields = {field.name for field in dataclasses.fields(method.config)}
    if "rank" in fields:
        options["rank"] = asked["rank"]
    if "alpha" in fields:
        options["alpha"] = 2.0 * asked["rank"]
    checkpointing = asked["checkpointing"] if method.can_checkpoint_activations else "off"
    return {
        "model": asked["model"],
        "method": options,
        "data": {"max_length": asked["length"]},
        "train": {
            "batch_size": asked["rows"],
            "activation_checkpointing": checkpointing,
            "loss": asked["loss"],
        },
    }


def _reason(error: LabError) -> str:
    lines = str(error).splitlines()
    return lines[1].strip() if len(lines) > 1 else str(error)
