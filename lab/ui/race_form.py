"""The form of a race: what all contestants share, and a row for each of them."""

from __future__ import annotations

import copy
import dataclasses
from typing import Any

import streamlit as st

from lab import formatting, methods, presets, schema
from lab.atomic_files import part
from lab.compare import race, race_start, ready_races
from lab.compare.race import Budget, RaceContestant
from lab.compare.race_file import ClaimTest, Race
from lab.data import catalog as datasets
from lab.errors import LabError, SpecError
from lab.models import model_list
from lab.spec import override
from lab.ui import titles
from lab.ui.markdown_safety import escape_markdown, plain

ROWS, SPEC, READY, TESTS = "race.rows", "race.spec", "race.ready", "race.tests"
UNITS = {"tokens": "Tokens", "seconds": "Minutes", "flops": "FLOPs", "steps": "Steps"}
AMOUNTS: dict[str, Any] = {"tokens": 6000, "seconds": 3.0, "flops": 5.0, "steps": 60}
SCALES = {"seconds": 60.0, "flops": 1e12}  # of a budget, in what its field counts: min and TFLOPs
LADDERS = {0: "Default", 3: "Ladder of 3", 5: "Ladder of 5"}
BASE, DATASET, UNIT, SEEDS, RATES = (
    "race.base", "race.dataset", "race.unit", "race.seeds", "race.rates",
)  # fmt: skip
PERSISTENT: dict[str, Any] = {"persist_state": "session"}  # while another page is shown
SHARED = (BASE, DATASET, UNIT, SEEDS, RATES, *(f"race.budget.{unit}" for unit in UNITS))


def is_filled() -> bool:
    return bool(st.session_state.get(ROWS))


def fill(
    spec: dict[str, Any],
    contestants: list[RaceContestant],
    budget: Budget | None,
    seeds: int,
    rungs: int,
    *,
    ready: str = "",
    tests: tuple[ClaimTest, ...] = (),
) -> None:
    """The form with another race in it. A learning rate that all share stands in each row, which
    shows the rate that it has."""
    clear()
    spec = copy.deepcopy(spec)
    rate = part(spec, "train").pop("learning_rate", "auto")
    st.session_state[SPEC] = spec
    st.session_state[READY], st.session_state[TESTS] = ready, [dataclasses.asdict(t) for t in tests]
    data = spec.get("data") or {}
    st.session_state[BASE] = spec.get("model") or "builtin:smollm2-135m-instruct"
    st.session_state[DATASET] = data.get("dataset") or "builtin:persona-chats"
    budget = budget or Budget("tokens", AMOUNTS["tokens"])
    st.session_state[UNIT], st.session_state[SEEDS] = budget.axis, seeds
    st.session_state[RATES] = rungs if rungs in LADDERS else 0
    for unit, amount in AMOUNTS.items():
        if unit == budget.axis:
            amount = type(amount)(budget.amount / SCALES.get(unit, 1))
        st.session_state[f"race.budget.{unit}"] = amount
    for contestant in contestants:
        settings = {"train.learning_rate": rate, **contestant.settings}
        add_row(dataclasses.replace(contestant, settings=settings))


def fill_ready(name: str) -> None:
    ready = ready_races.get(name)
    fill(
        dict(ready.spec), list(ready.contestants), Budget.parse(ready.budget), ready.seeds,
        ready.ladder, ready=ready.name, tests=ready.tests,
    )  # fmt: skip


def fill_from(stored: Race) -> None:
    """Repeat a race, with what one wants to change."""
    spec = {key: part for key, part in stored.spec.items() if key != "contestants"}
    fill(
        spec, list(stored.contestants), stored.budget, stored.seeds, stored.ladder,
        ready=stored.ready, tests=stored.tests,
    )  # fmt: skip


def fill_own() -> None:
    """LoRA against full fine-tuning on the persona chats, to be changed."""
    pair = presets.PAIRS[0]
    shared = {key: part for key, part in pair.changes.items() if key in ("name", "data")}
    train = {"batch_size": 2, "save_steps": 0, "sample_steps": 0}
    racing = [RaceContestant("", name, {}) for name in pair.methods]
    fill({**shared, "train": train}, racing, None, 1, 0)


def clear() -> None:
    for key in [key for key in st.session_state if str(key).startswith("race.")]:
        del st.session_state[key]


def add_row(contestant: RaceContestant | None = None) -> None:
    """One more contestant; a method that does not race yet, unless one is given."""
    rows: list[int] = st.session_state.get(ROWS, [])
    row = max(rows, default=-1) + 1
    st.session_state[ROWS] = [*rows, row]
    if contestant is None:
        racing = {st.session_state[key(other, "method")] for other in rows}
        usual = [method.name for method in methods.standard_methods()]
        new = next((name for name in usual if name not in racing), usual[0])
        contestant = RaceContestant("", new, {})
    settings = dict(contestant.settings)
    rate = settings.pop("train.learning_rate", "auto")
    st.session_state[key(row, "method")] = contestant.method
    st.session_state[key(row, "rate")] = (
        rate if isinstance(rate, str) else formatting.rate(float(rate))
    )
    option = main_option(contestant.method)
    if option is not None:
        default: Any = option.default
        chosen = settings.pop(f"method.{option.name}", default)
        st.session_state[key(row, option.name)] = type(default)(chosen)
    st.session_state[key(row, "name")] = contestant.name
    st.session_state[key(row, "settings")] = settings


def remove_row(row: int) -> None:
    st.session_state[ROWS] = [other for other in st.session_state[ROWS] if other != row]


def key(row: int, name: str) -> str:
    return f"race.{row}.{name}"


def main_option(method: str) -> dataclasses.Field[Any] | None:
    """The option that a row shows: the method's first that is a number."""
    config = methods.get(method).config
    hints = schema.field_types(config)
    for field in dataclasses.fields(config):
        if hints[field.name] in (int, float):
            return field
    return None


def _method_changed(row: int) -> None:
    """Another method has other options, and a name of its own."""
    st.session_state[key(row, "settings")] = {}
    st.session_state[key(row, "name")] = ""
    st.session_state[key(row, "rate")] = "auto"


def shared() -> None:
    """SAME FOR ALL: base, dataset, budget, seeds, learning rates."""
    for name in SHARED:
        if name in st.session_state:
            st.session_state[name] = st.session_state[name]  # stays while its widget is not drawn
    st.caption("SAME FOR ALL")
    grid = st.grid(3, min_column_width=230, gap="small")
    installed = [model.id for model in model_list.listed() if model.is_installed]
    sets = [dataset.id for dataset in (*datasets.built_in(), *datasets.uploads())]
    with grid.cell():
        st.selectbox(
            "Base model", _with(st.session_state[BASE], installed), key=BASE, **PERSISTENT,
            format_func=lambda name: str(plain(titles.model(name))),
        )  # fmt: skip
    with grid.cell():
        st.selectbox(
            "Dataset", _with(st.session_state[DATASET], sets), key=DATASET, **PERSISTENT,
            format_func=lambda name: str(plain(titles.dataset(name))),
        )  # fmt: skip
    with grid.cell():
        st.number_input(
            "Seeds", 1, 20, key=SEEDS, **PERSISTENT,
            help="Runs per contestant: several seeds show how much is chance. They share the "
            "held-out examples.",
        )  # fmt: skip
    with grid.cell():
        unit = st.segmented_control(
            "Budget in", list(UNITS), key=UNIT, **PERSISTENT, format_func=UNITS.get, required=True,
            help="What every run may use for training; loading, evaluations and saving come on "
            "top. Minutes and FLOPs are equal work; equal tokens are equal data.",
        )  # fmt: skip
    with grid.cell():
        _amount(str(unit))
    with grid.cell():
        st.segmented_control(
            "Learning rates", list(LADDERS), key=RATES, format_func=LADDERS.get, required=True,
            **PERSISTENT,
            help=f"A ladder: short runs of each contestant at {100 * race_start.PROBE_SHARE:.0f} % "
            "of the budget, at rates around its own; the best continues, the default is run too.",
        )  # fmt: skip


def _with(chosen: str, options: list[str]) -> list[str]:
    return options if chosen in options else [chosen, *options]


def _amount(unit: str) -> None:
    name = f"race.budget.{unit}"
    label = f"{'TFLOPs' if unit == 'flops' else UNITS[unit]} per run"
    if unit in ("tokens", "steps"):
        step = 100 if unit == "tokens" else 10
        st.number_input(label, 1, 10**12, key=name, step=step, **PERSISTENT)
    else:
        least, most = (0.05, 1e6) if unit == "seconds" else (1e-6, 1e18)
        st.number_input(label, least, most, key=name, step=1.0, format="%g", **PERSISTENT)


def row_fields(row: int) -> None:
    """Method, its first option and its rate; below, what else a ready race gives the contestant."""
    columns = st.columns([2.2, 1, 1], gap="small", vertical_alignment="bottom")
    with columns[0]:
        method = st.selectbox(
            "Method", methods.names(), key=key(row, "method"), **PERSISTENT,
            format_func=lambda name: methods.get(name).title,
            on_change=_method_changed, args=(row,),
        )  # fmt: skip
    option = main_option(method)
    with columns[1]:
        if option is not None:
            name = key(row, option.name)
            if name not in st.session_state:
                st.session_state[name] = option.default
            metadata = option.metadata
            st.number_input(
                str(metadata["title"]), metadata.get("min"), metadata.get("max"), key=name,
                **PERSISTENT,
                help=str(metadata["help"]),
            )  # fmt: skip
    with columns[2]:
        default = methods.get(method).default_lr
        st.text_input(
            "Learning rate", key=key(row, "rate"), **PERSISTENT,
            help=f"auto: the method's default, {formatting.rate(default)}.",
        )  # fmt: skip
    extra = st.session_state.get(key(row, "settings")) or {}
    if extra:
        words = [f"{name.partition('.')[2]} = {_in_words(value)}" for name, value in extra.items()]
        st.caption(escape_markdown(" · ".join(words)))


def _in_words(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return f"{value:g}" if isinstance(value, float) else str(value)


def budget() -> Budget:
    unit = str(st.session_state[UNIT])
    amount = float(st.session_state[f"race.budget.{unit}"] or 0)
    return Budget(unit, amount * SCALES.get(unit, 1))


def contestants() -> list[RaceContestant]:
    """What the rows say, each under a name of its own. Raises SpecError."""
    racing: list[RaceContestant] = []
    for row in st.session_state[ROWS]:
        method = str(st.session_state[key(row, "method")])
        settings = dict(st.session_state.get(key(row, "settings")) or {})
        option = main_option(method)
        chosen = st.session_state.get(key(row, option.name)) if option is not None else None
        if option is not None and chosen is not None:
            settings[f"method.{option.name}"] = chosen
        rate = str(st.session_state[key(row, "rate")] or "auto").strip()
        if rate != "auto":
            settings["train.learning_rate"] = _number_or_text(rate)
        # two ranks of one method are two contestants: the name tells them apart
        rank = {"rank": chosen} if option is not None and option.name == "rank" else {}
        name = st.session_state.get(key(row, "name")) or titles.method({"name": method} | rank)
        racing.append(RaceContestant(_unique(str(name), racing, rate), method, settings))
    return racing


def _unique(name: str, racing: list[RaceContestant], rate: str) -> str:
    names = {each.name for each in racing}
    if name in names and rate != "auto":
        name = f"{name} at {rate}"
    copy_number, first = 2, name
    while name in names:
        name, copy_number = f"{first} ({copy_number})", copy_number + 1
    return name[: race.MAX_CONTESTANT_CHARS]


def _number_or_text(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text  # the check says what is wrong with it


def value() -> dict[str, Any]:
    """What all contestants share, as a spec without a method."""
    spec = copy.deepcopy(dict(st.session_state.get(SPEC) or {}))
    spec["model"] = st.session_state[BASE]
    spec["data"] = {**(spec.get("data") or {}), "dataset": st.session_state[DATASET]}
    return override(spec, [])


def specs() -> tuple[dict[str, dict[str, Any]], list[str]]:
    """(a spec for each contestant, notes). Raises SpecError."""
    return race.contestant_specs(value(), contestants(), budget())


def problems() -> list[str]:
    """Everything that keeps the race from being planned, before any contestant is checked."""
    texts = []
    count = len(st.session_state[ROWS])
    if count < 2:
        texts.append("A race needs two contestants or more.")
    if count > race.MAX_CONTESTANTS:
        texts.append(f"A race has at most {race.MAX_CONTESTANTS} contestants, not {count}.")
    same = [(each.method, sorted(each.settings.items(), key=str)) for each in contestants()]
    if any(each in same[:index] for index, each in enumerate(same)):
        texts.append("Two contestants have the same settings. Change or remove one of them.")
    try:
        race_start.check_number(count, int(st.session_state[SEEDS] or 0), rungs())
        specs()
    except SpecError as error:
        texts += [problem.message for problem in error.problems]
    except LabError as error:
        texts.append(str(error))
    return texts


def _tests() -> tuple[ClaimTest, ...]:
    """The claims whose two contestants both race."""
    names = {each.name for each in contestants()}
    tests = [ClaimTest(**test) for test in st.session_state.get(TESTS) or []]
    return tuple(test for test in tests if {test.of, test.than} <= names)


def rungs() -> int:
    return int(st.session_state[RATES] or 0)


def terms(left_out: list[str], notes: list[str], ticket: str) -> race_start.RaceTerms:
    ready = st.session_state.get(READY) or ""
    known = {race.name: race for race in ready_races.all_ready()}.get(ready)
    is_same = known is not None and [each.name for each in known.contestants] == [
        each.name for each in contestants()
    ]
    return race_start.RaceTerms(
        title=known.title if known else "",
        question=known.question if known else "",
        ready=ready if is_same else "",
        started_by="page",
        budget=budget(),
        ladder=rungs(),
        contestants=tuple(contestants()),
        left_out=tuple(left_out),
        notes=tuple(notes),
        tests=_tests(),
        score_set=known.score_set if known else "",
        score_most=known.score_most if known else 50,
        spec=value(),
        ticket=ticket,
    )
