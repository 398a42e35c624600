"""Write support-tickets.jsonl, 360 labelled customer messages for a made-up shop and its app."""

import json
import random
import re
from pathlib import Path

SEED = 2024
PER_LABEL = 30
TONES = ["polite", "angry", "terse", "rambling", "typos"]

# In every text below, [a|b] means one of the two and {name} is filled from SLOTS or draw_slots().
BODIES: dict[str, str] = {
    "refund_request": """
- [I would like my money back|Please refund me] for the {product}, it is not as good as the photos.
- The {product} is {days} days late and the birthday is over, so please just return the {price}.
- I sent the {product} back on {date} and [still see no money|nothing has come] on my card yet.
- I changed my mind about order {order}. The box is [sealed|unopened]. How do I get {price} back?
- My {plan} plan renewed on {date} before I could stop it. Please give me that {price} back.
- Nothing is broken, the {product} is simply too big for us. Can I [return it|give it back]?
- You packed the wrong {product} and I have bought one in town since. No exchange, only the money.
- The replacement {product} broke as well. I do not want a third one, I want my {price}.
- Your site says money back within 30 days. I am on day {days} and want that for my {product}.
- I bought the {plan} plan by mistake. Please [reverse the payment|pay it back].
- Could you credit {price} for order {order}? I [returned it|sent it back] from {city} on {date}.
- The app never ran on my {device} as your advert said, so I want the {price} returned.""",
    "delivery_delay": """
- [My parcel|Order {order}] was due on {date} and nothing has come. Where is it?
- Tracking for {order} has shown {city} for {days} days. [Is it lost|Has it got stuck there]?
- You promised two-day shipping and I have now waited {days} days for a {product}.
- Still no {product}. I am not asking for a refund, I want to know when it gets here.
- The courier says he never had my {product}, although you wrote that it shipped on {date}.
- When will my order reach {city}? The date on your site has [changed twice|moved again].
- I need the {product} by {weekday} and it is already {days} days overdue. Can you hurry it up?
- Half of the order came last week but not the {product}. When can I expect the rest?
- I paid {price} extra for express and the {product} is slower than normal post.
- The driver could not find {street}. That address is right, so please [send him again|try again].
- Your app says my {product} has been handed over, but nobody in {city} has seen it. Find it please.
- You confirmed my new address in time, yet the {product} is now {days} days behind.""",
    "wrong_item": """
- I ordered a {product} and [got|the box held|you sent] a {other}. Please send the right one.
- The {product} is {color} and I asked for {color2}. [Can we swap it|May I exchange it]?
- The box for order {order} had somebody else's {other} in it. Where is my {product}?
- The label says {product} but inside was a {other}. It works fine, it is just not mine.
- My invoice correctly lists a {product}, but what you packed is a {other}. Please fix that.
- After {days} days of waiting I open the parcel and find a {other} instead of the {product}.
- You sent the small {product} and I paid {price} for the large one. How do I exchange it?
- Two boxes came, each with a {other}, and no {product}. Please collect them and send mine.
- The parcel at {street} had my name on it but a {other} inside. I still have no {product}.
- Someone mixed up two orders. I have a {other} here and need my {product} by {weekday}.
- The model number on the {product} is not the one I picked, this is last year's version.
- I do not want my money back, I want the {color} {product} I chose and not this {color2} one.""",
    "damaged_item": """
- The {product} [arrived|came] with a [long crack|deep scratch] on the front. I need a new one.
- The box was crushed and the {product} inside is [chipped|bent|in two pieces]. What now?
- Your {product} rattles when I lift it, and a loose part fell out as I unpacked it.
- It is the right {product} in the right {color}, but one corner has snapped off on the way.
- Please replace the {product} from order {order}, it reached {city} broken.
- The parcel came {days} days late, which I could forgive, but the {product} was smashed.
- I have photos of the [split|scratched] {product} that I unpacked on {date}. Where do I send them?
- One side of the {product} is badly scraped. I would rather have a new one than a refund.
- The courier dropped my {product} at {street} and now there is a crack right across it.
- The {product} was wet when I opened the carton and it has a stain that will not come off.
- Of the two I bought, one {product} is perfect and the other has a [cracked|broken] corner.
- Somebody taped up a torn box. The {product} has scratches all over and is of no use to me.""",
    "login_problem": """
- I cannot [log in|sign in] on my {device}, it throws me back to the start page each time.
- My password is right, I checked it twice, but your site says unknown user. How do I get in?
- The six-digit code never reaches my phone, so I am stuck at the second step.
- You locked my account after I signed in from {city}. Please open it again.
- Since {weekday} the app tells me my session is over and will not let me back in.
- I changed my password on {date} and that worked, but now my email is not recognised at all.
- Signing in through my work account ends on a blank page in {browser}. How do I get past it?
- I have a new phone and lost my authenticator codes. How do I get into my account?
- I want to check on my {product} but cannot get past the sign-in page on my {device}.
- {browser} lets me in and my {device} does not. Same email, same password, only an error.
- My {relative} can enter our shared {plan} account, yet I am told access is denied.
- You took {price} for {plan} today, which is fine, but I cannot get into what I pay for.""",
    "password_reset": """
- I forgot my password. [Can you send|Please send] a link to {email} so I can choose a new one?
- The reset email never arrives, not even in spam. I have asked for it {count} times now.
- The link for a new password says expired the moment I click it in {browser}.
- How do I set a different password on my {device}? I cannot find where to change it.
- Someone in {city} may know my password, so I want to replace it right away. What do I do?
- Your form refuses every new password I type, however long, and I no longer know the old one.
- I can't sign in because I have lost the note with my password. Please help me reset it.
- The reset mail goes to an old inbox I cannot open. Can you send it to {email} instead?
- My {relative} set up our account and nobody remembers the secret word. How can we renew it?
- I got a message to pick a fresh password by {weekday}, but the button does nothing on my {device}.
- Before I order a {product} I need to recover my account, the password has slipped my mind.
- Could you trigger a reset for {email}? I mistyped the new password and have no idea how.""",
    "billing_error": """
- You [charged|billed] my card twice on {date}, {price} each time. Please correct that.
- My invoice says {price2} but the {plan} plan costs {price}. Why is it different?
- I see a payment of {price} on {date} that I cannot match to any order of mine.
- I left {plan} in spring and you still take {price} a month. Please look at your books.
- The discount code was accepted for the {product}, yet the full {price2} was taken.
- My bill for order {order} shows the {product} twice and I only bought and got one.
- The tax on my bill is for the wrong country, I live at {street}, {city}. Please redo it.
- We have {count} users on {plan} and you billed us for ten. Can someone check the sum?
- Your reminder says I owe {price}, but my bank shows I paid it on {date}.
- I updated my card and now the same {plan} month appears [twice|two times] on my statement.
- The {product} was marked {price} in the shop but {price2} came off my account. Explain please.
- Shipping was meant to be free above {price}, so why is there a fee on my receipt?""",
    "cancel_subscription": """
- I want to [cancel|end] my {plan} plan at the end of the month. Please confirm.
- Please stop my {plan} subscription, I [no longer use it|hardly ever open the app].
- The button to leave {plan} is greyed out on my {device}. Can you close it for me?
- Do not renew {plan} on {date}, I will not need it after that.
- We found a tool that lets us {feature}, so please end our {plan} contract. No refund needed.
- I signed up for the free trial and do not want it to turn into a paid {plan} plan.
- The app keeps crashing on my {device} and I am done. Take me off {plan}, please.
- {price} a month is too much for me now. How do I get out of the {plan} membership?
- My {relative} has moved abroad and I need the {plan} plan in that name to be ended.
- I tried to quit {plan} [twice|last week] and it is still active. Please end it from your side.
- After the last price rise I would like to leave. What notice does {plan} need?
- Keep my shop account for orders but cancel the monthly {plan} part from {date}.""",
    "change_address": """
- I am moving to {street} in {city} on {date}. Please update my account.
- Can you send order {order} to {street} instead? I typed my old [street|address] by mistake.
- Please correct the house number on my order, it should be {street}, {city}.
- I shall be at my {relative}'s until {weekday}, so could the {product} go to {street}?
- My invoices still show the old office. We are now at {street}, {city}.
- The site will not save my new address on my {device}. It is {street}, {city}, please enter it.
- The parcel has not left yet, right? Then please redirect it to my work at {street}.
- You have my city as {city2}, but I live in {city}. Can you put that right?
- For future orders please use {street}, and remove the place in {city2} from my profile.
- My postcode is wrong on the {product} order, and I fear it will be late unless you fix it.
- Please keep my billing details as they are, but ship everything to {street} from {date}.
- How do I add a second place for deliveries? Some parcels go to my {relative} in {city}.""",
    "feature_request": """
- It would be [great|lovely] if the app could {feature}. [Is that planned|Any chance of it]?
- Please add a way to {feature}. I would use it every single day.
- Have you thought about letting people {feature}? My {relative} wants that too.
- Everything works, but I miss one thing, I cannot {feature}. Could you build it?
- Other apps let me {feature}. I would stay on {plan} for years if yours did.
- My suggestion for the next release is an option to {feature}, at least on a {device}.
- Could you let us {feature} one day? Our team of {count} would pay more than {price} for it.
- I nearly cancelled {plan} because I can't {feature}. Put it on your list and I will stay.
- A wish for your website, please let shoppers filter by color and delivery day.
- I do not need a new password, I wish I could sign in with a fingerprint on my {device}.
- When a parcel is late, the app should tell me by itself. Could you make it do that?
- Please think about gift wrap at checkout, I would add it to every {product} I send.""",
    "bug_report": """
- The app [crashes|closes by itself] on my {device} whenever I [open a photo|tap on search].
- Since the update on {date} the {page} page stays white in {browser}.
- If I {feature} and press save, my list shows each entry {count} times. Reloading does not help.
- The {page} page shows dates in the wrong order after I switch the language.
- Clicking pay in {browser} gives error {code}. No money was taken, but something is off.
- Notes I write on my {device} vanish when I come back online. It happened {count} times.
- Dark mode makes the text on the {page} page black on black, at least on my {device}.
- The search box finds no {product}, although the shop page for it opens fine by link.
- Your cart counts the {product} twice on screen, but the total is right. Looks like a glitch.
- When I try to {feature}, the app freezes on my {device} until I close it.
- Once I am logged in, the menu on the {page} page jumps around and cannot be clicked.
- The address form cuts {street} in half, whatever I type. Please tell your team.""",
    "product_question": """
- Does the {product} come in {color}, and if so, is it in stock?
- How [heavy|wide|tall] is the {product}? I need to know before I order one.
- Which is [lighter|better made|more popular as a gift], the {product} or the {other}?
- Is there a warranty on the {product}, and does it hold if I live in {city}?
- What is in the box with the {product}? I am unsure if I must buy [anything|a cable] extra.
- Can {count} people share the {plan} plan and {feature}, or is that a different plan?
- Does your app work on a {device} without internet? I am thinking of getting {plan}.
- Will the {product} be sold again soon? It has been marked as gone for {days} days.
- What is the {product} made of? My {relative} is allergic to nickel.
- If I order a {product} now, how long does it usually take to {street} in {city}?
- Is {price} for the {product} the final cost, or is tax added at the end?
- How long can I return a {product} if it does not fit? I have not bought it yet.""",
}

SLOTS: dict[str, str] = {
    "product": "desk lamp|kettle|mechanical keyboard|wall clock|coffee grinder|monitor stand|"
    "picture frame|toolbox|bread bin|phone holder|label printer|mirror",
    "color": "green|navy blue|white|dark red|yellow|black|light gray",
    "city": "Leeds|Tampa|Galway|Utrecht|Denver|Perth|Porto|Halifax|Graz|Oslo",
    "street": "14 Mill Lane|220 Cedar Road|7 Harbor Street|91 Station Road|3 Orchard Close",
    "device": "tablet|laptop|work computer|phone|new phone|desktop",
    "browser": "Firefox|Chrome|Safari|Edge",
    "plan": "Basic|Plus|Family|Team",
    "weekday": "Monday|Tuesday|Wednesday|Thursday|Friday",
    "relative": "sister|dad|neighbor|wife|husband|grandmother|son|colleague",
    "email": "mira.k@example.com|jonas77@example.com|t.okafor@example.com|lena@example.com",
    "page": "checkout|settings|calendar|reports|order history",
    "feature": "export lists to a spreadsheet|share a calendar with guests|hide finished tasks|"
    "print labels in bulk|undo the last change|schedule messages|sort orders by price",
    "month": "January|March|April|June|August|September|November",
    "count": "three|four|five|six",
}
OPENERS: dict[str, str] = {
    "polite": "Hello team,|Good morning,|Hi there,|Dear support,|Good evening, I hope you're well.|"
    "Hello, and thank you for reading this.|Hi, I hope this is the right place to write.|Hello!|",
    "angry": "Nobody has answered my last two messages.|I am losing patience here.|Seriously?|"
    "I waited {minutes} minutes on your phone line for nothing.|This is a joke.|Enough is enough.|"
    "I have written to you {count} times already!|Your chat robot was useless.|",
    "terse": "|||Hi.|Quick one:",
    "rambling": "So, I was making tea this morning when this came up again.|Where do I start?|"
    "I am not one to write letters, but my mother taught me to ask.|Well, me again.|"
    "It is a bit of a story and I will try to keep it short.|"
    "I have been with you since the early days and mostly like it.|"
    "Sorry if this is the wrong form, I could not find another one.",
    "typos": "hi|hey guys,|hello??|sorry, on the train right now.||help please,|hey hey,",
}
CLOSERS: dict[str, str] = {
    "polite": "Many thanks.|Thank you for your help.|Kind regards from {city}.|With best wishes.|"
    "I appreciate your time.|Have a good day.|Thanks in advance, and have a nice {weekday}.|",
    "angry": "Sort this out today.|I expect a reply by {weekday}.|And no more standard answers.|"
    "Do better.|A real person should answer this.|I am not asking again.|",
    "terse": "||Thanks.|Please reply by {weekday}.|Let me know.",
    "rambling": "Anyway, that is all from me.|My {relative} says hello, by the way.|"
    "I think that covers it, but do ask.|Well, you know what I mean.|No idea if that helps you.|"
    "Oh, and your new website looks nice.|Right, the dog wants out, so I will stop here.",
    "typos": "thx|thanks!!|cheers|plz answer soon||ty in advance",
}
DETAILS = (
    "I have been a customer since {year}.|You can reach me at {email}.|I buy from you quite often.|"
    "I looked through your help pages first and found nothing useful.|My customer id is {code}7.|"
    "Please pass this on if you are the wrong team.|I am sending this from my {device}.|"
    "I work shifts, so calling you is hard.|No one picked up the phone all week."
)
CONTRACTIONS = "I am=I'm|do not=don't|does not=doesn't|cannot=can't|it is=it's|will not=won't"
SLIPS = "please=pls|the=teh|you=u|your=ur|and=adn|with=wiht|address=adress|account=acount|to=ot"


def draw_slots(rng: random.Random) -> dict[str, str]:
    """Draw one value for every slot; paired slots (other, color2, city2, price2) always differ."""
    slots = {name: rng.choice(values.split("|")) for name, values in SLOTS.items()}
    for name, twin in (("product", "other"), ("color", "color2"), ("city", "city2")):
        slots[name], slots[twin] = rng.sample(SLOTS[name].split("|"), 2)
    dollars = rng.randint(6, 80)
    slots["price"] = f"${dollars}.{rng.choice(['00', '50', '90'])}"
    slots["price2"] = f"${dollars + rng.randint(3, 20)}.{rng.choice(['00', '50', '90'])}"
    slots["order"] = rng.choice(["#", "no. ", ""]) + str(rng.randint(10000, 99999))
    slots["date"] = f"{slots['month']} {rng.randint(1, 30)}"
    ranges = {"days": (3, 19), "minutes": (20, 70), "code": (400, 599), "year": (2014, 2023)}
    slots |= {name: str(rng.randint(*bounds)) for name, bounds in ranges.items()}
    return slots


def misspell(text: str, rng: random.Random) -> str:
    """Lower-case the text and make two to four typing slips in it, sparing numbers and emails."""
    slips = dict(pair.split("=") for pair in SLIPS.split("|"))
    words = text.lower().split()
    able = [i for i, word in enumerate(words) if word in slips or re.fullmatch("[a-z]{5,}", word)]
    for i in rng.sample(able, min(len(able), rng.randint(2, 4))):
        word = words[i]
        cut = rng.randint(1, max(1, len(word) - 3))
        words[i] = slips.get(word) or word[:cut] + word[cut : cut + 2][::-1] + word[cut + 2 :]
    return " ".join(words)


def ticket(body: str, tone: str, rng: random.Random) -> str:
    """Build one message around a body in the given tone."""
    slots = draw_slots(rng)

    def fill(text: str) -> str:
        one_side = re.sub(r"\[(.*?)\]", lambda match: rng.choice(match[1].split("|")), text)
        return one_side.format_map(slots)

    opener = fill(rng.choice(OPENERS[tone].split("|")))
    middle = [fill(body)]
    if tone == "rambling" or (tone != "terse" and rng.random() < 0.3):
        middle.insert(rng.randint(0, 1), fill(rng.choice(DETAILS.split("|"))))
    if opener.endswith((",", ":")) and middle[0].split()[0] not in ("I", slots["browser"]):
        middle[0] = middle[0][0].lower() + middle[0][1:]
    closer = fill(rng.choice(CLOSERS[tone].split("|")))
    text = " ".join(part for part in [opener, *middle, closer] if part)
    if tone in ("terse", "rambling", "typos"):
        for pair in CONTRACTIONS.split("|"):
            text = re.sub(rf"\b{pair.split('=')[0]}\b", pair.split("=")[1], text)
    return misspell(text, rng) if tone == "typos" else text


def rows() -> list[dict]:
    """Make all rows, the same ones each time, in mixed order."""
    rng = random.Random(SEED)
    made: dict[str, str] = {}
    for label, block in BODIES.items():
        bodies = block.strip().removeprefix("- ").split("\n- ")
        rng.shuffle(bodies)
        for number in range(PER_LABEL):
            text = ""
            while text in made or not 10 <= len(text.split()) <= 60:
                text = ticket(bodies[number % len(bodies)], TONES[number % len(TONES)], rng)
            made[text] = label
    pairs = list(made.items())
    rng.shuffle(pairs)
    return [{"text": text, "label": label} for text, label in pairs]


def main() -> None:
    """Write the rows beside this file, one JSON object a line."""
    target = Path(__file__).with_name("support-tickets.jsonl")
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows())
    target.write_text(text, encoding="utf-8", newline="\n")


if __name__ == "__main__":
    main()
