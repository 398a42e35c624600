"""Answers live in the chat process by conversation, turn and model; who looks loses nothing."""

from __future__ import annotations

import shutil
import threading
import time
import weakref
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from lab.atomic_files import read_object, sha256_of, write_json
from lab.chat import client, conversations, downloads, examples, repeat
from lab.chat import models as chat_models
from lab.chat.answers import AnswerReceipt
from lab.chat.conversations import Answer, Chat, Turn
from lab.chat.engine import loaded_models, scoring
from lab.chat.engine.board import Board, PendingTurn
from lab.chat.engine.loaded_models import LoadedModels
from lab.chat.models import PromptTerms
from lab.chat.settings import GenerationSettings
from lab.chat.side_by_side import prompt_warning
from lab.data import rendering
from lab.errors import LabError
from lab.models import weights_hash
from lab.paths import RunDir
from lab.runs import checkpoints

SETTINGS = {
    "seed": 0, "max_tokens": 6, "temperature": 0.0, "system_prompt": "", "top_p": 1.0, "top_k": 0,
    "repetition_penalty": 1.0, "stop": None,
}  # fmt: skip
SHORT, LONG = SETTINGS, SETTINGS | {"max_tokens": 2000}


@pytest.fixture
def board(lab_home: Path) -> Iterator[Board]:
    board = Board(LoadedModels())
    yield board
    for job in list(board.active.values()):
        board.stop(job.conversation)
    until(lambda: not board.is_busy())


@pytest.fixture
def names(trained: list[RunDir], tiny_model: Path) -> list[str]:
    return [f"base:{tiny_model}", *(f"run:{run.id}" for run in trained)]


def until_over(board: Board, conversation_id: str) -> Chat:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        conversation = board.view(conversation_id)
        if all(turn.is_over for turn in conversation.turns):
            return conversation
        time.sleep(0.02)
    raise AssertionError("the answers end")


def until(condition: Any) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, "it comes to pass"
        time.sleep(0.01)


def test_a_question_is_answered_by_all_models_with_proof(
    board: Board, names: list[str], trained: list[RunDir], tiny_model: Path
) -> None:
    step = checkpoints.step_of(checkpoints.listing(trained[0].checkpoints)[0])
    names = [*names, f"{names[1]}@{step}"]
    conversation = conversations.create(names)
    assert board.ask(conversation.id, "Hi", SHORT, names) == 0
    seen = until_over(board, conversation.id)
    [turn] = seen.turns
    assert list(turn.answers) == names and turn.question == "Hi"
    for name, answer in turn.answers.items():
        assert answer.finish in ("stop", "length") and 1 <= answer.tokens <= 6
        assert answer.tokens == len(answer.token_ids) == len(answer.log_probabilities)
        assert answer.log_probability == pytest.approx(sum(answer.log_probabilities))
        assert max(answer.log_probabilities) < 0
        assert 0 < (answer.seconds_to_first_token or 0) <= (answer.seconds or 0)
        assert answer.receipt["model"] == name and answer.context == 512
        assert answer.receipt["proof"]["base_difference"] == 0.0, "The base is the base."
        assert answer.receipt["proof"]["problems"] == []
    prompts = {answer.receipt["prompt_hash"] for answer in turn.answers.values()}
    assert len(prompts) == 1, "All read the same prompt."
    folders = [*(run.artifact for run in trained), trained[0].checkpoints / f"step-{step}"]
    for name, folder in zip(names[1:], folders, strict=True):
        receipt = turn.answers[name].receipt
        proof = receipt["proof"]
        assert proof["tensors"] == proof["tensors_loaded"] > 0 and proof["effect"] > 0
        for file, digest in receipt["weights"].items():
            assert digest == sha256_of(folder / file), (name, file)
    (base,) = {answer.receipt["base_weights"] for answer in turn.answers.values()}
    assert base == weights_hash.hash_of(tiny_model, "the base"), "All stand on these weights."
    assert [turn.answers[name].receipt["step"] for name in names] == [None, None, None, step]
    assert list(turn.answers[names[3]].receipt["weights"]) == ["trainable.safetensors"]
    until(lambda: not board.is_busy())
    assert conversations.read(conversation.id).turns[0].answers == turn.answers, "It is on disk."


def test_a_base_beside_a_result_reads_the_prompt_of_the_result(
    board: Board, work_here: Any, tiny_model: Path, tmp_path: Path
) -> None:
    run = work_here(
        data={"template": "alpaca"},
        train={"max_steps": 1, "save_steps": 0},
    )
    base, result = names = [f"base:{tiny_model}", f"run:{run.id}"]
    conversation = conversations.create(names)
    board.ask(conversation.id, "Hi", SHORT, names)
    answers = until_over(board, conversation.id).turns[0].answers
    assert answers[base].receipt["prompt"] == "### Instruction:\nHi\n\n### Response:\n"
    for fact in ("prompt_hash", "template_hash", "system_prompt"):
        assert answers[base].receipt[fact] == answers[result].receipt[fact], fact
    assert answers[base].receipt["template_of"] == result and not answers[base].receipt["warning"]
    file = tmp_path / "receipt.json"
    file.write_text(examples.receipt_file(board.view(conversation.id), 0, base))
    repetition = repeat.repeat(file)
    assert repetition.is_same and repetition.differences == [], "The receipt names the template."
    board.answer_again(conversation.id, [base])
    again = until_over(board, conversation.id).turns[0].answers[base]
    assert again.receipt["prompt_hash"] == answers[result].receipt["prompt_hash"], "Alone, too."
    alone = conversations.create([base])
    board.ask(alone.id, "Hi", SHORT, [base])
    own = until_over(board, alone.id).turns[0].answers[base].receipt
    assert own["template_of"] == "" and "### Instruction" not in own["prompt"], "Its own."


def test_results_with_other_templates_are_told_apart(
    board: Board, work_here: Any, trained: list[RunDir]
) -> None:
    run = work_here(data={"template": "alpaca"}, train={"max_steps": 1, "save_steps": 0})
    alike = [f"run:{run.id}" for run in trained]
    names = [*alike, f"run:{run.id}"]
    conversation = conversations.create(names)
    for _ in range(2):
        board.ask(conversation.id, "Hi", SHORT, names)
        until_over(board, conversation.id)
    for turn in board.view(conversation.id).turns:
        receipts = {
            name: AnswerReceipt.from_json(answer.receipt) for name, answer in turn.answers.items()
        }
        told = prompt_warning(receipts)
        assert f"their chat templates differ: {alike[0]}, {alike[1]} | {names[2]}." in told
        assert prompt_warning({name: receipts[name] for name in alike}) == "", (
            "answers of their own in the second prompt are no difference of the terms"
        )
    later = board.view(conversation.id).turns[1].answers
    assert len({later[name].receipt["prompt_hash"] for name in alike}) == 2, "and there are such"


def test_a_base_is_told_apart_from_a_result_with_further_tokens(
    trained: list[RunDir], tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base, result = (
        chat_models.parse(name) for name in (f"base:{tiny_model}", f"run:{trained[1].id}")
    )
    [together, _] = chat_models.with_shared_template([base, result])
    assert chat_models.prompt_terms(together).note == ""
    tokenizer = chat_models.prompt_terms(result).tokenizer
    tokenizer.add_tokens(["<new>"])
    tokenizer.eos_token = "<|im_start|>"
    rendering.configure(tokenizer, args={"enable_thinking": False}, date="2026-01-31")
    own = chat_models.prompt_terms
    with monkeypatch.context() as patch:
        patch.setattr(chat_models, "prompt_terms", lambda named: PromptTerms(tokenizer))
        terms = own(together)
    assert terms.note.startswith(
        f"The tokenizer of {result.name} differs from the base's in 1 token:"
    )
    assert terms.tokenizer.eos_token == "<|im_start|>"
    assert rendering.settings_of(terms.tokenizer).to_json() == {
        "template_args": {"enable_thinking": False}, "template_date": "2026-01-31",
    }  # fmt: skip


def test_each_model_goes_on_from_its_own_answers(board: Board, names: list[str]) -> None:
    conversation = conversations.create(names[:2])
    board.ask(conversation.id, "First", SHORT, names[:2])
    until_over(board, conversation.id)
    board.ask(conversation.id, "Second", SHORT, names[:2])
    seen = until_over(board, conversation.id)
    first, second = seen.turns
    for name in names[:2]:
        prompt = second.answers[name].receipt["prompt"]
        assert "First" in prompt and "Second" in prompt
        assert first.answers[name].text in prompt
    first.continue_from = names[1]
    messages = [seen.messages(name, 1) for name in names[:2]]
    assert messages[0] == messages[1], "All go on from the chosen answer."
    assert messages[0][1]["content"] == first.answers[names[1]].text


def test_no_question_is_taken_while_another_one_is_answered(board: Board, names: list[str]) -> None:
    conversation = conversations.create(names)
    board.ask(conversation.id, "Hi", LONG, names)
    with pytest.raises(LabError, match="still being answered"):
        board.ask(conversation.id, "Again", SHORT, names)
    assert board.stop(conversation.id) == 3
    seen = until_over(board, conversation.id)
    assert [turn.question for turn in seen.turns] == ["Hi"], "No turn of two halves."


def test_one_answer_is_stopped_and_the_others_go_on(board: Board, names: list[str]) -> None:
    conversation = conversations.create(names[:2])
    board.ask(conversation.id, "Hi", SHORT | {"max_tokens": 400}, names[:2])
    until(lambda: board.view(conversation.id).turns[0].answers[names[0]].tokens > 2)
    looked = board.view(conversation.id).turns[0].answers[names[0]]
    assert looked.phase == "answering" and not looked.is_over
    assert board.stop(conversation.id, [names[0]]) == 1
    assert board.stop(conversation.id, [names[0]]) == 0, "It is stopped once."
    turn = until_over(board, conversation.id).turns[0]
    stopped, other = (turn.answers[name] for name in names[:2])
    assert stopped.finish == "stopped" and 2 < stopped.tokens < other.tokens
    assert other.finish in ("stop", "length")


def test_an_answer_is_made_anew(board: Board, names: list[str]) -> None:
    conversation = conversations.create(names[:2])
    board.ask(conversation.id, "Hi", SHORT, names[:2])
    first = until_over(board, conversation.id).turns[0]
    board.answer_again(conversation.id, [names[1]])
    again = until_over(board, conversation.id).turns[0]
    assert again.answers[names[0]] == first.answers[names[0]], "The other one stays as it was."
    assert again.answers[names[1]].token_ids == first.answers[names[1]].token_ids
    assert again.answers[names[1]].started != first.answers[names[1]].started
    board.ask(conversation.id, "And now?", SETTINGS | {"max_tokens": 3}, names[:1])
    until_over(board, conversation.id)
    board.answer_again(conversation.id, None)
    last = until_over(board, conversation.id).turns[1].answers[names[0]]
    assert last.receipt["max_new_tokens"] == 3, "a turn is answered again with its own settings"
    with pytest.raises(LabError, match="no answer of run:x"):
        board.answer_again(conversation.id, ["run:x"])


@pytest.mark.parametrize(
    ("finish", "tokens", "end"),
    [("length", 4, "context"), ("length", 3, "length"), ("stop", 4, "stop"),
     ("stopped", 4, "stopped")],
)  # fmt: skip
def test_the_context_ends_what_did_not_end_before(finish: str, tokens: int, end: str) -> None:
    decoding = SimpleNamespace(
        started=1.0, ended=2.0, first_token=1.5, kept_tokens=0, token_ids=[7] * tokens,
        log_probabilities=[-1.0] * tokens, text="", error=None, finish=finish,
        tokenizer=SimpleNamespace(decode=str),
    )  # fmt: skip
    pending: Any = SimpleNamespace(decoding=decoding, room=4, receipt=AnswerReceipt)
    answer = Answer()
    settings = GenerationSettings()
    PendingTurn("", 0, settings, {"base:x": answer}, pending={"base:x": pending}).update()
    assert answer.finish == end
    assert (answer.seconds_to_first_token, answer.seconds) == (0.5, 1.0)


def test_what_one_model_fails_at_is_its_answer(
    board: Board, names: list[str], trained: list[RunDir]
) -> None:
    for file in trained[0].artifact.glob("*.safetensors"):
        file.write_bytes(b"garbage")
    conversation = conversations.create(names)
    board.ask(conversation.id, "Hi", SHORT, names)
    turn = until_over(board, conversation.id).turns[0]
    assert [turn.answers[name].finish == "failed" for name in names] == [False, True, False]
    assert turn.answers[names[1]].error and "Traceback" not in turn.answers[names[1]].error
    assert all(turn.answers[name].token_ids for name in (names[0], names[2]))


def test_an_adapter_of_which_nothing_is_in_the_model_is_refused(
    names: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where its names match nothing and a library loads it in silence."""
    from lab.chat import models as chat_models
    from lab.methods import get

    base = LoadedModels()
    monkeypatch.setattr(type(get("lora")), "load_saved", lambda self, model, folder: model)
    with pytest.raises(LabError, match=r"None of the \d+ tensors"):
        base.get(chat_models.parse(names[2]))


def test_a_base_that_was_changed_is_told(names: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    from lab.chat import models as chat_models
    from lab.methods import get

    loaded = LoadedModels()
    kind = type(get("lora"))
    load = kind.load_saved

    def careless(self: Any, model: Any, folder: Path) -> Any:
        with torch.no_grad():
            model.get_output_embeddings().weight.add_(0.1 * torch.randn(32))
        return load(self, model, folder)

    monkeypatch.setattr(kind, "load_saved", careless)
    proof = loaded.get(chat_models.parse(names[2])).proof
    assert proof is not None and proof.base_difference > 0
    assert "The base is not the base" in proof.problems[0]


def test_variants_cost_their_own_bytes_and_the_least_recent_one_goes(
    names: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from lab.chat import models as chat_models

    base, full, adapter = (chat_models.parse(name) for name in names)
    loaded = LoadedModels(budget_bytes=10**12)
    for named in (base, full, adapter):
        loaded.get(named)
    sizes = loaded.bytes_of()
    own = sum(p.numel() * 4 for p in loaded.models[names[0]].model.parameters())
    assert own <= sizes[names[0]] < 1.1 * own
    assert sizes[names[2]] < 0.1 * own < sizes[names[1]], "An adapter shares the base's tensors."
    words = [loaded.models[name].tokenizer.backend_tokenizer for name in names]
    assert words[1] is words[0] and words[2] is words[0], "One vocabulary is in memory once."
    full_model = loaded.models[names[1]]
    loaded.models[names[1]] = loaded.models[names[2]]
    assert loaded.bytes_of()[names[1]] == sizes[names[2]], "Another model under the same name."
    loaded.models[names[1]] = full_model
    del full_model
    models = [weakref.ref(loaded.models[name].model) for name in names]
    loaded.budget_bytes = sizes[names[0]] + sizes[names[2]]
    gave_back, give_back = [], loaded_models._give_back_free_memory
    monkeypatch.setattr(
        loaded_models,
        "_give_back_free_memory",
        lambda: (gave_back.append(len(loaded.models)), give_back()),
    )
    loaded.get(base)
    assert list(loaded.models) == [names[2], names[0]], "The full model was used least recently."
    assert models[1]() is None, "Its memory is free at once, though modules refer to themselves."
    loaded.unload()
    assert loaded.bytes() == 0 and not any(model() for model in models)
    assert gave_back == [2, 0], "A GPU's memory would stay with torch."


def test_a_vocabulary_with_further_tokens_stays_apart(
    names: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from lab.chat import models as chat_models

    base, _, adapter = (chat_models.parse(name) for name in names)
    own = chat_models.prompt_terms

    def with_a_token(named: Any) -> PromptTerms:
        terms = own(named)
        if named.name == adapter.name:
            terms.tokenizer.add_tokens(["<new>"])
        return terms

    monkeypatch.setattr(chat_models, "prompt_terms", with_a_token)
    monkeypatch.setattr(chat_models.template_lock, "check_tokenizer", lambda lock, words: None)
    loaded = LoadedModels()
    plain, extended = loaded.get(base).tokenizer, loaded.get(adapter).tokenizer
    assert extended.backend_tokenizer is not plain.backend_tokenizer
    assert "<new>" in extended.get_vocab() and "<new>" not in plain.get_vocab()


def test_answers_that_nobody_makes_are_interrupted(
    names: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    conversation = conversations.create(names[:1])
    with conversations.change(conversation.id) as chat:
        half = Answer(phase="answering", text="half", tokens=6)
        chat.turns.append(Turn("Hi", {names[0]: half}))
    monkeypatch.setattr(client, "record", lambda: None)
    seen = client.view(conversation.id).turns[0].answers[names[0]]
    assert seen.finish == "interrupted" and seen.text == "half", "What was there stays."


def test_a_deleted_conversation_stays_deleted(board: Board, names: list[str]) -> None:
    conversation = conversations.create(names[:1])
    board.ask(conversation.id, "Hi", LONG, names[:1])
    conversations.delete(conversation.id)
    board.stop(conversation.id)
    until(lambda: not board.is_busy())
    assert conversations.all_conversations() == []


def test_the_process_does_not_look_idle_at_the_end_of_a_long_answer(
    board: Board, names: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    models, idle_s, saved = board.models, list[float](), list[bool]()

    class Active(dict[Any, Any]):
        def pop(self, *key: Any) -> Any:
            saved.append(conversations.read(key[0][0]).turns[0].is_over)
            idle_s.append(time.monotonic() - models.last_used)
            return super().pop(*key)

    def answer_for_an_hour(job: PendingTurn) -> None:
        models.last_used = time.monotonic() - 3600
        for answer in job.answers.values():
            answer.finish = "stop"

    monkeypatch.setattr(board, "active", Active())
    monkeypatch.setattr(board, "_answer", answer_for_an_hour)
    board.ask(conversations.create(names[:1]).id, "Hi", SHORT, names[:1])
    until(lambda: idle_s)
    assert idle_s[0] < 60, "whoever sees that nothing is answered may end the process"
    assert saved == [True], "an answer that is not over and that nobody makes is interrupted"


def test_text_is_read_while_it_is_decoded(names: list[str], board: Board) -> None:
    """Looks from several threads at once do no harm."""
    conversation = conversations.create(names)
    board.ask(conversation.id, "Hi", SHORT | {"max_tokens": 60}, names)
    errors: list[BaseException] = []

    def look() -> None:
        try:
            until_over(board, conversation.id)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=look) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []


def test_an_answer_is_measured_under_every_model_of_its_turn(
    board: Board, names: list[str]
) -> None:
    conversation = conversations.create(names)
    board.ask(conversation.id, "Hi", SHORT | {"system_prompt": "Be odd."}, names)
    answers = until_over(board, conversation.id).turns[0].answers
    until(lambda: not board.is_busy())
    writer = names[2]
    scores = board.score(conversation.id, 0, writer)
    assert list(scores) == names, "All stand on one base."
    own = answers[writer]
    assert scores[writer] == pytest.approx(own.log_probabilities, abs=1e-3), "As it was written."
    assert {len(values) for values in scores.values()} == {own.tokens}
    assert scores[names[0]] != pytest.approx(scores[writer], abs=1e-4), "The base finds otherwise."
    assert conversations.read(conversation.id).turns[0].answers[writer].scores == scores
    ids = own.token_ids
    loaded = board.models.models[names[1]]
    prompt = loaded.tokenizer(own.receipt["prompt"], add_special_tokens=False)["input_ids"]
    with torch.inference_mode():
        logits = loaded.model(input_ids=torch.tensor([prompt + ids])).logits[0].double()
    by_hand = [
        float(logits[len(prompt) + position - 1].log_softmax(-1)[token])
        for position, token in enumerate(ids)
    ]
    assert scores[names[1]] == pytest.approx(by_hand, abs=1e-4)
    for turn, name in ((0, "base:x"), (5, writer), (-1, writer)):
        with pytest.raises(LabError, match="no answer to measure"):
            board.score(conversation.id, turn, name)


def test_an_answer_is_measured_under_models_of_its_own_base_alone(
    board: Board, tiny_model: Path, tmp_path: Path
) -> None:
    other = shutil.copytree(tiny_model, tmp_path / "other")
    names = [f"base:{tiny_model}", f"base:{other}"]
    conversation = conversations.create(names)
    board.ask(conversation.id, "Hi", SHORT, names)
    until_over(board, conversation.id)
    until(lambda: not board.is_busy())
    for name in names:
        scores = board.score(conversation.id, 0, name)
        assert list(scores) == [name], "Another base may have other tokens under the same ids."


def test_a_model_for_which_there_is_no_memory_is_not_loaded(
    board: Board, names: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from lab.runs import index

    run = chat_models.parse(names[2]).run
    monkeypatch.setattr(index, "active_runs", lambda: [run])
    base, full = names[:2]
    free = [10**9]
    monkeypatch.setattr(loaded_models, "_free_bytes", lambda: free[0])
    board.models.get(chat_models.parse(base))
    free[0] = 1_000_000
    board.models.get(chat_models.parse(names[2]))  # it stands on the base: it costs nothing
    with pytest.raises(LabError, match=r"needs about 1\.\d+ MB of memory, and 1\.00 MB are free"):
        board.models.get(chat_models.parse(full), frozenset(board.models.models))
    assert base in board.models.models, "What is in use stays."
    with pytest.raises(LabError, match="uses the memory"):
        board.models.get(chat_models.parse(full))
    assert names[2] not in board.models.models, "What is idle makes room."


@pytest.fixture
def answered(names: list[str]) -> Chat:
    """A turn in which the base has answered, and which nobody works at."""
    chat = conversations.create(names[:1])
    with conversations.change(chat.id) as stored:
        answer = Answer(text="x", finish="stop", token_ids=[5, 6])
        stored.turns.append(Turn("Hi", {names[0]: answer}, SETTINGS))
    return chat


def test_a_measurement_is_not_kept_with_an_answer_that_was_made_anew_meanwhile(
    board: Board, names: list[str], answered: Chat, monkeypatch: pytest.MonkeyPatch
) -> None:
    def measure(*_: Any) -> list[float]:
        with conversations.change(answered.id) as chat:
            chat.turns[0].answers[names[0]] = Answer(text="new", finish="stop", token_ids=[7])
        return [-1.0, -2.0]

    monkeypatch.setattr(scoring, "log_probabilities", measure)
    assert board.score(answered.id, 0, names[0]) == {names[0]: [-1.0, -2.0]}
    [answer] = conversations.read(answered.id).turns[0].answers.values()
    assert answer.text == "new" and answer.scores == {}, "They are of other tokens."


def test_a_measurement_that_fails_gives_the_turn_back(
    board: Board, names: list[str], answered: Chat, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scoring, "log_probabilities", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        board.score(answered.id, 0, names[0])
    assert not board.models.turn.locked(), "Nobody would be answered any more."


def test_tokens_that_a_model_does_not_have_are_not_measured(
    names: list[str], answered: Chat
) -> None:
    loaded = LoadedModels().get(chat_models.parse(names[0]))
    rows = loaded.model.get_input_embeddings().weight.shape[0]
    messages, settings = answered_messages(answered, names[0]), GenerationSettings()
    assert len(scoring.log_probabilities(loaded, messages, settings, [rows - 1])) == 1
    with pytest.raises(LabError, match="does not know"):
        scoring.log_probabilities(loaded, messages, settings, [rows])


def answered_messages(chat: Chat, name: str) -> list[dict[str, str]]:
    return conversations.read(chat.id).messages(name, 0)


def test_an_answer_that_ends_while_somebody_looks_is_not_called_interrupted(
    board: Board, names: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    name = names[0]
    chat = conversations.create([name])
    with conversations.change(chat.id) as stored:
        stored.turns.append(Turn("Hi", {name: Answer(phase="answering", text="who")}))
    whole = Answer(text="whole", finish="stop")
    board.active[chat.id, 0] = PendingTurn(chat.id, 0, GenerationSettings(), {name: whole})
    read = conversations.read

    def read_and_end(conversation_id: str) -> Chat:
        seen = read(conversation_id)
        board.active.pop((conversation_id, 0))
        return seen

    monkeypatch.setattr(conversations, "read", read_and_end)
    assert board.view(chat.id).turns[0].answers[name] == whole


def test_an_answer_that_was_stopped_before_it_began_loads_nothing(
    board: Board, names: list[str]
) -> None:
    chat = conversations.create(names[:2])
    with conversations.change(chat.id) as stored:
        stored.turns.append(Turn("Hi", {name: Answer() for name in names[:2]}))
    job = PendingTurn(
        chat.id, 0, GenerationSettings(), {name: Answer() for name in names[:2]},
        {name: threading.Event() for name in names[:2]},
    )  # fmt: skip
    for event in job.stops.values():
        event.set()
    board._answer(job)
    assert {answer.finish for answer in job.answers.values()} == {"stopped"}
    assert not board.models.models, "Loading takes long, and nobody waits for it."


def test_no_model_of_a_question_is_put_away_for_another_one_of_it(
    names: list[str], lab_home: Path
) -> None:
    board = Board(LoadedModels(budget_bytes=0))
    chat = conversations.create(names)
    for _ in range(2):
        board.ask(chat.id, "Hi", SETTINGS | {"max_tokens": 1}, names)
        until_over(board, chat.id)
    until(lambda: not board.is_busy())
    assert set(board.models.models) == set(names), "All are needed for the next question, too."


def test_what_cannot_be_downloaded_is_the_answer_of_its_model_alone(
    board: Board, names: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fetch(named: chat_models.ModelRef, is_gone: Any) -> Iterator[str]:
        yield "downloading"
        if named.name == names[2]:
            raise LabError("The Hub is gone.")

    monkeypatch.setattr(downloads, "fetch", fetch)
    chat = conversations.create(names)
    board.ask(chat.id, "Hi", SHORT, names)
    answers = until_over(board, chat.id).turns[0].answers
    assert answers[names[2]].finish == "failed" and answers[names[2]].error == "The Hub is gone."
    assert all(answers[name].token_ids for name in names[:2])


def test_a_template_is_read_again_when_its_run_has_another_result(
    names: list[str], trained: list[RunDir], monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []
    own = chat_models.prompt_terms

    def count(named: chat_models.ModelRef) -> PromptTerms:
        read.append(named.name)
        return own(named)

    monkeypatch.setattr(chat_models, "prompt_terms", count)
    models, named = LoadedModels(), chat_models.parse(names[2])
    ask = [{"role": "user", "content": "Hi"}]
    for _ in range(2):
        models.check_length(named, ask, GenerationSettings())
    assert read == [names[2]], "once for each state of the files"
    receipt = trained[1].artifact / "receipt.json"
    write_json(receipt, (read_object(receipt) or {}) | {"seed": 99})
    models.check_length(named, ask, GenerationSettings())
    assert read == [names[2]] * 2


def test_the_budget_counts_what_is_loaded_as_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loaded_models, "_free_bytes", lambda: 400)
    assert loaded_models._budget(600) == 1000 * loaded_models.BUDGET_SHARE


def test_a_conversation_has_its_most_turns_and_no_more(
    board: Board, names: list[str], answered: Chat, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(conversations, "MAX_TURNS", 1)
    with pytest.raises(LabError, match="has 1 turns, the most there may be"):
        board.ask(answered.id, "And?", SHORT, names[:1])
