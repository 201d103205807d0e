"""The page at `/` in headless Chromium, over a real server of a tiny model."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

pytest.importorskip("playwright", reason="playwright is not installed")

from playwright.sync_api import Browser, Page, expect, sync_playwright

from recipe_hf import demo
from recipe_hf.serving import ServerSettings, create_app
from recipe_hf.serving.generating import TransformersEngine
from recipe_hf.serving.keys import Keys
from tests.command import ROOT, environment
from tests.running_server import Running, free_port, serving, until_it_answers
from tests.tiny_recipe import FACTS, PROMPTS, UNRELATED, edited_recipe, tiny_recipe

CHROMIUM = Path(os.environ.get("RECIPE_TEST_CHROMIUM", "/usr/bin/chromium"))
pytestmark = pytest.mark.skipif(not CHROMIUM.exists(), reason="needs Chromium, Debian's or RECIPE_TEST_CHROMIUM")
expect.set_options(timeout=20_000)
VIEWS = ("Ask", "Facts", "History", "Files")


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        sandbox = ["--no-sandbox"] if os.geteuid() == 0 else []
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=sandbox)
        yield browser
        browser.close()


@pytest.fixture
def page(browser: Browser, server: Running) -> Iterator[Page]:
    """The page of `server`, which breaks no rule of its own while a test uses it, and asks no other host."""
    context = browser.new_context(accept_downloads=True)
    page = context.new_page()
    page.set_default_timeout(20_000)
    broken: list[str] = []
    page.on("pageerror", lambda error: broken.append(str(error)))
    page.on("console", lambda said: broken.append(said.text) if "Content Security Policy" in said.text else None)
    page.on("request", lambda sent: None if sent.url.startswith((server.url, "blob:")) else broken.append(sent.url))
    page.goto(server.url)
    expect(page.get_by_role("heading", name="Ask", level=1)).to_be_visible()
    yield page
    context.close()
    assert broken == []


def ask(page: Page, question: str, mode: str = "Text to continue", length: str = "16") -> None:
    page.locator("#ask-form").get_by_label(mode).check()
    page.locator("select[name=length]").select_option(length)
    page.locator("#question").fill(question)
    page.locator("#question").press("Control+Enter")
    expect(page.locator(".candidates, .verdict").first).to_be_visible()
    expect(page.locator(".answer[aria-busy]")).to_have_count(0)


def open_view(page: Page, name: str) -> None:
    expect(page.locator("main h1:visible")).to_be_visible()  # It has begun.
    page.get_by_role("navigation", name="Pages").get_by_role("link", name=name).click()
    expect(page.get_by_role("heading", name=name, level=1)).to_be_focused()


def rows(page: Page, view: str = "facts"):
    return page.locator(f"#{view}-list li")


def add(page: Page, prompt: str, answer: str) -> None:
    page.get_by_role("button", name="Add a fact").click()
    page.get_by_label("Prompt", exact=True).fill(prompt)
    page.get_by_label("Answer", exact=True).fill(answer)
    page.get_by_role("button", name="Add", exact=True).click()
    expect(page.locator("#editor")).to_be_hidden()


def test_an_answer_is_streamed_beside_the_bases_own_and_says_which_fact_was_used(server, page):
    ask(page, PROMPTS[1])
    for panel, off in (("With the facts", False), ("Base model alone", True)):
        said = server.openai().completions.create(
            model="tiny", prompt=PROMPTS[1], max_tokens=16, temperature=0, extra_body={"recipe": {"off": off}}
        )
        answer = page.get_by_role("region", name=panel).locator(".text > span").last
        assert answer.text_content() == said.choices[0].text
    expect(page.get_by_role("region", name="With the facts")).to_contain_text("fact 1 used")

    told = server.model.explain(PROMPTS[1], k=5)
    candidates = page.locator(".candidates tbody tr")
    expect(candidates).to_have_count(len(told.candidates))
    for row, candidate in zip(candidates.all(), told.candidates, strict=True):
        expect(row).to_contain_text(candidate.fact.answer)
        expect(row).to_contain_text(f"{candidate.score:.2f}")
        expect(row).to_contain_text("Used" if candidate.fired else candidate.reason.removeprefix("not used: "))
    expect(page.locator(".verdict")).to_contain_text(f"the threshold of {told.threshold:.2f}")


def test_a_question_that_no_fact_answers_gets_the_bases_words(server, page):
    ask(page, UNRELATED[0], "Message")
    expect(page.get_by_role("region", name="With the facts")).to_contain_text("no fact used")
    expect(page.get_by_role("region", name="Base model alone")).to_contain_text("the same words")
    expect(page.locator(".verdict")).to_contain_text("No fact was used")
    # Those who do not see the answers hear of them once they are whole.
    expect(page.locator("#ask-status")).to_contain_text("Base model alone")


def test_a_fact_is_added_after_a_preview(server, page):
    open_view(page, "Facts")
    page.keyboard.press("n")
    editor = page.get_by_role("dialog", name="Add a fact")
    editor.get_by_label("Prompt", exact=True).fill(PROMPTS[0])
    editor.get_by_label("Answer", exact=True).fill("Bo Roe")
    editor.get_by_label("Questions to try").fill(f"{PROMPTS[0]}\n{UNRELATED[0]}")
    editor.get_by_role("button", name="Preview").click()
    expect(editor.locator(".moves li")).to_contain_text("fact 0: The CEO of Acme is Ann Lee")
    outcomes = editor.locator(".outcome > li")
    expect(outcomes).to_have_count(2)
    expect(outcomes.first.locator("dd").first).to_contain_text("fact 0 used")
    expect(outcomes.first.locator("dd").last).to_contain_text("the new fact used")
    expect(outcomes.last.locator("dd").last).to_contain_text("no fact used")
    assert [fact.answer for fact in server.model.knowledge] == [answer for _, answer in FACTS]

    editor.get_by_text("Metadata and validity").click()
    editor.get_by_role("button", name="Add a field").click()
    editor.get_by_label("Name").fill("page")
    editor.get_by_label("Value").fill("12")
    editor.get_by_label("Valid until").fill("2100-01-02T03:04")
    page.keyboard.press("Control+Enter")
    expect(rows(page).first).to_contain_text("The CEO of Acme is Bo Roe")
    expect(page.locator("#notices")).to_contain_text("Fact 4 is added.")
    fact = server.model.knowledge[4]
    assert (fact.metadata, fact.valid_until) == ({"page": 12}, "2100-01-02T03:04:00.000000+00:00")
    assert 0 not in server.model.knowledge


def test_a_fact_is_edited_removed_and_brought_back(server, page):
    open_view(page, "Facts")
    page.get_by_role("button", name="Edit fact 2").click()
    page.get_by_label("Answer", exact=True).fill("Blizzard")
    page.get_by_role("button", name="Save").click()
    expect(rows(page).first).to_contain_text("Zork was written by Blizzard")
    expect(page.get_by_role("button", name="Remove fact 4")).to_be_focused()
    page.get_by_role("button", name="Edit fact 4").click()
    page.get_by_text("Earlier versions").click()
    expect(page.locator("#editor .facts li")).to_contain_text("Infocom")
    page.keyboard.press("Escape")
    page.get_by_role("button", name="Remove fact 4").click()
    expect(rows(page)).to_have_count(3)
    expect(page.get_by_role("button", name="Remove fact 3")).to_be_focused()
    assert {fact.id for fact in server.model.knowledge} == {0, 1, 3}
    page.get_by_role("button", name="Undo").click()
    expect(rows(page).first).to_contain_text("Blizzard")

    open_view(page, "History")
    expect(rows(page, "history")).to_have_count(2)
    expect(rows(page, "history").last).to_contain_text("replaced by fact 4")
    page.get_by_role("button", name="Restore fact 2").click()
    expect(rows(page, "history")).to_have_count(3)
    assert [fact.answer for fact in server.model.knowledge if fact.prompt == PROMPTS[2]] == ["Infocom"]


def test_what_the_server_refuses_is_said_and_what_was_written_stays(server, page):
    open_view(page, "Facts")
    page.get_by_role("button", name="Add a fact").click()
    page.get_by_role("button", name="Add", exact=True).click()
    expect(page.get_by_role("alert")).to_contain_text("The prompt is empty.")
    page.get_by_role("radio", name="Statement").check()
    page.get_by_role("textbox", name="Statement").fill("long " * 100)
    page.get_by_role("button", name="Add", exact=True).click()
    expect(page.get_by_role("alert")).to_contain_text("facts[0]")
    page.keyboard.press("Escape")
    page.get_by_role("button", name="Go on writing").click()
    expect(page.get_by_role("textbox", name="Statement")).to_have_value("long " * 100)
    page.get_by_role("button", name="Cancel").click()
    page.get_by_role("button", name="Discard it").click()
    expect(page.get_by_role("button", name="Add a fact")).to_be_focused()
    assert len(server.model.knowledge) == len(FACTS)


def test_facts_are_searched_filtered_and_paged(server, page):
    facts = [{"statement": f"Locker {i} is grey.", "metadata": {"floor": i % 2}} for i in range(30)]
    server.model.add_knowledge(facts)
    open_view(page, "Facts")
    expect(page.locator("#facts-count")).to_have_text("1 to 25 of 34 facts")
    page.get_by_role("button", name="Next").click()
    expect(rows(page)).to_have_count(9)
    expect(page.locator("#facts-count")).to_have_text("26 to 34 of 34 facts")
    page.get_by_role("button", name="Previous").click()
    expect(rows(page)).to_have_count(25)
    page.get_by_role("searchbox").fill("gotham")
    expect(rows(page)).to_have_count(1)
    page.get_by_role("searchbox").fill("")
    expect(rows(page)).to_have_count(25)
    page.get_by_role("button", name="floor: 1").first.click()
    expect(rows(page)).to_have_count(15)
    page.get_by_role("button", name="Without the filter floor").click()
    page.locator("#facts-form").get_by_label("Meaning").check()
    page.get_by_role("searchbox").fill(PROMPTS[3])
    expect(rows(page).first).to_contain_text("The river through Gotham is the Sprang")
    expect(rows(page).first).to_contain_text("score")
    page.locator("#facts-form").get_by_label("Words").check()
    page.get_by_role("searchbox").fill("no such thing")
    page.get_by_role("button", name="Show all facts").click()
    expect(rows(page)).to_have_count(25)


def test_a_file_of_facts_goes_out_and_comes_in(server, page, tmp_path):
    open_view(page, "Files")
    with page.expect_download() as download:
        page.get_by_role("button", name="Export").click()
    lines = [json.loads(line) for line in download.value.path().read_text("utf-8").splitlines()]
    assert [(line["prompt"], line["answer"]) for line in lines] == FACTS
    expect(page.locator("#export-progress")).to_have_text("4 facts exported.")

    told = [[PROMPTS[0], "Bo Roe"], *({"statement": f"Locker {i} is grey."} for i in range(299))]
    path = tmp_path / "facts.jsonl"
    path.write_text("\n".join(map(json.dumps, told)), "utf-8")
    page.get_by_label("Choose a file").set_input_files(path)
    page.get_by_role("button", name="Import 300 facts").click()
    expect(page.get_by_role("progressbar", name="Importing")).to_be_visible()
    expect(page.locator("#import-progress")).to_contain_text("300 facts imported.", timeout=60_000)
    assert len(server.model.knowledge) == 303
    page.get_by_role("button", name="Undo this import").click()
    expect(page.locator("#import-progress")).to_contain_text("The import is undone.", timeout=60_000)
    assert {(fact.prompt, fact.answer) for fact in server.model.knowledge} == set(FACTS)


def test_a_line_that_is_no_fact_is_named(server, page, tmp_path):
    open_view(page, "Files")
    path = tmp_path / "facts.jsonl"
    path.write_text('"Locker 1 is grey."\n\n{"prompt": "Locker 2 is"}\n', "utf-8")
    page.get_by_label("Choose a file").set_input_files(path)
    expect(page.get_by_role("alert")).to_contain_text("Line 3 is no fact.")
    path.write_text('"Locker 1 is grey."\n\n{"statement": "Locker 2 is red.", "colour": "red"}\n', "utf-8")
    page.get_by_label("Choose a file").set_input_files([])
    page.get_by_label("Choose a file").set_input_files(path)
    page.get_by_role("button", name="Import 2 facts").click()
    expect(page.get_by_role("alert")).to_contain_text("line 3")
    expect(page.get_by_role("alert")).to_contain_text("No fact was added.")
    assert len(server.model.knowledge) == len(FACTS)


def test_what_facts_say_is_never_markup(server, page):
    trap = "<img src=x onerror=\"document.title='caught'\"><b>bold</b>"
    server.model.add_knowledge([{"statement": trap, "metadata": {trap: trap}}])
    open_view(page, "Facts")
    expect(rows(page).first).to_contain_text(trap)
    ask_button = page.get_by_role("button", name="Ask fact 4")
    ask_button.click()
    expect(page.locator(".candidates tbody")).to_contain_text(trap)
    assert page.locator("img[src=x], b:text('bold')").count() == 0
    assert page.title() == "Ask · recipe-hf"


def test_the_page_obeys_a_strict_policy(server):
    with server.http() as client:
        page = client.get("/")
        assert page.headers["content-type"].startswith("text/html")
        policy = dict(part.split(" ", 1) for part in page.headers["content-security-policy"].split("; "))
        assert policy["default-src"] == policy["frame-ancestors"] == policy["base-uri"] == "'none'"
        assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == "'self'"
        for name in re.findall(r'(?:src|href)="(page/[^"]+)"', page.text):
            assert client.get(f"/{name}").status_code == 200
        assert client.get("/page/..%2Froutes.py").status_code == 404
        assert client.get("/page/routes.py").status_code == 404
    static = ROOT / "recipe_hf" / "serving" / "page" / "static"
    code = "".join(path.read_text("utf-8") for path in static.glob("*.js"))
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(", code)


def test_all_is_done_by_keyboard(server, page):
    expect(page.get_by_role("button", name=PROMPTS[0])).to_be_visible()
    page.keyboard.press("2")
    expect(page.get_by_role("heading", name="Facts", level=1)).to_be_focused()
    page.keyboard.press("/")
    expect(page.get_by_role("searchbox")).to_be_focused()
    page.keyboard.type("?2")  # In a field they are letters.
    expect(page.get_by_role("searchbox")).to_have_value("?2")
    page.locator("#open-help").focus()
    page.keyboard.press("Enter")
    help_dialog = page.get_by_role("dialog", name="Keyboard")
    for _ in range(6):  # The focus goes round in the dialog.
        page.keyboard.press("Tab")
        assert page.evaluate("() => document.activeElement.closest('dialog, body').matches('#help, body')")
        assert not page.evaluate("() => Boolean(document.activeElement.closest('main, header'))")
    page.get_by_label("Single keys").uncheck()
    page.keyboard.press("Escape")
    expect(help_dialog).to_be_hidden()
    expect(page.locator("#open-help")).to_be_focused()
    page.keyboard.press("1")
    expect(page.get_by_role("heading", name="Facts", level=1)).to_be_visible()


def test_colours_follow_the_system_until_they_are_chosen(server, page):
    ground = "() => getComputedStyle(document.body).backgroundColor"
    page.emulate_media(color_scheme="light")
    light = page.evaluate(ground)
    page.emulate_media(color_scheme="dark")
    dark = page.evaluate(ground)
    assert light != dark
    page.get_by_role("button", name="Colours: as the system").click()
    assert page.evaluate(ground) == light
    page.reload()
    expect(page.get_by_role("button", name="Colours: light")).to_be_visible()
    assert page.evaluate(ground) == light


def test_nothing_is_wider_than_a_phone(server, page):
    page.set_viewport_size({"width": 360, "height": 740})
    server.model.add_knowledge([{"statement": f"Locker {'1' * 60} is grey.", "metadata": {"place": "x" * 80}}])
    ask(page, PROMPTS[0])
    for view in VIEWS:
        open_view(page, view)
        assert page.evaluate("() => document.documentElement.scrollWidth") == 360, view
    open_view(page, "Facts")
    page.get_by_role("button", name="Edit fact 4").click()
    assert page.evaluate("() => document.querySelector('#editor').scrollWidth") <= 360


def test_no_facts_are_a_beginning_and_no_server_is_said(browser, tmp_path):
    model = tiny_recipe()
    context = browser.new_context()
    page = context.new_page()
    with serving(create_app(ServerSettings(served_model_name="tiny"), model, TransformersEngine(model))) as running:
        page.goto(running.url)
        expect(page.get_by_role("heading", name="There are no facts yet")).to_be_visible()
        open_view(page, "Facts")
        page.get_by_role("button", name="Add the first").click()
        page.keyboard.press("Escape")
        open_view(page, "History")
        expect(page.get_by_text("Nothing has been removed or replaced")).to_be_visible()
    open_view(page, "Facts")
    expect(page.get_by_role("alert")).to_contain_text("The server cannot be reached.")
    context.close()


def test_a_key_opens_the_page_and_says_what_may_be_done(browser, tmp_path):
    keys = Keys(tmp_path / "keys.json")
    edits, _ = keys.add("edit", "support", "Mira")
    asks, _ = keys.add("ask", "", "a guest")
    model = edited_recipe()
    context = browser.new_context()
    page = context.new_page()
    settings = ServerSettings(served_model_name="tiny", keys=keys.path)
    with serving(create_app(settings, model, TransformersEngine(model))) as running:
        page.goto(running.url)
        dialog = page.get_by_role("dialog", name="Session")
        expect(dialog).to_contain_text("This server asks for a key.")
        expect(dialog).to_contain_text("session storage")
        dialog.get_by_label("Key", exact=True).fill("recipe-0-wrong")
        dialog.get_by_role("button", name="Sign in").click()
        expect(dialog.get_by_role("alert")).to_contain_text("This key is not taken.")
        dialog.get_by_label("Key", exact=True).fill(edits)
        dialog.get_by_role("button", name="Sign in").click()
        expect(page.get_by_role("heading", name="There are no facts yet")).to_be_visible()
        open_view(page, "Facts")
        page.get_by_role("button", name="Add the first").click()
        page.get_by_label("Prompt", exact=True).fill("The CEO of Acme is")
        page.get_by_label("Answer", exact=True).fill("Bo Roe")
        page.get_by_role("button", name="Add", exact=True).click()
        expect(rows(page)).to_have_count(1)
        assert [fact.answer for fact in model.knowledge.namespace("support")] == ["Bo Roe"]
        assert len(model.knowledge) == len(FACTS)
        kept = page.evaluate("() => [Object.values(sessionStorage), Object.values(localStorage), document.cookie]")
        assert kept == [[edits, "support"], [], ""]

        page.get_by_role("button", name="support").click()
        expect(dialog).to_contain_text("you may ask and change facts in the namespace support")
        page.get_by_role("button", name="Sign out").click()
        expect(dialog).to_contain_text("This server asks for a key.")
        assert page.evaluate("() => sessionStorage.length") == 0
        dialog.get_by_label("Key", exact=True).fill(asks)
        dialog.get_by_role("button", name="Sign in").click()
        expect(rows(page)).to_have_count(4)
        expect(page.get_by_role("button", name="Add a fact")).to_be_hidden()
        expect(page.get_by_role("button", name="Remove fact 0")).to_be_hidden()
    context.close()


@pytest.mark.slow
def test_each_visitor_of_a_space_has_facts_of_his_own(browser, tmp_path):
    model = tiny_recipe()
    model.lm.save_pretrained(tmp_path / "base")
    model.tokenizer.save_pretrained(tmp_path / "base")
    model.save_pretrained(tmp_path / "recipe")
    settings = {"CHECKPOINT": tmp_path / "recipe", "BASE_MODEL": tmp_path / "base", "PORT": free_port()}
    process = subprocess.Popen(
        [sys.executable, ROOT / "spaces" / "app.py"],
        env=environment(**{f"RECIPE_HF_{name}": str(value) for name, value in settings.items()}),
        stderr=subprocess.PIPE,
        encoding="utf-8",
    )
    try:
        url = until_it_answers(f"http://127.0.0.1:{settings['PORT']}", process)
        with httpx.Client(base_url=url, timeout=60) as client:
            assert "frame-ancestors https://huggingface.co" in client.get("/").headers["content-security-policy"]
            one, other = ({"X-Forwarded-For": address} for address in ("192.0.2.1", "192.0.2.2"))
            added = client.post("/v1/knowledge", json={"facts": ["Locker 1 is grey."]}, headers=one)
            assert added.status_code == 200
            assert client.get("/v1/knowledge", headers=one).json()["total"] == len(demo.FACTS) + 1
            assert client.get("/v1/knowledge", headers=other).json()["total"] == len(demo.FACTS)
            assert client.get("/v1/knowledge?namespace=", headers=other).status_code == 403
        page = browser.new_page()
        page.goto(url)
        expect(page.get_by_role("button", name=demo.FACTS[-1].prompt)).to_be_visible()
        page.close()
    finally:
        process.terminate()
        process.communicate()


def test_namespaces_are_changed_by_who_may(server, page):
    server.model.add_knowledge([("The CEO of Acme is", "Bo Roe")], namespace="support")
    page.reload()
    page.get_by_role("button", name="Session").click()
    page.get_by_label("Namespace").fill("support")
    page.get_by_role("button", name="Use it").click()
    ask(page, "The CEO of Acme is")
    expect(page.locator(".candidates tbody")).to_contain_text("Bo Roe")
    expect(page.locator(".candidates tbody")).not_to_contain_text("Ann Lee")
    expect(page.get_by_role("button", name="support")).to_be_visible()


def test_facts_that_are_read_only_are_not_offered_for_change(browser):
    model = edited_recipe()
    settings = ServerSettings(served_model_name="tiny", read_only=True)
    context = browser.new_context()
    page = context.new_page()
    with serving(create_app(settings, model, TransformersEngine(model))) as running:
        page.goto(running.url)
        open_view(page, "Facts")
        expect(rows(page)).to_have_count(4)
        expect(page.get_by_role("button", name="Ask fact 0")).to_be_visible()
        for name in ("Add a fact", "Edit fact 0", "Remove fact 0"):
            expect(page.get_by_role("button", name=name)).to_be_hidden()
        page.get_by_role("button", name="Session").click()
        expect(page.get_by_role("dialog", name="Session")).to_contain_text("read only")
    context.close()


def test_the_page_of_the_api_asks_no_other_host(server, page):
    page.goto(f"{server.url}/docs")
    expect(page.get_by_text("/v1/chat/completions")).to_be_visible()
    expect(page.get_by_text("/v1/knowledge/preview")).to_be_visible()
