"""One message for each kind of failure, with its own way out; whose token it was."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable
from typing import Any

import pytest

from lab.data import hub as dataset_hub
from lab.data import hub_fetch
from lab.errors import LabError
from lab.hub import client, credentials, repository, search
from lab.hub.credentials import HubToken
from lab.hub.problems import HubError, refusal, unreachable
from tests.hub.conftest import NAME
from tests.hub.stand_in import StandIn

TOKEN = "hf_of_a_test"


def failure(token: str = "") -> HubError:
    credentials.give(token)
    client._down.clear()
    with pytest.raises(HubError) as raised:
        repo = repository.resolve("models", NAME)
        client.get(repo.url("config.json").removeprefix(client.settings.endpoint()), repo.subject)
    assert TOKEN not in str(raised.value), "a message never holds the token itself"
    return raised.value


@pytest.mark.parametrize(
    ("fault", "token", "kind", "message", "hint"),
    [
        ({"missing": True}, "", "not found", "or it is private and no token was given", "HF_TOKEN"),
        ({"private": True, "tokens": ["b"]}, "", "not found", "no token was given", "HF_TOKEN"),
        ({"private": True, "tokens": ["b"], "missing": True}, "b", "not found",
         "is private and the token given on the page may not read it", "of its owner"),
        ({"gated": True}, "", "gated", "is gated: its files need a token, and none was given",
         "Accept its terms at http://127.0.0.1"),
        ({"gated": True, "tokens": ["b"]}, "b", "gated",
         "is gated, and the token given on the page has no access to it", "with the account of"),
        ({}, "wrong", "token", "does not know the token given on the page: it is wrong or expired",
         "Make a new one"),
        ({"status": 429}, "", "rate limit", "limits how often it is asked (status 429)",
         "A token (HF_TOKEN) allows more requests"),
        ({"status": 503}, "", "server", "has a fault of its own (status 503)", "some minutes"),
        ({"status": 407}, "", "proxy", "the proxy asks for a login", "user:password@host:port"),
    ],
)  # fmt: skip
def test_each_failure_has_its_own_message(
    stand_in: StandIn, fault: dict[str, Any], token: str, kind: str, message: str, hint: str
) -> None:
    stand_in.commit(NAME, {"config.json": b"{}"})
    stand_in.faults[NAME] = fault
    error = failure(token)
    assert error.kind == kind, error
    assert message in error.message and hint in error.hint
    if kind != "gated":
        assert "gated" not in error.hint, "the sentence on gated models is for those alone"


def test_the_origin_of_a_token_is_told(
    stand_in: StandIn, monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    stand_in.commit(NAME, {"config.json": b"{}"})
    file = tmp_path / "token"
    file.write_text(f"{TOKEN}\n")
    monkeypatch.setenv("HF_TOKEN_PATH", str(file))
    assert "does not know the token of 'hf auth login'" in failure().message
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert "does not know the token in HF_TOKEN" in failure().message
    assert "does not know the token given on the page" in failure(TOKEN).message
    with pytest.raises(LabError, match="holds characters that no token has"):
        credentials.give("two words")
    assert TOKEN not in repr(credentials.current()), "no traceback shows it"
    monkeypatch.setenv("HF_HUB_DISABLE_IMPLICIT_TOKEN", "yes")
    credentials.give("")
    assert credentials.current() is None


def test_a_name_that_is_not_known_and_a_closed_port(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LAB_HUB_OFFLINE", "0")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # and does not listen
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{taken.getsockname()[1]}")
        error = failure()
    assert error.kind == "network" and "the Hub cannot be reached (127.0.0.1:" in error.message
    assert "HTTPS_PROXY" in error.hint


def test_a_proxy_is_used_and_its_refusal_told(
    stand_in: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    address = stand_in.address
    monkeypatch.setenv("HF_ENDPOINT", "http://a-name-of-the-proxy-alone.test")
    monkeypatch.setenv("http_proxy", address)
    stand_in.commit(NAME, {"config.json": b"{}"})
    repo = repository.resolve("models", NAME)
    assert repo.commit == stand_in.refs["models", NAME]["main"], "the proxy was asked"
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    client._down.clear()
    with pytest.raises(HubError, match="cannot be reached"):
        repository.current_commit("models", NAME)


def test_a_hub_that_hangs_is_given_up_and_not_asked_again_at_once(
    stand_in: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_ETAG_TIMEOUT", "0.1")
    stand_in.faults["*"] = {"hang": 1}
    for _ in range(5):
        with pytest.raises(HubError, match=r"did not answer within 0\.1 s") as raised:
            repository.current_commit("models", NAME)
    assert raised.value.kind == "timeout"
    assert len(stand_in.requests()) == 1, "four of five questions were answered by the first"


def test_an_answer_that_drips_is_given_up(
    stand_in: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "MAX_QUESTION_S", 0.3)
    stand_in.commit(NAME, {"config.json": b"x" * 4_000})
    repo = repository.resolve("models", NAME)
    stand_in.faults[NAME] = {"rate": 2_000}
    began = time.monotonic()
    with pytest.raises(HubError, match=r"took longer than 0\.3 s"):
        client.get(f"/{NAME}/resolve/{repo.commit}/config.json", repo.subject)
    assert time.monotonic() - began < 1.5, "the whole answer would take two seconds"


def test_a_dataset_has_the_same_messages(stand_in: StandIn) -> None:
    with pytest.raises(LabError, match="The dataset 'org/name' is not on the Hub"):
        hub_fetch.fetch(dataset_hub.parse(NAME))
    stand_in.commit(NAME, {"train.jsonl": b'{"text": "a"}\n'}, "datasets")
    stand_in.faults[NAME] = {"gated": True}
    with pytest.raises(LabError, match=r"The dataset 'org/name'.* is gated") as raised:
        hub_fetch.fetch(dataset_hub.parse(NAME))
    assert f"/datasets/{NAME}" in raised.value.hint, "where its terms are"


def test_the_search_says_what_decides(stand_in: StandIn, lab_json: Callable[..., Any]) -> None:
    stand_in.cards = [
        {"id": "org/tiny-chat", "downloads": 12_000, "gated": False,
         "tags": ["license:apache-2.0", "safetensors"], "safetensors": {"total": 135_000_000}},
        {"id": "org/huge-chat", "downloads": 9, "gated": "manual", "tags": ["license:other"],
         "safetensors": {"total": 10**15}},
        {"modelId": "org/old-chat", "tags": [], "siblings": [{"rfilename": "pytorch_model.bin"}],
         "cardData": {"license": "mit"}},
        {"id": "../../chat", "tags": []}, "chat",
    ]  # fmt: skip
    rows = lab_json("models", "--search", "chat")["models"]
    assert [row["id"] for row in rows] == ["org/tiny-chat", "org/huge-chat", "org/old-chat"]
    tiny, huge, old = rows
    assert tiny["parameters"] == 135_000_000 and tiny["license"] == "apache-2.0"
    assert (tiny["downloads"], tiny["gated"], tiny["safetensors"]) == (12_000, False, True)
    assert tiny["fits_here"] is True and tiny["fits_with"] == "lora"
    assert huge["safetensors"] is True, "Its parameters were counted from such files."
    assert huge["gated"] is True and huge["fits_here"] is False and huge["fits_with"] == ""
    assert old["license"] == "mit" and not old["safetensors"]
    assert old["parameters"] is None and old["fits_here"] is False, "no pickle is ever trained"
    assert "search=chat" in stand_in.requests()[0].path
    assert len(lab_json("models", "--search", "chat", "--limit", "1")["models"]) == 1


def test_doctor_says_where_files_go(
    stand_in: StandIn, lab_json: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lab.host.time_product", lambda: 1e9)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    told = lab_json("doctor")
    assert told["hub"]["cache"].endswith("hf/hub") and told["hub"]["endpoint"] == stand_in.address
    assert told["hub"]["token"] == "the token in HF_TOKEN" and TOKEN not in str(told)


@pytest.mark.parametrize(
    ("text", "seconds"), [("3", 3.0), ("-5", 1.0), ("inf", 1.0), ("nan", 1.0), ("soon", 1.0)]
)
def test_a_pause_that_the_hub_asks_for_is_a_number_of_seconds(text: str, seconds: float) -> None:
    error = refusal(429, {"retry-after": text}, b"", "The model 'a/b'", None)
    assert error.retry_s == seconds
    assert error.hint.startswith("Try again in 3 s." if text == "3" else "Try again in some min")


@pytest.mark.parametrize(
    ("status", "headers", "subject", "kind", "words"),
    [
        (401, {"x-error-code": "RepoNotFound"}, "The model 'a/b'", "not found",
         "is not on the Hub, or it is private and the token of a test may not read it."),
        (403, {"x-error-message": "This repo is gated."}, "The model 'a/b#v1'", "gated",
         "has no access to it. Accept its terms at HUB/a/b with"),
        (403, {"x-error-code": "GatedRepo"}, "The dataset 'a/b:c@d'", "gated",
         "has no access to it. Accept its terms at HUB/datasets/a/b with"),
        (401, {"x-error-code": "GatedRepo"}, "The model 'a/b'", "token", "it is wrong or expired"),
    ],
)  # fmt: skip
def test_a_token_that_does_not_help_is_told_by_what_the_hub_says(
    monkeypatch: pytest.MonkeyPatch, status: int, headers: dict[str, str], subject: str, kind: str,
    words: str,
) -> None:  # fmt: skip
    monkeypatch.setenv("HF_ENDPOINT", "http://hub")
    error = refusal(status, headers, b"", subject, HubToken(TOKEN, "the token of a test"))
    assert error.kind == kind
    assert words.replace("HUB", "http://hub") in f"{error.message} {error.hint}"


def test_no_more_models_are_asked_for_or_shown_than_were_wanted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    limits: list[int] = []

    def answer(path: str, subject: str, params: dict[str, Any]) -> tuple[Any, dict[str, str]]:
        limits.append(params["limit"])
        return [{"id": f"org/n{number}"} for number in range(5)], {}

    monkeypatch.setattr(client, "get_json", answer)
    assert [model.id for model in search.models("n", 2)] == ["org/n0", "org/n1"]
    assert len(search.models("n", 500)) == 5
    assert limits == [2, 100], "The Hub gives a hundred at most."


def test_what_may_be_over_in_a_moment_is_tried_again() -> None:
    """A Hub with a fault, or a lost connection: nothing else."""
    assert refusal(503, {}, b"", "The model 'a/b'", None).retry_s == 0.5
    assert refusal(503, {"retry-after": "7"}, b"", "The model 'a/b'", None).retry_s == 7.0
    assert refusal(404, {"retry-after": "7"}, b"", "The model 'a/b'", None).retry_s is None
    for kind in ("network", "proxy", "certificate", "timeout", "offline"):
        error = unreachable("The model 'a/b'", "why", kind=kind)
        assert error.retry_s == (0.3 if kind == "network" else None), kind


def test_a_hub_that_was_gone_is_asked_again_after_a_while(
    stand_in: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit = stand_in.commit(NAME, {"config.json": b"{}"})
    client._down[stand_in.address] = (time.monotonic(), "it was gone", "network")
    with pytest.raises(HubError, match="it was gone"):
        repository.current_commit("models", NAME)
    monkeypatch.setattr(client, "QUIET_S", 0.0)
    assert repository.current_commit("models", NAME) == commit


def test_a_hub_that_names_no_commit_is_told(
    stand_in: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    for answer in ({"sha": "main"}, {"sha": None}, {}, []):
        monkeypatch.setattr(client, "get_json", lambda *_, answer=answer: (answer, {}))
        with pytest.raises(HubError, match="names no commit"):
            repository.current_commit("models", NAME)
