"""The chat page in a browser: two runs side by side, their figures, the key, and what a visitor can do wrong."""

import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from browser import browser
from ftbench.serving.served import Served
from made_results import make_run
from serving import serve_tiny, server

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

MORE = {"size_on_disk": 9_000_000, "trainable_parameters": 4_884_480}
NASTY = "<img src=x onerror='window.bad=1'><script>window.bad=1</script>"


@pytest.fixture(scope="module")
def served(tiny_llama: Path) -> list[Served]:
    """Two runs whose figures differ."""
    base, lora = serve_tiny(tiny_llama, "base"), serve_tiny(tiny_llama, "lora", seed=1)
    return [base, replace(lora, run=make_run("lora", adherence=0.97, measures=MORE, model=str(tiny_llama)))]


@pytest.fixture(scope="module")
def opened() -> Iterator["Browser"]:
    with browser() as found:
        yield found


@contextmanager
def visit(opened: "Browser", address: str) -> Iterator["Page"]:
    """Open the page; it may fetch from its server alone, and complain of nothing but what was refused."""
    view = opened.new_page()
    said: list[str] = []
    asked: list[str] = []
    view.on("console", lambda message: said.append(message.text))
    view.on("pageerror", lambda error: said.append(str(error)))
    view.on("request", lambda request: asked.append(request.url))
    view.set_default_timeout(20_000)
    view.goto(address)
    yield view
    view.close()
    # the browser itself tells of every 4xx
    assert [line for line in said if "the server responded with a status of 4" not in line] == []
    assert all(url.startswith((address, "data:")) for url in asked), asked


def say(view: "Page", text: str) -> None:
    view.fill("#text", text)
    view.press("#text", "Enter")
    view.wait_for_selector("#send:not([hidden])")


def test_two_runs_side_by_side_with_their_figures(opened: "Browser", served: list[Served]) -> None:
    with server(served) as address, visit(opened, address) as view:
        view.wait_for_selector(".pane")
        names = view.locator(".facts h2")
        first = view.locator(".facts dd").first
        assert (names.all_text_contents(), first.text_content()) == (["base"], "0.50")
        view.select_option("#model-0", "lora")
        assert (names.all_text_contents(), first.text_content()) == (["lora"], "0.97")
        view.select_option("#model-1", "base")
        assert names.all_text_contents() == ["lora", "base"]
        tops = [talk.bounding_box()["y"] for talk in view.locator(".talk").all()]  # type: ignore[index]
        assert tops[0] == tops[1]  # although one has more figures than the other
        view.evaluate("document.getElementById('max_tokens').value = 4")
        for _ in range(2):
            say(view, NASTY)
        assert view.locator(".user").all_text_contents() == [NASTY] * 4
        assert view.locator(".cost").count() == 4
        assert view.locator(".failed").count() == 0
        left, right = (pane.locator(".assistant").all_text_contents() for pane in view.locator(".pane").all())
        assert left != right
        assert view.evaluate("[window.bad, document.images.length]") == [None, 0]
        # another model beside: what was said with the one that stays is kept
        view.select_option("#model-1", "lora")
        assert names.all_text_contents() == ["base", "lora"]
        assert view.locator(".pane").last.locator(".assistant").all_text_contents() == left
        view.evaluate("document.getElementById('max_tokens').value = 100000")
        say(view, "hi")
        assert "64 tokens" in str(view.locator(".failed").first.text_content())
        view.set_viewport_size({"width": 360, "height": 700})
        assert view.evaluate("document.documentElement.scrollWidth") <= 360
        assert view.locator("#ask").bounding_box()["y"] < 700  # type: ignore[index]
        view.click("#fresh")
        assert view.locator(".said").count() == 0


def test_a_key_is_asked_for_and_kept(opened: "Browser", served: list[Served]) -> None:
    from playwright.sync_api import expect

    with server(served[:1], key="secret") as address, visit(opened, address) as view:
        for wrong, told in (("secre", "key is wrong"), ("schlüssel\u2192", "printable ASCII")):
            view.wait_for_selector("#key-form:not([hidden])")
            view.fill("#key", wrong)
            view.press("#key", "Enter")
            expect(view.locator("#notice")).to_contain_text(told)
            assert view.locator(".pane").count() == 0
        view.fill("#key", " secret ")
        view.click("#key-form button")
        view.wait_for_selector(".pane")
        assert view.locator("#key-form").is_hidden()
        assert view.locator("#notice").is_hidden()
        say(view, "hi")
        assert view.locator(".cost").count() == 1
        view.reload()
        view.wait_for_selector(".pane")
        assert view.locator("#key-form").is_hidden()


def test_stop_ends_a_reply_and_the_talk_goes_on(opened: "Browser", served: list[Served]) -> None:
    from playwright.sync_api import expect

    hook = served[0].model.register_forward_pre_hook(lambda *_: time.sleep(0.1))
    try:
        with server(served[:1]) as address, visit(opened, address) as view:
            view.wait_for_selector(".pane")
            assert view.locator("#stop").is_hidden()
            view.evaluate("document.getElementById('max_tokens').value = 60")
            view.fill("#text", "hi")
            view.press("#text", "Enter")
            expect(view.locator(".assistant")).to_have_text(re.compile(r"\S\S"))
            assert view.locator("#send").is_hidden()
            view.click("#stop")
            view.wait_for_selector("#send:not([hidden])")
            assert view.locator(".cost").count() == view.locator(".failed").count() == 0
            kept = view.locator(".assistant").text_content()
            hook.remove()
            view.evaluate("document.getElementById('max_tokens').value = 2")
            say(view, "why?")
            assert view.locator(".assistant").first.text_content() == kept
            assert view.locator(".cost").count() == 1
    finally:
        hook.remove()
