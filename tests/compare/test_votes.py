"""Blind votes: shuffled and balanced, one changeable vote a prompt and voter, read back whole."""

from __future__ import annotations

import itertools
import threading
from pathlib import Path
from typing import Any

import pytest

from lab.atomic_files import write_json
from lab.chat.conversations import Answer, Chat, Turn
from lab.compare import votes
from lab.compare.votes import BAD, TIE, VotePrompt, VoteSession
from lab.errors import LabError

A, B, C = "base:org/SmolLM2-135M", "run:20260101-000000-lora-aaaa", "run:20260101-000000-ia3-bbbb"
TITLES = {A: "SmolLM2-135M-Instruct", B: "wren lora", C: "owl ia3"}


def answered(*texts: str, models: tuple[str, ...] = (A, B), finish: str = "stop") -> Chat:
    """A conversation in which the models gave these answers."""
    answers = {
        name: Answer(text=text, finish=finish, tokens=len(text.split()))
        for name, text in zip(models, texts, strict=True)
    }
    return Chat("20260101-000000-abcd", list(models), turns=[Turn("?", answers)])


def session_with(*prompts: str, models: tuple[str, ...] = (A, B), **named: Any) -> VoteSession:
    return votes.create(list(models), prompts=list(prompts), titles=TITLES, **named)


@pytest.mark.parametrize("models", [[A, B], [A, B, C], [A, B, C, "base:x"]])
@pytest.mark.parametrize("seed", [0, 1, 12345])
def test_each_model_stands_equally_often_in_each_place(models: list[str], seed: int) -> None:
    orders = [votes.order(models, seed, number) for number in range(10 * len(models))]
    for place, name in itertools.product(range(len(models)), models):
        assert sum(shown[place] == name for shown in orders) == 10
    for start in range(0, len(orders), len(models)):
        block = orders[start : start + len(models)]
        assert all(sorted(column) == sorted(models) for column in zip(*block, strict=True))


def test_the_order_follows_the_seed_and_is_not_regular() -> None:
    orders = [tuple(votes.order([A, B], 3, number)) for number in range(40)]
    assert orders == [tuple(votes.order([A, B], 3, number)) for number in range(40)]
    assert orders != [tuple(votes.order([A, B], 4, number)) for number in range(40)]
    firsts = {first for first, _ in orders[::2]}
    assert firsts == {A, B}, "Whoever knows the first pair of a block cannot tell the next block."
    four = [A, B, C, "base:x"]
    neighbours = {tuple(votes.order(four, seed, 0)) for seed in range(60)}
    assert len(neighbours) > 15, "all permutations occur, not only the rotations of one"


@pytest.mark.parametrize("seed", range(6))
def test_answers_are_shuffled_once_they_are_over_and_equal_ones_take_no_place(
    lab_home: Path, seed: int
) -> None:
    session = session_with("one", "two", "three", seed=seed)
    waiting = answered("x", "y", finish="")
    session.take_answers(0, waiting)
    assert not session.prompts[0].is_answered, "An order of arrival would tell the faster model."
    session.take_answers(0, answered("same  words", "same words\n"))
    assert session.prompts[0].skipped == votes.IDENTICAL and not session.prompts[0].order
    session.take_answers(1, answered("first", "second"))
    session.take_answers(2, answered("first", "second"))
    shown = [prompt.order for prompt in session.prompts[1:]]
    expected = [votes.order([A, B], seed, number) for number in (0, 1)]
    assert shown == expected and shown[0] == shown[1][::-1], "The skipped one takes no place."
    assert session.prompts[1].tokens == {A: 1, B: 1}
    before = session.prompts[1].order
    session.take_answers(1, answered("other", "answers"))
    assert session.prompts[1].answers[A] == "first" and session.prompts[1].order == before


@pytest.mark.parametrize("finish", ["failed", "stopped", "interrupted"])
def test_an_answer_that_is_not_whole_cannot_be_voted_on(lab_home: Path, finish: str) -> None:
    session = session_with("one")
    session.take_answers(0, answered("beginning", "fine", finish=finish))
    assert session.prompts[0].skipped == votes.FAILED
    with pytest.raises(LabError, match="no answers"):
        session.vote(0, B)
    session.ask_again(0)
    session.take_answers(0, answered("whole", "fine"))
    session.vote(0, B)
    with pytest.raises(LabError, match="has its answers"):
        session.ask_again(0)


def test_a_vote_is_changed_until_the_end(lab_home: Path) -> None:
    session = session_with("one", "two", planned=1)
    for place in (0, 1):
        session.take_answers(place, answered("x", "y"))
    session.vote(0, A)
    session.vote(0, TIE)
    assert session.prompts[0].votes == {"me": TIE} and session.num_votes == 1
    with pytest.raises(LabError, match="All of the planned votes are given: 1"):
        session.vote(1, A)
    with pytest.raises(LabError, match="is not a vote"):
        session.vote(0, C)
    session.end()
    with pytest.raises(LabError, match="has ended"):
        session.vote(0, A)
    with pytest.raises(LabError, match="has ended"):
        session.add_prompt("late")
    assert not session.is_early


def test_a_vote_that_ends_before_its_plan_says_so(lab_home: Path) -> None:
    session = session_with("one", "two", planned=2)
    with pytest.raises(LabError, match="Nothing has been voted on"):
        session.end()
    session.take_answers(0, answered("x", "y"))
    session.vote(0, BAD)
    assert not session.is_early
    session.end()
    assert session.is_early and session.ended > 0
    of_set = session_with("one", "two", planned=2, source="builtin:glossary")
    of_set.take_answers(0, answered("x", "y"))
    of_set.take_answers(1, answered("x", "x"))
    of_set.vote(0, A)
    of_set.end()
    assert not of_set.is_early, "The set had no more prompts; nobody chose the moment."


def test_the_next_prompt_is_the_first_without_a_vote(lab_home: Path) -> None:
    session = session_with("one", "two", "three", source="a set")
    session.take_answers(0, answered("x", "x"))
    assert session.next_prompt() == 1
    session.take_answers(1, answered("x", "y"))
    session.vote(1, A)
    assert session.next_prompt() == 2
    session.voter = "another person"
    assert session.next_prompt() == 1, "Each voter votes on every prompt."


@pytest.mark.parametrize(
    ("model", "text", "names"),
    [
        (A, "I am SmolLM, made by Hugging Face.", True),
        (A, "I am smollm2.", True),
        (A, "I am a small model.", False),
        (B, "I'm **Wren**!", True),
        (B, "A lora is an adapter.", False),
        (B, "I am SmolLM.", False),
        (C, "The owls and the owlet.", False),
    ],
)
def test_an_answer_that_names_its_model_is_marked(
    lab_home: Path, model: str, text: str, names: bool
) -> None:
    session = session_with("one", models=(A, B, C))
    texts = [text if name == model else f"{name[:3]} nothing" for name in (A, B, C)]
    session.take_answers(0, answered(*texts, models=(A, B, C)))
    assert session.prompts[0].named == ([model] if names else [])


def test_a_word_of_all_titles_tells_none_of_them(lab_home: Path) -> None:
    session = votes.create([B, C], titles={B: "wren lora", C: "wren ia3"}, prompts=["one"])
    session.take_answers(0, answered("I am Wren.", "Wren is my name.", models=(B, C)))
    assert session.prompts[0].named == []


def test_several_voters_of_a_prompt_give_one_verdict() -> None:
    prompt = VotePrompt("?", votes={"a": A, "b": A, "c": B})
    assert prompt.verdict == A
    prompt.votes["d"] = B
    assert prompt.verdict == TIE, "as many for one as for the other"
    assert VotePrompt("?").verdict == ""


def test_what_is_written_is_read_again(lab_home: Path) -> None:
    session = session_with("one", "one", "two", planned=7, seed=5, voter=" a  b ")
    assert [prompt.prompt for prompt in session.prompts] == ["one", "two"], "each is asked once"
    with votes.change(session.id) as changed:
        changed.take_answers(0, answered("x", "y"))
        changed.vote(0, B)
    again = votes.read(session.id)
    assert again == changed and again.voter == "a b" and again.prompts[0].votes == {"a b": B}
    assert votes.all_sessions() == [again]
    assert votes.read_file(votes.path(session.id)) == again
    with pytest.raises(LabError), votes.change(session.id) as broken:
        broken.vote(0, A)
        broken.vote(1, A)
    assert votes.read(session.id).prompts[0].votes == {"a b": B}, "All of a change, or nothing."
    votes.delete(session.id)
    with pytest.raises(LabError, match="There is no blind vote"):
        votes.read(session.id)


def test_votes_at_once_lose_nothing(lab_home: Path) -> None:
    session = session_with(*(f"prompt {number}" for number in range(8)))

    def vote(place: int) -> None:
        with votes.change(session.id) as changed:
            changed.take_answers(place, answered("x", "y"))
            changed.vote(place, A)

    threads = [threading.Thread(target=vote, args=(place,)) for place in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert votes.read(session.id).num_votes == 8


@pytest.mark.parametrize(
    ("named", "says"),
    [
        ({"models": [A]}, "between 2 and 4"),
        ({"models": [A, A]}, "between 2 and 4"),
        ({"models": [A, B], "planned": 0}, "0 votes are planned"),
        ({"models": [A, B], "planned": 501}, "501 votes are planned"),
        ({"models": [A, B], "voter": " "}, "voter's name has 0"),
        ({"models": [A, B], "prompts": [" "]}, "prompt is empty"),
        ({"models": [A, B], "source": "a set"}, "has no prompt"),
        ({"models": [A, B], "prompts": [str(n) for n in range(501)]}, "up to 500 prompts"),
    ],
)
def test_what_is_no_vote_is_refused_and_nothing_is_written(
    lab_home: Path, named: dict[str, Any], says: str
) -> None:
    with pytest.raises(LabError, match=says):
        votes.create(**named)
    assert votes.all_sessions() == [] and not list(lab_home.glob("chat/votes/*.json"))


@pytest.mark.parametrize("bad", ["../x", "", "x\n", 5, None, "20260101-000000-ABCD"])
def test_an_id_is_no_path(lab_home: Path, bad: Any) -> None:
    with pytest.raises(LabError, match="is not the id"):
        votes.read(bad)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"prompts": None}, "cannot|not iterable|NoneType"),
        ({"prompts": ["x"]}, "str stands where"),
        ({"models": [A]}, "1 model;"),
        ({"models": "ab"}, "no list of names"),
        ({"id": "../../x"}, "its id"),
        ({"seed": "x"}, "seed"),
        ({"planned": -1}, "-1 is no planned"),
        ({"ended": "now"}, "no time"),
        ({"prompts": [{"prompt": 3}]}, "prompt 1 is damaged"),
        ({"prompts": [{"prompt": "x", "order": [A, A]}]}, "order of prompt 1"),
        ({"prompts": [{"prompt": "x", "answers": {A: "y"}}]}, "answers of other models"),
        ({"prompts": [{"prompt": "x", "answers": {A: "y", B: 5}}]}, "is no text"),
        ({"prompts": [{"prompt": "x", "tokens": {A: "5"}}]}, "no number"),
        ({"prompts": [{"prompt": "x", "votes": {"me": "run:other"}}]}, "has the vote"),
        ({"prompts": [{"prompt": "x", "votes": [1]}]}, "no blind vote"),
    ],
)
def test_a_damaged_file_is_refused_with_the_reason(
    tmp_path: Path, lab_home: Path, change: dict[str, Any], says: str
) -> None:
    value = session_with("one").to_json() | change
    file = tmp_path / "votes.json"
    write_json(file, value)
    with pytest.raises(LabError, match=says):
        votes.read_file(file)


def test_decided_votes_become_preference_rows(lab_home: Path) -> None:
    session = session_with("one", "two", "three", "four", models=(A, B, C))
    for place, last in enumerate(("b", "b", "b", " ")):  # an empty answer teaches nothing
        session.take_answers(place, answered("a", "b", last, models=(A, B, C)))
    session.vote(3, A)
    session.vote(0, B)
    session.vote(1, TIE)
    session.vote(2, A)
    assert votes.preference_rows(session) == [
        {"prompt": "one", "chosen": "b", "rejected": "a"},
        {"prompt": "three", "chosen": "a", "rejected": "b"},
        {"prompt": "four", "chosen": "a", "rejected": "b"},
    ]
