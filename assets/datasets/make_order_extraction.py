"""Write order-extraction.jsonl: notes as people write them, each with the facts as strict JSON.

The keys and their order never change, what the note does not say is null, and nothing stands
around the object. Notes come from five trades with words of their own.
"""

import json
import random
from pathlib import Path

SEED = 5
ROWS = 240
KEYS = ("kind", "who", "what", "quantity", "when", "where", "price", "urgent")

NAMES = [
    "Amara",
    "Jonas",
    "Mei",
    "Tomasz",
    "Priya",
    "Luca",
    "Fatima",
    "Oskar",
    "Noor",
    "Hana",
    "Diego",
    "Ines",
    "Kofi",
    "Freya",
    "Samir",
    "Yuki",
    "Elif",
    "Marta",
    "Owen",
    "Zola",
]
DAYS = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"]
CLOCK = ["8:15", "9:30", "11:00", "12:45", "14:00", "16:20", "18:00", "19:30"]
NUMBERS = {
    2: "two",
    3: "three",
    4: "four",
    5: "five",
    6: "half a dozen",
    8: "eight",
    12: "a dozen",
    20: "twenty",
    40: "forty",
}

# kind: (things, places, notes). In a note [x] stands for a key, and may be missing.
TRADES = {
    "order": (
        ["sourdough loaf", "plum tart", "rye roll", "almond croissant", "birthday cake", "pretzel"],
        ["the market stall", "the back door", "Mill Lane 4", "the school kitchen"],
        [
            "[who] here, can I get [quantity] [what] for [when]? I'll come to [where].",
            "Order taken by phone: [what], [quantity]. Customer [who]. Pick-up [when].",
            "hi!! need [quantity] [what] asap, deliver to [where] pls. its [who]",
            "[who] wants [what] again. Same as ever, [price]. No rush.",
            "For [where]: [quantity] [what] on [when]. Invoice of [price] goes to [who].",
            "Do you still do the [what]? If so please put one aside, [who].",
        ],
    ),
    "repair": (
        ["dishwasher", "front brake", "boiler", "laptop screen", "garage door", "kitchen tap"],
        ["Harbour Road 12", "the second floor", "our workshop", "flat 7b"],
        [
            "The [what] at [where] gave up. [who] says it cannot wait. URGENT.",
            "Please look at [who]'s [what] on [when]. We quoted [price].",
            "[quantity] times I have called about the [what]! Somebody has to come today. [who]",
            "Ticket: [what] broken, [where], contact [who], any day is fine.",
            "Had [who] on the line, the [what] leaks a little. [when] suits, budget [price].",
            "[what] makes a noise. It still works, so whenever you have time.",
        ],
    ),
    "booking": (
        ["table by the window", "double room", "tennis court", "rowing boat", "meeting room"],
        ["the garden side", "the Lakeside branch", "hall B", "the old wing"],
        [
            "Book [what] for [quantity] people, [when], name of [who].",
            "[who] would like [what] in [where], [when] if that is free.",
            "Could we have the [what] on [when]? There will be [quantity] of us. Thanks, [who]",
            "Confirmed: [who], [what], [price] in advance.",
            "Somebody asked for a [what] at [where], no date yet, will ring again.",
            "Change for [who]: not a smaller one, it has to be the [what]. Party of [quantity].",
        ],
    ),
    "sale": (
        ["bicycle", "bookshelf", "winter coat", "record player", "pram", "aquarium"],
        ["Elm Street", "the station car park", "my place", "the flea market"],
        [
            "Selling my [what], [price], pick up at [where]. Ask for [who].",
            "[what] for sale, hardly used. [price] or swap. Message [who].",
            "Must go by [when]: [what]. First come, first served! [where]",
            "Got [quantity] of the [what] left, [price] each, [who].",
            "[who] takes the [what] for [price] and fetches it on [when].",
            "Is the [what] still there? I would give [price]. Can be at [where] right now!",
        ],
    ),
    "lesson": (
        ["violin lesson", "driving lesson", "Spanish class", "swimming course", "chess club"],
        ["room 3", "the sports hall", "the library", "her house"],
        [
            "[who] has to move the [what] to [when].",
            "New pupil [who], [what], [quantity] sessions paid, [price].",
            "[what] is in [where] this week, please tell [who].",
            "Sign me up for the [what] - [who]. What does it cost?",
            "No [what] on [when], teacher ill. Tell everybody AT ONCE.",
            "We have room for [quantity] more in the [what], [where].",
        ],
    ),
}  # fmt: skip
RUSH = ("asap", "URGENT", "today", "right now", "AT ONCE", "cannot wait")


def rows() -> list[dict[str, str]]:
    chance = random.Random(SEED)
    found: dict[str, dict[str, str]] = {}
    notes = [(kind, note) for kind, (_, _, written) in TRADES.items() for note in written]
    while len(found) < ROWS:
        kind, note = notes[len(found) % len(notes)]
        things, places, _ = TRADES[kind]
        count = chance.choice(list(NUMBERS))
        amount = chance.choice([4, 7.5, 12, 18.9, 25, 60, 85, 120, 240, 399])
        day, hour = chance.choice(DAYS), chance.choice(CLOCK)
        when = chance.choice([day, f"{day} at {hour}", f"{day}, {hour}"])
        said = {
            "who": chance.choice(NAMES),
            "what": chance.choice(things),
            "quantity": chance.choice([str(count), NUMBERS[count]]),
            "when": when,
            "where": chance.choice(places),
            "price": chance.choice([f"{amount:g} euros", f"€{amount:.2f}", f"{amount:g} EUR"]),
        }
        facts = {
            **said,
            "kind": kind,
            "quantity": count,
            "when": {"day": day, "time": hour if hour in when else None},
            "price": amount,
        }
        text = note
        for key, value in said.items():
            text = text.replace(f"[{key}]", value)
        answer = {key: facts.get(key) if f"[{key}]" in note else None for key in KEYS}
        answer["kind"] = kind
        answer["urgent"] = any(word in note for word in RUSH)
        asked = chance.choice(["", "", "Note: ", "From the inbox:\n", "Transcript: "]) + text
        found.setdefault(asked, {"prompt": asked, "completion": json.dumps(answer)})
    made = list(found.values())
    chance.shuffle(made)
    return made


if __name__ == "__main__":
    target = Path(__file__).with_name("order-extraction.jsonl")
    with target.open("w", encoding="utf-8") as file:
        for row in rows():
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
