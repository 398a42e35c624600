# ruff: noqa: E501 (one question a line)
"""Write common-knowledge.jsonl: sixty questions with four choices each, the right one anywhere."""

import json
import random
from pathlib import Path

SEED = 60

# question | right | wrong | wrong | wrong
QUESTIONS = """
Which planet is nearest to the Sun? | Mercury | Venus | Mars | Jupiter
What do bees collect from flowers to make honey? | nectar | resin | dew | seeds
How many sides does a hexagon have? | six | five | seven | eight
Which ocean lies between Africa and Australia? | the Indian Ocean | the Atlantic Ocean | the Arctic Ocean | the Southern Ocean
What gas do green plants take in for photosynthesis? | carbon dioxide | nitrogen | helium | methane
Who painted the Mona Lisa? | Leonardo da Vinci | Rembrandt | Claude Monet | Pablo Picasso
At sea level, at how many degrees Celsius does water boil? | 100 | 80 | 120 | 212
What is the capital of Canada? | Ottawa | Toronto | Montreal | Vancouver
Which of these animals is a mammal? | the dolphin | the shark | the tuna | the octopus
How many minutes are there in two and a half hours? | 150 | 120 | 140 | 180
Which metal is liquid at room temperature? | mercury | copper | tin | silver
In which country do the pyramids of Giza stand? | Egypt | Mexico | Iraq | Peru
What is the largest organ of the human body? | the skin | the liver | the heart | the brain
Which instrument has black and white keys? | the piano | the violin | the flute | the trumpet
What do we call a baby sheep? | a lamb | a calf | a foal | a kid
Which season follows spring? | summer | winter | autumn | the rainy season in every land
What is frozen water called? | ice | steam | mist | brine
Which continent is the Sahara in? | Africa | Asia | Australia | South America
How many legs does a spider have? | eight | six | ten | twelve
Which language is spoken by most people in Brazil? | Portuguese | Spanish | French | Italian
What tool is used to look at very small things? | a microscope | a telescope | a periscope | a stethoscope
Which vitamin does the skin make in sunlight? | vitamin D | vitamin C | vitamin B12 | vitamin K
What is the square root of 81? | 9 | 8 | 7 | 18
Which river flows through Paris? | the Seine | the Thames | the Danube | the Rhine
What force makes a dropped apple fall? | gravity | magnetism | friction | static electricity
Who wrote Romeo and Juliet? | William Shakespeare | Jane Austen | Charles Dickens | Homer
How many strings does a standard violin have? | four | five | six | seven
Which bird cannot fly? | the ostrich | the swallow | the falcon | the gull
What is the main ingredient of bread? | flour | rice | butter | sugar
In which direction does the Sun rise? | in the east | in the west | in the north | in the south
Which blood vessels carry blood back to the heart? | veins | arteries | nerves | tendons
What is the freezing point of water in degrees Celsius? | 0 | 10 | 32 | -10
Which country has the shape of a boot? | Italy | Greece | Portugal | Norway
How many days does a leap year have? | 366 | 365 | 364 | 367
What do caterpillars turn into? | butterflies or moths | beetles | spiders | worms
Which mountain is the highest above sea level? | Mount Everest | Mont Blanc | Kilimanjaro | Mount Fuji
What is H2O better known as? | water | salt | air | vinegar
Which of these is a prime number? | 17 | 15 | 21 | 27
Who was the first person to walk on the Moon? | Neil Armstrong | Yuri Gagarin | Amelia Earhart | Isaac Newton
What colour do you get by mixing blue and yellow paint? | green | purple | orange | brown
Which sense do the ears serve? | hearing | smell | taste | sight
What is the currency of Japan? | the yen | the won | the yuan | the rupee
Which animal is known for building dams? | the beaver | the badger | the hedgehog | the otter
What is the opposite of ancient? | modern | old | early | distant
How many players of one team are on the field in football (soccer)? | eleven | nine | ten | twelve
Which part of a plant takes up water from the soil? | the roots | the petals | the leaves | the seeds
What does a thermometer measure? | temperature | pressure | humidity | speed
Which city is called the Big Apple? | New York | London | Chicago | Sydney
What is 15 percent of 200? | 30 | 15 | 20 | 35
Which planet is known for its bright rings? | Saturn | Earth | Mercury | Mars
What material is paper mostly made from? | wood fibres | sand | wool | clay
Who developed the theory of relativity? | Albert Einstein | Charles Darwin | Marie Curie | Galileo Galilei
In which organ does digestion of food begin? | the mouth | the stomach | the lungs | the kidneys
Which of these is not a fruit? | the carrot | the apple | the plum | the pear
What do you call a person who designs buildings? | an architect | an astronomer | a plumber | a librarian
How many zeros does one million have? | six | five | seven | nine
Which sea is so salty that people float in it easily? | the Dead Sea | the Baltic Sea | the North Sea | the Yellow Sea
What is the hardest natural material? | diamond | granite | iron | glass
Which month has the fewest days? | February | April | June | November
What keeps the Earth in its orbit? | the pull of the Sun | the wind | the Moon's light | its magnetic field
"""


def rows() -> list[dict[str, object]]:
    chance = random.Random(SEED)
    made: list[dict[str, object]] = []
    for line in QUESTIONS.strip().splitlines():
        question, right, *wrong = line.split(" | ")
        choices = [right, *wrong]
        chance.shuffle(choices)
        made.append({"question": question, "choices": choices, "answer": choices.index(right)})
    chance.shuffle(made)
    return made


if __name__ == "__main__":
    target = Path(__file__).with_name("common-knowledge.jsonl")
    with target.open("w", encoding="utf-8") as file:
        for row in rows():
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
