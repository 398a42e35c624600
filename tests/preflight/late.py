"""A planner that repeats its last reply, and invents some, before each true one."""

from __future__ import annotations

import json
import sys

for line in sys.stdin:
    message = json.loads(line)
    number = message.get("id", 0)
    for wrong in (number - 1, number + 1, None, "x", number - 2):
        print(json.dumps({"id": wrong, "ok": {"value": "of another"}}))
    print("[]\nno JSON")
    print(json.dumps({"id": number, "ok": {"value": json.loads(message["request"])["value"]}}))
    sys.stdout.flush()
