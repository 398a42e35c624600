"""The second half of the plain script: the loop of `lab/train/loop.py` without the lab.

The text is Python as it stands; it reads the constants and the rows of the first half. A method
whose training differs from plain gradient steps sets `RATES`, `VECTORS` or `SAVE`, or defines
`planned`, `penalty` or `after_step` anew, between `DEFAULTS` and `LOOP`.
"""

DEFAULTS = '''\
RATES = {}  # parts of names: how many times LEARNING_RATE those parameters learn at
VECTORS = ()  # parts of names of vectors that are stored as matrices: they do not decay
SAVE = {}  # arguments of save_pretrained


def planned(steps):
    """Called before the first step."""


def penalty():
    """Added to the mean loss of a step."""
    return 0.0


def after_step(step):
    """Called after a step, while its gradients exist."""


set_seed(SEED)  # adapters are drawn from here on
'''

PACKED = '''\
def packed(rows):
    """Rows of at most MAX_LENGTH tokens: longest first into the fullest row that has room."""
    bins, room = [], []  # room: (free tokens, bin), sorted
    for index in sorted(range(len(rows)), key=lambda index: -len(rows[index]["input_ids"])):
        size = len(rows[index]["input_ids"])
        fullest = bisect.bisect_left(room, (size, -1))
        if fullest == len(room):
            bins.append([])
            free, chosen = MAX_LENGTH, len(bins) - 1
        else:
            free, chosen = room.pop(fullest)
        bins[chosen].append(rows[index])
        bisect.insort(room, (free - size, chosen))
    return [joined(parts) if len(parts) > 1 else parts[0] for parts in bins]


def joined(parts):
    """Several sequences in one row: positions begin anew, and no first token is predicted."""
    return {
        "input_ids": [token for part in parts for token in part["input_ids"]],
        "labels": [label for part in parts for label in (-100, *part["labels"][1:])],
        "positions": [index for part in parts for index in range(len(part["input_ids"]))],
    }


rows = packed(rows)
'''

LOOP = '''\
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
STEPS = MAX_STEPS or math.ceil(max(1, math.ceil(EPOCHS * len(rows))) / (BATCH_SIZE * ACCUMULATION))
LAST = STEPS * BATCH_SIZE * ACCUMULATION if MAX_STEPS else max(1, math.ceil(EPOCHS * len(rows)))


def collate(rows):
    """Padded on the right, where causal attention never looks: no mask is needed."""
    width = max(len(row["input_ids"]) for row in rows)
    pad = {"input_ids": tokenizer.pad_token_id, "labels": -100}
    batch = {
        key: torch.tensor([row[key] + [fill] * (width - len(row[key])) for row in rows])
        for key, fill in pad.items()
    }
    positions = [row.get("positions", [*range(len(row["input_ids"]))]) for row in rows]
    positions = [row + [*range(row[-1] + 1, row[-1] + 1 + width - len(row))] for row in positions]
    return batch | {"position_ids": torch.tensor(positions)}


@functools.lru_cache(2)
def order(epoch):
    numbers = list(range(len(rows)))
    random.Random(f"{SEED} {epoch}").shuffle(numbers)
    return numbers


def batches_of(step):
    """The micro-batches of a step, from 1 on: epoch after epoch, each in an order of its own."""
    first = (step - 1) * BATCH_SIZE * ACCUMULATION
    indices = range(first, min(first + BATCH_SIZE * ACCUMULATION, LAST))
    chosen = [rows[order(index // len(rows))[index % len(rows)]] for index in indices]
    return [collate(chosen[i : i + BATCH_SIZE]) for i in range(0, len(chosen), BATCH_SIZE)]


def summed_loss(batch):
    """Sum in nats over the tokens that count."""
    inputs = {key: batch[key].to(DEVICE) for key in ("input_ids", "position_ids")}
    with torch.autocast(DEVICE, dtype=torch.bfloat16, enabled=AUTOCAST):
        logits = model(**inputs, use_cache=False).logits
    length = batch["labels"].shape[1]  # virtual tokens stand before the batch's own
    logits = logits[:, -length:][:, :-1].float().flatten(0, 1)
    labels = batch["labels"][:, 1:].flatten().to(DEVICE)
    return torch.nn.functional.cross_entropy(logits, labels, ignore_index=-100, reduction="sum")


def counted(batches):
    return sum(int((batch["labels"][:, 1:] != -100).sum()) for batch in batches)


@torch.no_grad()
def evaluate():
    model.eval()
    batches = [
        collate(held_out[i : i + BATCH_SIZE]) for i in range(0, len(held_out), BATCH_SIZE)
    ]
    total = sum(float(summed_loss(batch)) for batch in batches)
    model.train()
    return total / counted(batches)


def rate(step):
    """Of the peak, in the middle of the step's share of the run."""
    progress = (step - 0.5) / STEPS
    if progress < WARMUP:
        return progress / WARMUP
    left = (1 - progress) / (1 - WARMUP)
    return {
        "constant": 1.0, "linear": left, "cosine": 0.5 * (1 - math.cos(math.pi * left))
    }[SCHEDULE]


if not hasattr(model, "hf_device_map"):  # a quantised base is where it was built
    model.to(DEVICE)
groups = {}
for name, weight in model.named_parameters():
    if weight.requires_grad:
        times = math.prod(ratio for part, ratio in RATES.items() if part in name)
        is_vector = weight.ndim < 2 or any(part in name for part in VECTORS)
        group = (LEARNING_RATE * times, 0.0 if is_vector else WEIGHT_DECAY)
        groups.setdefault(group, []).append(weight)
optimizer = make_optimizer(
    [
        {"params": weights, "lr": peak, "weight_decay": decay, "peak": peak}
        for (peak, decay), weights in groups.items()
    ]
)
planned(STEPS)
losses = []
if held_out:
    print("before:", evaluate())
set_seed(SEED)  # dropout is drawn from here on
model.train()
for step in range(1, STEPS + 1):
    batches, loss = batches_of(step), 0.0
    tokens = counted(batches)
    for batch in batches:
        part = summed_loss(batch) / tokens
        loss += float(part)
        (part + penalty() / len(batches)).backward()
    if MAX_GRAD_NORM:
        torch.nn.utils.clip_grad_norm_(model.parameters(), MAX_GRAD_NORM)
    for group in optimizer.param_groups:
        group["lr"] = group["peak"] * rate(step)
    optimizer.step()
    after_step(step)
    optimizer.zero_grad()
    losses.append(loss)
    print(f"step {step} of {STEPS}: loss {loss:.4f}")
if held_out:
    print("after:", evaluate())
model.save_pretrained("output", **SAVE)
tokenizer.save_pretrained("output")
'''
