"""What people do, in a real browser."""

from __future__ import annotations

import contextlib
import hashlib
import re
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import psutil
import pytest
from playwright.sync_api import Browser, Page, expect

from lab.chat import client, conversations
from lab.chat.conversations import Answer, Chat, Turn
from lab.paths import all_runs
from lab.runs import actions, checkpoints, record_reader
from lab.runs.status import status
from lab.spec import RunSpec
from tests.e2e.conftest import PATIENCE_S, Server, fill, other_browser, settled, sideways, widget

pytestmark = pytest.mark.e2e
WHOLE = {"stop", "length", "context"}  # how an answer ends that nobody stopped


def points(page: Page, chart: str = "loss") -> int:
    """How many points the first trace of a chart shows."""
    return len(drawn(page, chart))


def first_point(page: Page, chart: str = "loss") -> float | None:
    """Where the first trace of a chart begins."""
    return next(iter(drawn(page, chart)), None)


def last_point(page: Page, chart: str = "loss") -> float:
    """Where the first trace of a chart ends."""
    return max(drawn(page, chart), default=0.0)


def drawn(page: Page, chart: str) -> list[float]:
    """The first trace's x; nothing while the chart is being drawn anew, which takes a moment."""
    script = """name => {
        const plot = document.querySelector(`[class*="st-key-chart-${name}-"] .js-plotly-plot`);
        const drawn = plot && plot._fullData && plot._fullData[0];
        return drawn && drawn.x ? Array.from(drawn.x) : [];
    }"""
    return list(page.evaluate(script, chart))


def wait_for(page: Page, condition: Callable[[], bool], what: str) -> None:
    end = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < end, what
        page.wait_for_timeout(200)


def maps_torch(server: Server) -> bool:
    assert server.process is not None
    maps = Path(f"/proc/{server.process.pid}/maps").read_text()
    return "libtorch" in maps


def test_quick_start_leads_to_a_run_that_is_watched(page: Page, server: Server) -> None:
    button = page.get_by_role("button", name="Start training")
    button.dblclick()
    page.wait_for_url(re.compile(r"/monitor\?.*run="))
    settled(page)
    assert len(all_runs()) == 1, "two clicks are one run"
    wait_for(page, lambda: points(page) >= 2, "the curve did not begin")
    expect(page.get_by_text("Who created you?").first).to_be_visible()
    assert not maps_torch(server)


def test_new_run_with_three_mistakes_then_right(
    page: Page, server: Server, tiny_model: Path, chats: Path
) -> None:
    page.get_by_role("link", name="New run").click()
    settled(page)
    assert is_in_sight(page, "start"), "before anything is scrolled"
    pick_folder(page, tiny_model)
    choose(page, "new.data.dataset", str(chats))
    with frozen_planner(server):
        rate = widget(page, "new.train.learning_rate").locator("input")
        rate.fill("5")  # no more than typed: neither left nor entered
        expect(page.get_by_text("1 problem:")).to_be_visible()
        fill(page, "new.data.max_length", "4")
        expect(page.get_by_text("2 problems:")).to_be_visible()
    for text in ("Learning rate is 5; it must be at most 1", "Sequence length is 4; it must be at"):
        expect(page.get_by_text(text).first).to_be_visible()
    expect(widget(page, "start").get_by_role("button")).to_be_disabled()
    fill(page, "new.train.learning_rate", "auto")
    fill(page, "new.data.max_length", "64")
    fill(page, "new.method.lora.target_modules", "c_attn")
    page.get_by_role("button", name="Start run").click()
    expect(page.get_by_text("names no linear layer").first).to_be_visible()
    assert all_runs() == []
    fill(page, "new.method.lora.target_modules", "q_proj, v_proj")
    assert is_in_sight(page, "start"), "wherever the page is scrolled to"
    page.get_by_role("button", name="Start run").click()
    page.wait_for_url(re.compile(r"/monitor\?.*run="))
    run = all_runs()[0]
    page.get_by_role("link", name="Home").click()  # look elsewhere: word comes when it ends
    settled(page)
    actions.wait(run, timeout_s=90)
    expect(page.get_by_text(re.compile("First look: done"))).to_be_visible()
    page.goto(f"{server.url}/new_run")
    settled(page)
    page.go_back()


def test_full_against_lora_is_one_click_to_the_comparison(page: Page, server: Server) -> None:
    page.goto(f"{server.url}/new_run?preset=full-lora")
    settled(page)
    fill(page, "new.data.max_length", "64")
    fill(page, "new.train.max_steps", "2")
    page.get_by_role("button", name="Start both").click()
    page.wait_for_url(re.compile(r"/compare\?.*runs="))
    first, second = (RunSpec.of_run(run) for run in all_runs())
    assert {first.method["name"], second.method["name"]} == {"full", "lora"}
    assert (first.model, first.data) == (second.model, second.data)
    same = replace(first.train, learning_rate=second.train.learning_rate)
    assert same == second.train, "They differ in nothing but method and rate."
    for run in all_runs():
        assert actions.wait(run, timeout_s=120) == "done"
    verdict = widget(page, "compare-verdict")
    expect(verdict.get_by_text(re.compile("evaluation loss|difference")).first).to_be_visible()
    expect(verdict.get_by_text("Same base", exact=False)).to_be_visible()


@contextlib.contextmanager
def frozen_planner(server: Server) -> Iterator[None]:
    """The planner of the server, and all that it has forked, answer nothing meanwhile."""
    assert server.process is not None
    planners = []
    for child in psutil.Process(server.process.pid).children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):  # a fork that is just ending
            if "lab.preflight" in child.cmdline():
                child.suspend()
                planners.append(child)
    assert planners, "the form warms it"
    yield
    for child in planners:
        with contextlib.suppress(psutil.NoSuchProcess):
            child.resume()


def is_in_sight(page: Page, key: str) -> bool:
    box, size = widget(page, key).bounding_box(), page.viewport_size
    assert box is not None and size is not None
    return bool(0 <= box["y"] and box["y"] + box["height"] <= size["height"])


def pick_folder(page: Page, folder: Path) -> None:
    """Choose a model of one's own in the dialog, which says that there is no network."""
    widget(page, "new.pick").get_by_role("button").click()
    dialog = page.get_by_role("dialog")
    expect(dialog.locator("[data-testid=stDataFrame]")).to_be_visible()
    settled(page)  # a click on what is just drawn anew is lost
    dialog.get_by_text("Hub", exact=True).click()
    search = dialog.get_by_placeholder("Name, organisation or Hub ID")
    expect(dialog.get_by_text("It is sent to the Hugging Face Hub")).to_be_visible()
    settled(page)  # the field of the catalogue looks the same
    search.fill("qwen")
    search.press("Enter")
    expect(dialog.get_by_text("HF_HUB_OFFLINE is set")).to_be_visible()
    dialog.get_by_text("Folder", exact=True).click()
    fill(page, "pick.folder", str(folder))
    dialog.get_by_role("button", name="Use this model").click()
    expect(dialog).to_be_hidden()
    settled(page)
    expect(page.get_by_text(folder.name).first).to_be_visible()


def choose(page: Page, key: str, value: str) -> None:
    """Type a value of one's own into a list."""
    box = widget(page, key).locator("input").first
    box.click()
    box.fill(value)
    page.get_by_text(re.compile(f"Add: {re.escape(value)}")).first.click()
    settled(page)


def test_a_run_survives_reload_other_browsers_and_a_killed_server_then_stops_and_is_saved(
    page: Page, server: Server, chrome: Browser, start: Callable[..., Any]
) -> None:
    run = start("lora", train={"max_steps": 100_000, "save_steps": 0, "eval_steps": 500})
    page.goto(f"{server.url}/monitor?run={run.id}")
    wait_for(page, lambda: points(page) >= 20, "the curve did not begin")
    page.reload()  # a page that follows a quick run on a busy machine may never be at rest
    wait_for(page, lambda: points(page) >= 20, "lost after a reload")
    other = other_browser(chrome)
    other.goto(server.address)
    other.goto(f"{server.url}/monitor?run={run.id}")
    wait_for(other, lambda: points(other) >= 20, "not found by another browser")
    expect(other.get_by_role("link", name="Runs")).to_be_visible()
    other.context.close()
    server.kill()
    before = record_reader.metrics(run, "train")[-1]["step"]
    time.sleep(1.0)
    assert status(run).state in ("training", "evaluating")
    assert record_reader.metrics(run, "train")[-1]["step"] > before, "it did not go on"
    server.start()
    page.goto(f"{server.url}/monitor?run={run.id}")
    wait_for(page, lambda: points(page) > 20, "no history after the restart")
    wait_for(page, lambda: first_point(page) == 1, "a part of the history is missing")
    seen = last_point(page)
    wait_for(page, lambda: last_point(page) > seen, "the curve did not move")
    widget(page, "stop").get_by_role("button").click()
    wait_for(page, lambda: status(run).state == "stopped", "it did not stop")
    expect(page.get_by_text(re.compile("stopped$")).first).to_be_visible()
    assert run.artifact.is_dir()
    expect(page.get_by_role("button", name="Resume", exact=True)).to_be_visible()


def stop_all(page: Page) -> None:
    """Press Escape while the models answer; they answer again where they were too quick."""
    button = page.get_by_role("button", name=re.compile("^Stop all"))
    again = page.get_by_role("button", name=re.compile("Answer all again"))
    for _ in range(5):
        expect(button.or_(again).first).to_be_visible()
        if button.count():
            page.keyboard.press("Escape")
            expect(page.get_by_placeholder("Message all models")).to_be_visible()
            if "stopped" in {answer.finish for answer in only_chat().turns[1].answers.values()}:
                return
        again.click()


def test_chat_with_two_results(page: Page, server: Server, trained_home: Path) -> None:
    """Ask three models at once, reload in the middle, stop, answer again, look closer, ask a
    checkpoint that was clicked on a curve, unload."""
    shutil.copytree(trained_home / "runs", server.home / "runs")
    page.get_by_role("link", name="Chat").click()
    settled(page)
    for word in ("tiny full", "tiny lora"):
        expect(page.get_by_text(re.compile(word)).first).to_be_visible()
    ask_all(page, "What is 2 plus 2?", tokens="400")
    expect(page.get_by_text(re.compile("answering · ")).first).to_be_visible()
    waiting = page.get_by_placeholder("Your next message waits until all have answered")
    waiting.fill("And 3 plus 3?")
    waiting.press("Enter")
    expect(page.get_by_text(re.compile(r"And 3 plus 3\?")).first).to_be_visible()
    page.reload()
    settled(page)
    expect(page.get_by_text("What is 2 plus 2?")).to_be_visible()
    wait_for(page, lambda: len(only_chat().turns) == 2, "the second message was swallowed")
    expect(page.get_by_text("And 3 plus 3?")).to_be_in_viewport()
    first, second = only_chat().turns
    assert second.question == "And 3 plus 3?" and first.answers.keys() == second.answers.keys()
    assert len(first.answers) == 3, "A reload loses no answer."
    assert second.settings == first.settings and first.settings["max_tokens"] == 400, "nor settings"
    assert {answer.finish for answer in first.answers.values()} <= WHOLE
    stop_all(page)
    expect(page.get_by_placeholder("Message all models")).to_be_visible()
    assert "stopped" in {answer.finish for answer in only_chat().turns[1].answers.values()}
    answer_again(page)
    page.locator("[class*=st-key-chat-more-1]").first.get_by_role("button").click()
    page.get_by_role("tab", name="Receipt").click()
    expect(page.get_by_text(re.compile("The base is the base"))).to_be_visible()
    page.get_by_role("button", name="Close").click()
    ask_a_checkpoint(page, server)
    page.get_by_role("button", name="Settings").click()
    expect(page.get_by_text(re.compile("4 models in memory"))).to_be_visible()
    widget(page, "chat.free").get_by_role("button").click()
    wait_for(page, lambda: client.record() is None, "the process is gone")
    assert not maps_torch(server)
    for name in ("Home", "New run", "Monitor", "Runs"):
        page.get_by_role("link", name=name, exact=True).first.click()
        settled(page)
        assert page.locator("[data-testid=stException]").count() == 0
        assert sideways(page) <= 0, f"{name} scrolls sideways"
    assert not maps_torch(server)


def answer_again(page: Page) -> None:
    """One pane, which spoils no other; then all of them, one of which is stopped on the way."""

    def pressed(what: str, name: str) -> None:
        page.locator(f".st-key-chat-{what}-1-{name.replace(':', '-')}").get_by_role(
            "button"
        ).click()

    def answers() -> dict[str, Answer]:
        return only_chat().turns[1].answers

    def all_are_over() -> bool:
        return len(answers()) == 3 and all(each.is_over for each in answers().values())

    before = answers()
    name = next(n for n, each in before.items() if each.finish == "stopped" and n[:4] == "run:")
    pressed("again", name)
    wait_for(page, lambda: answers()[name].started != before[name].started and all_are_over(),
             "it was not answered again")  # fmt: skip
    assert answers()[name].finish in WHOLE, "to its end this time"
    others = {other: each for other, each in before.items() if other != name}
    assert {other: answers()[other] for other in others} == others, "The others are as they were."
    again = answers()
    widget(page, "chat.all_again.1").get_by_role("button").click()
    pressed("stop", name)
    wait_for(page, lambda: all(answers()[n].started != again[n].started for n in again), "all")
    wait_for(page, all_are_over, "all end")
    assert answers()[name].finish == "stopped" and answers()[name].tokens < again[name].tokens
    for other in others:
        assert answers()[other].finish in WHOLE, "One stop is for one pane."
    expect(page.get_by_placeholder("Message all models")).to_be_visible()


def ask_a_checkpoint(page: Page, server: Server) -> None:
    """The time machine: a click on the curves of Compare leads to the checkpoints of that point,
    one on the curve of Monitor to a chat with that step's weights."""
    run = next(run for run in all_runs() if "lora" in run.id)
    step = checkpoints.step_of(checkpoints.listing(run.checkpoints)[0])
    name = f"run:{run.id}@{step}"
    page.goto(f"{server.url}/compare?runs={','.join(each.id for each in all_runs())}")
    click_curve(page, "compare-chart-", "tiny lora", step)
    link = page.get_by_role("link", name=re.compile(f"tiny lora: step {step}$"))
    assert name in unquote(link.get_attribute("href") or "")
    page.goto(f"{server.url}/monitor?run={run.id}")
    click_curve(page, "chart-loss-", "checkpoint", step)
    page.get_by_role("link", name=f"Chat with step {step}").click()
    page.wait_for_url(re.compile("/chat"))
    settled(page)
    ask_all(page, "What is 4 plus 4?", tokens="6")

    def turns() -> list[Turn]:
        chats = conversations.all_conversations()
        return [turn for chat in chats for turn in chat.turns if name in turn.answers]

    wait_for(page, lambda: any(turn.is_over for turn in turns()), "the checkpoint answers")
    (turn,) = turns()
    receipt = turn.answers[name].receipt
    assert receipt["model"] == name and receipt["step"] == step
    file = run.checkpoints / f"step-{step}" / "trainable.safetensors"
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    assert receipt["weights"] == {file.name: digest}, "those of that step"
    proof = receipt["proof"]
    assert proof["tensors"] == proof["tensors_loaded"] > 0 and proof["problems"] == []
    assert [other.partition(":")[0] for other in turn.answers] == ["base", "run"]


def click_curve(page: Page, key: str, curve: str, x: float) -> None:
    """Click the point of a curve at `x` of its axis, once the chart is drawn."""
    page.wait_for_selector(f'[class*="st-key-{key}"] .js-plotly-plot .main-svg')
    settled(page)
    place = page.evaluate(
        """([key, curve, x]) => {
            const plot = document.querySelector(`[class*="st-key-${key}"] .js-plotly-plot`);
            plot.scrollIntoView({block: "center"});
            const box = plot.getBoundingClientRect(), drawn = plot._fullLayout;
            const {x: places, y: values} = plot._fullData.find(trace => trace.name === curve);
            const y = values[Array.from(places).indexOf(x)];
            return [
                box.left + drawn.xaxis._offset + drawn.xaxis.l2p(x),
                box.top + drawn.yaxis._offset + drawn.yaxis.l2p(y),
            ];
        }""",
        [key, curve, x],
    )
    page.mouse.move(*place)
    page.wait_for_function(  # Plotly looks what is under the mouse a moment later
        "key => document.querySelector(`[class*='st-key-${key}'] .js-plotly-plot`)._hoverdata",
        arg=key,
    )
    page.mouse.click(*place)
    settled(page)


def only_chat() -> Chat:
    (chat,) = conversations.all_conversations()
    return chat


def ask_all(page: Page, question: str, tokens: str) -> None:
    """Ask all models, with at most so many new tokens."""
    page.get_by_role("button", name="Settings").click()
    fill(page, "chat.max_tokens", tokens)
    page.keyboard.press("Escape")
    box = page.get_by_placeholder("Message all models")
    box.fill(question)
    box.press("Enter")


def test_answers_are_drawn_and_can_do_no_harm(page: Page, server: Server) -> None:
    """An old conversation is read without any process; nothing that a model wrote is live."""
    hostile = (
        "# A **title**\n\n<script>window.hit = 1</script> <img src=x onerror='window.hit=1'>\n\n"
        "![i](https://evil.example/i.png) [link](https://evil.example) https://evil.example\n\n"
        ":material/warning: :red[alarm] $x^2$\n\n```python\nprint('<b>')\n```\n\n"
        "| a | b |\n|-|-|\n| 1 | 2 |"
    )
    names = ["base:org/a", "base:org/b"]
    chat = conversations.create(names)
    with conversations.change(chat.id) as kept:
        answers = {
            names[0]: Answer(text=hostile, finish="stop", tokens=9),
            names[1]: Answer(text="half", tokens=2),
        }
        kept.turns.append(Turn("Who <b>are</b> you?", answers))
    seen: list[str] = []
    page.on("request", lambda request: seen.append(request.url))
    page.goto(f"{server.url}/chat?c={chat.id}")
    settled(page)
    expect(page.get_by_text("Who <b>are</b> you?")).to_be_visible()
    expect(page.get_by_role("heading", name="A title")).to_be_visible()
    expect(page.get_by_role("table")).to_be_visible()
    expect(page.get_by_text("interrupted: the chat process ended")).to_be_visible()
    answer = page.locator(".stMain")
    foreign = "a[href*=evil], img[src*=evil], script:not([class*=st-key-theme-watch] *)"
    assert answer.locator(foreign).count() == 0
    assert page.evaluate("window.hit") is None
    text = answer.inner_text().replace("\u2060", "")
    assert ":red[alarm]" in text and ":material/warning:" in text and "$x^2$" in text
    assert not [url for url in seen if "evil" in url]


def test_the_advisor_fills_the_form_and_the_run_starts(page: Page, server: Server) -> None:
    page.goto(f"{server.url}/advisor?advise.examples=100&advise.complexity=simple")
    expect(page.get_by_text("What would change it")).to_be_visible(timeout=180_000)
    settled(page)
    expect(page.get_by_role("heading", name="LoRA, rank 8, all linear layers")).to_be_visible()
    widget(page, "advise.start").get_by_role("button").click()
    page.wait_for_url(re.compile(r"/new_run"))
    settled(page)
    assert "advise." not in page.url
    fill(page, "new.data.max_length", "64")  # the story is about the form, not about training
    page.get_by_role("button", name="Start run").click()
    page.wait_for_url(re.compile(r"/monitor\?.*run="))
    spec = RunSpec.of_run(all_runs()[0])
    assert spec.method["rank"] == 8 and spec.method["alpha"] == 16
    assert spec.train.learning_rate == 3e-4, "a short run"
    assert spec.train.batch_size * spec.train.gradient_accumulation_steps == 16
    assert spec.data.packing == "off" and spec.data.max_length == 64
