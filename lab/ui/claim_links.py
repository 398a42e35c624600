"""Links to single claims, which other pages use instead of bare ids."""

from __future__ import annotations

import re

from lab.advise import claims

ID = re.compile(r"[A-E]\d{1,2}")


def is_claim(text: str) -> bool:
    return text in {claim.id for claim in claims.all_claims()}


def link(claim_id: str) -> str:
    """Markdown: the id as a link to its row of Claims."""
    return f"[{claim_id}](/claims?id={claim_id})"


def url(rule: str) -> str:
    """The address for a rule of thumb, such as "C3-lora": that of its claim. The rule stands at
    the end, for tables that show it in place of the address."""
    match = ID.match(rule)
    known = match[0] if match and is_claim(match[0]) else ""
    return f"/claims?id={known}&rule={rule}" if known else f"/claims?rule={rule}"
