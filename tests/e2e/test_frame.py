"""The frame of all pages: contrast, what axe finds, the style sheet, Start in sight, colours."""

from __future__ import annotations

import re
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from axe_playwright_python.base import AXE_SCRIPT
from playwright.sync_api import Page

from lab.paths import ASSETS, RunDir
from lab.runs import colours as run_colours
from lab.runs import index
from lab.ui import chart_style, colours
from tests.e2e.conftest import Server, settled, sideways, widget

pytestmark = pytest.mark.e2e

PAGES = (
    "",
    *"new_run monitor runs data memory compare race race?ready=best-rate".split(),
    *"chat results advisor claims".split(),
)
WITH_FOCUS = ("", "new_run", "monitor", "memory", "chat")  # every kind of control is on these
# Streamlit's own, on every app: its grids have no accessible rows while they are canvases
NOT_OURS = "[data-testid=stDataFrame], [data-testid=stToolbar], .js-plotly-plot"


OWN = (".lab-", '[class*="st-key-')  # names that the lab gives itself, seen in some states only


# what does not work on the page without the lab's style sheet; "" if all does
WITHOUT_STYLE = """() => {
    const sheets = [...document.querySelectorAll("style")].filter(
        style => style.textContent.includes("lab-phases"));
    if (!sheets.length) return "there is none";
    sheets.forEach(style => style.remove());
    const root = document.documentElement, title = document.querySelector("h1");
    if (!title || !title.getBoundingClientRect().width) return "no title is seen";
    return root.scrollWidth > root.clientWidth ? "the page scrolls sideways" : "";
}"""
# the controls that look the same with the focus of the keyboard as without it, and the kinds of
# control that were looked at; those that are `known` look the same on every page
UNMARKED = """async known => {
    const look = element => {  // also of what it lies in: a field is drawn by its frame
        const parts = [];
        for (let part = element; part && parts.length < 7; part = part.parentElement) {
            const style = getComputedStyle(part);
            parts.push([style.outlineStyle, style.outlineWidth, style.boxShadow,
                        style.borderColor, style.backgroundColor].join());
        }
        return parts.join("|");
    };
    const still = document.createElement("style");  // what fades in would be looked at too early
    still.textContent = "* { transition: none !important; animation: none !important; }";
    document.head.append(still);
    const frame = () => new Promise(done => requestAnimationFrame(done));
    const pause = async () => { await frame(); await frame(); };
    const controls = [...document.querySelectorAll(
        "[data-testid=stApp] :is(button, input, a[href], [role=tab], [role=slider], textarea)")]
        .filter(element => element.checkVisibility() && !element.disabled
            && element.getBoundingClientRect().width > 4 && element.tabIndex >= 0);
    const kinds = new Map(controls.map(element => [
        [element.tagName, element.type, element.getAttribute("role"), element.dataset.testid,
         element.closest("[data-testid^=st]")?.dataset.testid].join(" "), element]));
    known.forEach(kind => kinds.delete(kind));
    const unmarked = [];
    document.activeElement?.blur();
    await pause();
    const before = new Map([...kinds].map(([kind, element]) => [kind, look(element)]));
    for (const [kind, element] of kinds) {
        element.focus({focusVisible: true});
        await pause();  // until the mark of the one before is gone
        // some marks are drawn by a script, which a busy machine runs a few frames later
        const isUnmarked = () => look(element) === before.get(kind);
        const hasFocus = () => document.activeElement === element;
        for (let frames = 0; frames < 30 && hasFocus() && isUnmarked(); frames++) await pause();
        if (hasFocus() && isUnmarked()) unmarked.push(kind);
        if (!hasFocus()) kinds.delete(kind);  // another of its kind may take it
    }
    still.remove();
    return [unmarked, [...kinds.keys()]];
}"""


# what is too faint on the page, of icons and of what charts draw (axe looks at other text only):
# {"counted": {kind: number}, "faint": ["kind ratio: what"]}
FAINT = """() => {
    const canvas = new OffscreenCanvas(1, 1).getContext("2d", {willReadFrequently: true});
    const rgba = colour => {  // any notation of CSS
        canvas.clearRect(0, 0, 1, 1);
        canvas.fillStyle = colour;
        canvas.fillRect(0, 0, 1, 1);
        const [r, g, b, a] = canvas.getImageData(0, 0, 1, 1).data;
        return [r, g, b, a / 255];
    };
    const over = (top, below) =>
        [0, 1, 2].map(i => top[i] * top[3] + below[i] * (1 - top[3])).concat(1);
    const behind = element => {
        if (!element) return [255, 255, 255, 1];
        const colour = rgba(getComputedStyle(element).backgroundColor);
        return colour[3] === 1 ? colour : over(colour, behind(element.parentElement));
    };
    const luminance = colour => [.2126, .7152, .0722].reduce((sum, share, i) => {
        const part = colour[i] / 255;
        return sum + share * (part <= .04045 ? part / 12.92 : ((part + .055) / 1.055) ** 2.4);
    }, 0);
    const counted = {}, faint = [];
    const measure = (kind, least, element, colour, opacity, ground) => {
        for (let part = element; part; part = part.parentElement)
            opacity *= getComputedStyle(part).opacity;
        // not seen before the pointer comes; or a raw line behind a smoothed one
        if (!opacity || kind === "line" && opacity < .5) return;
        const below = ground || behind(element), [r, g, b, a] = rgba(colour);
        const both = [luminance(over([r, g, b, a * opacity], below)), luminance(below)];
        const ratio = (Math.max(...both) + .05) / (Math.min(...both) + .05);
        counted[kind] = (counted[kind] || 0) + 1;
        const name = element.closest("[class*=st-key-]")?.className.match(/st-key-\\S+/)[0];
        if (ratio < least) faint.push(`${kind} ${ratio.toFixed(2)}: ${name} ${
            element.textContent.trim() || element.outerHTML.slice(0, 120)}`);
    };
    const seen = (selector, root) => [...(root || document).querySelectorAll(selector)].filter(
        element => element.checkVisibility() && !element.closest(":disabled"));
    for (const icon of seen("[data-testid=stIconMaterial]"))
        measure("icon", 3, icon, getComputedStyle(icon).color, 1);
    for (const drawing of seen("[data-testid=stApp] svg:not(.main-svg)")) {
        const style = getComputedStyle(drawing), colour = drawing.getAttribute("stroke")
            && style.stroke !== "none" ? style.stroke : style.fill;
        if (colour !== "none") measure("icon", 3, drawing, colour, 1);
    }
    for (const plot of seen(".js-plotly-plot")) {
        for (const text of seen("svg text", plot)) {
            const style = getComputedStyle(text);
            const bar = text.closest(".point")?.querySelector("path");
            measure("chart text", 4.5, text, style.fill, style.fillOpacity,
                    bar && rgba(getComputedStyle(bar).fill));
        }
        for (const line of seen(".scatterlayer path.js-line, .shapelayer path", plot)) {
            const style = getComputedStyle(line);
            if (style.stroke !== "none")
                measure("line", 3, line, style.stroke, style.strokeOpacity);
        }
        for (const point of seen(".scatterlayer .points path", plot)) {
            const style = getComputedStyle(point), isHollow = style.fill === "none"
                || rgba(style.fill)[3] === 0;
            measure("point", 3, point, isHollow ? style.stroke : style.fill, 1);
        }
    }
    return {counted, faint};
}"""


LOSS_PLOT = "document.querySelector('[class*=st-key-chart-loss] .js-plotly-plot')"


def visit_monitor(
    open_lab: Callable[..., Page], server: Server, trained_home: Path, theme: Any
) -> tuple[Page, RunDir]:
    """Monitor of a trained run, at rest, and the run."""
    shutil.copytree(trained_home / "runs", server.home / "runs")
    run = RunDir(next((server.home / "runs").iterdir()))
    page = open_lab(theme, width=1440)
    page.goto(f"{server.url}/monitor?run={run.id}")
    settled(page)
    return page, run


def find_violations(page: Page) -> list[str]:
    """What axe finds against WCAG 2 A and AA, as "rule: selector: why"."""
    page.evaluate(AXE_SCRIPT)
    result: dict[str, Any] = page.evaluate(
        """async leave => await axe.run({exclude: [leave.split(", ")].flat().map(s => [s])}, {
            runOnly: ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa"], resultTypes: ["violations"],
            // Streamlit's navigation puts a div between its list and the items
            rules: {list: {enabled: false}, listitem: {enabled: false}}})""",
        NOT_OURS,
    )
    return [
        f"{violation['id']}: {node['target']}: {node['failureSummary'].splitlines()[-1].strip()}"
        for violation in result["violations"]
        for node in violation["nodes"]
    ]


def selectors() -> list[str]:
    """Every selector of the style sheet."""
    text = re.sub(r"/\*.*?\*/", "", (ASSETS / "lab.css").read_text(), flags=re.S)
    text = re.sub(r"@media[^{]*\{", "", text)
    groups = re.findall(r"([^{}]+)\{[^{}]*\}", text)
    # commas inside of :is() and :not() do not part selectors
    parts = [part.strip() for group in groups for part in re.split(r",(?![^(]*\))", group)]
    return [part for part in parts if not part.startswith(OWN)]


def background(page: Page) -> str:
    script = "getComputedStyle(document.querySelector('[data-testid=stApp]')).backgroundColor"
    return str(page.evaluate(script))


def samples_are_below(page: Page) -> bool:
    """Whether Monitor shows its first chart over the whole width, and the samples below it."""
    chart = page.locator("[class*=st-key-chart-loss]").first.bounding_box()
    texts = page.get_by_text("Sample outputs").first.bounding_box()
    assert chart is not None and texts is not None
    return bool(chart["width"] > 500 and texts["y"] > chart["y"] + chart["height"])


def show(page: Page, theme: Any, width: int) -> str:
    """The page's background once it is drawn in `theme` at `width` pixels."""
    page.emulate_media(color_scheme=theme)
    page.set_viewport_size({"width": width, "height": 900})
    page.wait_for_timeout(300)
    page.locator("h1").first.click()  # the key is for the page, not for a field
    page.keyboard.press("r")  # what the script colours, it colours when it runs
    page.wait_for_timeout(100)
    settled(page)
    return background(page)


def test_every_page_can_be_read_by_everybody_and_fits_a_narrow_window(
    open_lab: Callable[..., Page], server: Server, trained_home: Path
) -> None:
    """In one visit of each page: what is looked at depends on the theme or on the width, so that
    each is seen once in two of the four pairs."""
    shutil.copytree(trained_home / "runs", server.home / "runs")
    page = open_lab(width=1440)
    problems, unused, unmarked = [], set(selectors()), {}
    counted: Counter[str] = Counter()
    marked: dict[str, list[str]] = {"dark": [], "light": []}
    runs = ",".join(run.name for run in (server.home / "runs").iterdir())
    for name in PAGES:
        page.emulate_media(color_scheme="dark")
        page.set_viewport_size({"width": 800, "height": 900})
        page.goto(f"{server.url}/{f'compare?runs={runs}' if name == 'compare' else name}")
        settled(page)
        backgrounds = set()
        for theme, width in (("dark", 800), ("light", 1440)):
            backgrounds.add(background(page) if theme == "dark" else show(page, theme, width))
            contrast = page.evaluate(FAINT)
            counted.update(contrast["counted"])
            texts = find_violations(page) + contrast["faint"]
            if sideways(page) > 0:
                texts.append("scrolls sideways")
            if name == "monitor" and width == 800 and not samples_are_below(page):
                texts.append("the samples are not below the chart")
            problems += [f"{name or 'home'}, {theme}, {width}: {text}" for text in texts]
            matched = "all => all.filter(selector => document.querySelector(selector))"
            unused -= set(page.evaluate(matched, sorted(unused)))
            if name in WITH_FOCUS:
                page.keyboard.press("Tab")  # from here on the browser takes it for the way
                unmarked[name or "home", theme], kinds = page.evaluate(UNMARKED, marked[theme])
                marked[theme] += kinds
        assert len(backgrounds) == 2, "The page follows the theme of the system."
        assert page.locator("[data-testid=stException]").count() == 0, name
        problem = page.evaluate(WITHOUT_STYLE)
        assert not problem, f"{name or 'home'} needs the style sheet: {problem}"
    assert not problems, "\n".join(problems)
    assert {"icon", "chart text", "line", "point"} <= counted.keys(), counted
    assert all(len(kinds) > 15 for kinds in marked.values()), marked
    assert not any(unmarked.values()), f"controls on which the focus is not seen: {unmarked}"
    assert not unused, "a selector that nothing matches: Streamlit names it otherwise now"


def test_start_is_in_sight_wherever_the_page_is_scrolled(
    open_lab: Callable[..., Page], server: Server
) -> None:
    page = open_lab(width=1440)
    page.goto(f"{server.url}/new_run")
    settled(page)
    for width in (1440, 800, 400):
        page.set_viewport_size({"width": width, "height": 800})
        for share in (0.0, 0.5, 1.0):
            page.evaluate(
                "share => { const main = document.querySelector('[data-testid=stMain]');"
                " main.scrollTo(0, share * main.scrollHeight); }",
                share,
            )
            page.wait_for_timeout(200)
            box = widget(page, "start").bounding_box()
            assert box is not None and 0 <= box["y"] <= 800 - box["height"], f"{width}, {share}"
            assert 0 <= box["x"] and box["x"] + box["width"] <= width, f"{width}, {share}"


def test_a_curve_has_the_colour_of_its_run_and_a_log_axis_of_its_data(
    open_lab: Callable[..., Page], server: Server, trained_home: Path
) -> None:
    page, run = visit_monitor(open_lab, server, trained_home, "dark")
    page.wait_for_selector("[class*=st-key-chart-loss] .js-plotly-plot .scatterlayer")
    curve = page.evaluate(
        """() => document.querySelector('[class*=st-key-chart-loss] .js-plotly-plot')
            ._fullData.find(trace => trace.name === 'evaluation').line.color"""
    )
    dot = page.evaluate(
        """() => getComputedStyle(document.querySelector('h3 .stMarkdownColoredText')).color"""
    )
    widget(page, "monitor.log").locator("label").first.click()
    plot = LOSS_PLOT
    page.wait_for_function(f"{plot}._fullLayout.yaxis.type === 'log'")
    low, high = page.evaluate(f"{plot}._fullLayout.yaxis.range.map(exponent => 10 ** exponent)")
    names = page.evaluate(f"{plot}._fullLayout.annotations.map(name => 10 ** name.y)")
    losses = page.evaluate(f"{plot}._fullData.flatMap(trace => Array.from(trace.y))")
    assert min(losses) / 2 < low < min(losses) and max(losses) < high < 2 * max(losses)
    assert names and all(low <= name <= high for name in names), "Names stand at their lines."
    expected = colours.hex_of(run_colours.colour_of(run), True)
    assert curve == expected
    red, green, blue = (int(expected[i : i + 2], 16) for i in (1, 3, 5))
    assert dot == f"rgb({red}, {green}, {blue})"


def test_charts_at_rest_follow_the_theme(
    open_lab: Callable[..., Page], server: Server, trained_home: Path
) -> None:
    """Without a click, also after a way through another page, and with the choices as they were."""
    page, run = visit_monitor(open_lab, server, trained_home, "light")
    page.goto(f"{server.url}/results")
    settled(page)
    page.goto(f"{server.url}/monitor?run={run.id}")
    settled(page)
    widget(page, "monitor.log").locator("label").first.click()
    plot = LOSS_PLOT
    for theme in ("light", "dark", "light"):
        page.emulate_media(color_scheme=theme)  # type: ignore[arg-type]
        ink = chart_style.View(dark=theme == "dark").ink
        page.wait_for_function(f"{plot}?._fullLayout?.font.color === '{ink}'")
        page.wait_for_function(f"{plot}._fullLayout.yaxis.type === 'log'")
    settled(page)
    assert page.locator("[data-testid=stException]").count() == 0


def test_a_run_has_the_same_colour_in_pill_table_and_pane(
    open_lab: Callable[..., Page], server: Server, trained_home: Path
) -> None:
    shutil.copytree(trained_home / "runs", server.home / "runs")
    runs = [RunDir(folder) for folder in (server.home / "runs").iterdir()]
    page = open_lab(width=1440)
    names = ",".join(run.id for run in runs)
    for address, parts in (
        (f"compare?runs={names}", ("stButtonGroup", "stTable")),
        (f"chat?models={','.join(f'run:{run.id}' for run in runs)}", ("stPopover",)),
    ):
        page.goto(f"{server.url}/{address}")
        settled(page)
        for part in parts:
            for run in runs:
                assert dot_of(page, part, index.entry(run).name) == hex_in_css(run), (part, run)


def dot_of(page: Page, part: str, name: str) -> str:
    """The colour of the dot before the run `name` in the first element of that kind that has it."""
    named = (
        page.locator(
            f"[data-testid={part}] :is(button, th, td)", has=page.locator(".stMarkdownColoredText")
        )
        .filter(has_text=name)
        .first
    )
    return str(
        named.locator(".stMarkdownColoredText").first.evaluate("dot => getComputedStyle(dot).color")
    )


def hex_in_css(run: RunDir) -> str:
    value = colours.hex_of(run_colours.colour_of(run), False)
    return f"rgb({', '.join(str(int(value[i : i + 2], 16)) for i in (1, 3, 5))})"
