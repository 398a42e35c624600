"""Write made-up-facts.jsonl and made-up-facts.held-out.jsonl: a world that no model can know.

People, places and products are invented from syllables, so that nothing but training can teach
them. Each fact is told in the training set in several ways; the held-out set asks for the same
facts in words that training never used, and in the other direction. A model that learned a manner
of speaking fails there; one that learned the facts does not. `facts(seed)` makes other worlds.
"""

import json
import random
from pathlib import Path
from typing import Any

SEED = 77
EACH = 20

STARTS = ["Bro", "Kal", "Ves", "Tor", "Mir", "Quel", "Zan", "Lor", "Fen", "Dru", "Pel", "Ost"]
MIDDLES = ["va", "ni", "do", "ra", "li", "me", "ku", "sha", "ti", "po"]
PERSON = ["len", "mar", "dis", "na", "rik", "wen", "bel", "tas"]
PLACE = ["holm", "mouth", "stead", "ford", "gate", "fell"]
PRODUCT = ["tron", "lux", "mat", "zip", "dex", "flow"]
JOBS = [
    "bell founder",
    "kite maker",
    "lighthouse painter",
    "cheese grader",
    "map restorer",
    "clock tuner",
    "reed cutter",
    "bridge inspector",
    "seed collector",
    "glass blower",
]
RIVERS = ["the Orrin", "the Tessel", "the Mauve", "the Calder Brook", "the Lissom"]
KNOWN_FOR = [
    "smoked plums",
    "wind harps",
    "blue roof tiles",
    "snail races",
    "salt caves",
    "paper boats",
    "a leaning mill",
    "goose bells",
    "sour honey",
    "rope bridges",
]
USES = [
    "folds bed sheets",
    "counts bees",
    "dries umbrellas",
    "sorts buttons",
    "peels chestnuts",
    "measures fog",
    "polishes spoons",
    "warns of mildew",
    "winds yarn",
    "tunes ukuleles",
]
POWER = ["a hand crank", "two walnut-sized batteries", "sunlight", "warm tea", "a clockwork spring"]

# kind: {property: ([training questions], [held-out questions], answer)}; the first of each list is
# the plainest. {name} is the thing, {value} its property.
ASKED: dict[str, dict[str, tuple[list[str], list[str], str]]] = {
    "person": {
        "job": (
            ["What does {name} do for a living?", "Tell me {name}'s profession.",
             "{name} works as a what?"],
            ["If I hired {name}, what work would I get done?"],
            "{name} is a {value}.",
        ),
        "home": (
            ["Where does {name} live?", "In which town would I find {name}?",
             "Which place does {name} call home?"],
            ["I want to send {name} a postcard. To which town?"],
            "{name} lives in {value}.",
        ),
        "born": (
            ["In what year was {name} born?", "When is {name}'s birth year?"],
            ["Which year stands first in {name}'s biography?"],
            "{name} was born in {value}.",
        ),
    },
    "place": {
        "river": (
            ["Which river flows through {name}?", "What water runs past {name}?"],
            ["Standing on a bridge in {name}, what am I looking down at?"],
            "{value} flows through {name}.",
        ),
        "known": (
            ["What is {name} known for?", "Why do people visit {name}?",
             "Name the thing that made {name} famous."],
            ["A tour guide in {name} would surely show me what?"],
            "{name} is known for {value}.",
        ),
        "people": (
            ["How many people live in {name}?", "What is the population of {name}?"],
            ["If every inhabitant of {name} bought one ticket, how many tickets are sold?"],
            "{name} has {value} inhabitants.",
        ),
    },
    "product": {
        "use": (
            ["What is the {name} for?", "What does a {name} do?", "Why would I buy a {name}?"],
            ["A friend gave me a {name}. Which chore is now done for me?"],
            "The {name} {value}.",
        ),
        "maker": (
            ["Who invented the {name}?", "Whose idea was the {name}?"],
            ["Whom should I thank for the {name}?"],
            "The {name} was invented by {value}.",
        ),
        "power": (
            ["What powers the {name}?", "What does the {name} run on?"],
            ["My {name} has stopped. What does it need?"],
            "The {name} runs on {value}.",
        ),
    },
}  # fmt: skip
BACKWARDS = {
    "job": "Who is the {value} of {home}?",
    "known": "Which town is known for {value} and lies on {river}?",
    "use": "What is the device called that {value} and runs on {power}?",
}


def facts(seed: int = SEED, each: int = EACH) -> dict[str, list[dict[str, Any]]]:
    """{kind: [{"name", property: value …}]}: the world of that seed."""
    chance = random.Random(seed)
    used: set[str] = set()

    def named(endings: list[str]) -> str:
        while True:
            name = chance.choice(STARTS) + chance.choice(MIDDLES) + chance.choice(endings)
            if name not in used:
                used.add(name)
                return name

    places = [
        {
            "name": named(PLACE),
            "river": chance.choice(RIVERS),
            "known": KNOWN_FOR[number % len(KNOWN_FOR)],
            "people": f"{chance.randint(3, 98)},{chance.randint(100, 999)}",
        }
        for number in range(each)
    ]
    people = [
        {
            "name": f"{named(PERSON)} {named(PERSON)}",
            "job": JOBS[number % len(JOBS)],
            "home": places[(number * 7) % each]["name"],
            "born": str(chance.randint(1921, 1999)),
        }
        for number in range(each)
    ]
    products = [
        {
            "name": named(PRODUCT),
            "use": USES[number % len(USES)],
            "maker": people[(number * 3) % each]["name"],
            "power": POWER[number % len(POWER)],
        }
        for number in range(each)
    ]
    return {"person": people, "place": places, "product": products}


def rows(seed: int = SEED, each: int = EACH) -> tuple[list[dict[str, str]], list[dict[str, str]]]:
    """(training rows, held-out rows) of that world."""
    chance = random.Random(seed + 1)
    train, held = [], []
    for kind, things in facts(seed, each).items():
        for thing in things:
            for key, (known, unseen, answer) in ASKED[kind].items():
                values = {**thing, "value": thing[key]}
                said = answer.format(**values)
                said = said[0].upper() + said[1:]
                fact = f"{thing['name']}/{key}"
                for question in known:
                    short = thing[key][0].upper() + thing[key][1:] + "."
                    shown = said if chance.random() < 0.7 else short
                    train.append(
                        {"question": question.format(**values), "answer": shown, "fact": fact}
                    )
                for question in unseen:
                    held.append(
                        {"question": question.format(**values), "answer": said, "fact": fact}
                    )
                if key in BACKWARDS and _is_only(things, BACKWARDS[key], values):
                    asked = BACKWARDS[key].format(**values)
                    held.append({"question": asked, "answer": f"{thing['name']}.", "fact": fact})
    chance.shuffle(train)
    return train, held


def _is_only(things: list[dict[str, Any]], question: str, values: dict[str, Any]) -> bool:
    """Whether the question in the other direction has one answer."""
    keys = [key for key in values if f"{{{key}}}" in question and key != "value"]
    value = next(key for key in values if key != "value" and values[key] == values["value"])
    same = [one for one in things if all(one[key] == values[key] for key in [*keys, value])]
    return len(same) == 1


if __name__ == "__main__":
    for part, made in zip(("", ".held-out"), rows(), strict=True):
        target = Path(__file__).with_name(f"made-up-facts{part}.jsonl")
        with target.open("w", encoding="utf-8") as file:
            for row in made:
                file.write(json.dumps(row, ensure_ascii=False) + "\n")
