"""The live page and the report of a back-test in a real browser, and the figures that the report holds."""

import contextlib
import io
import json
import pathlib
import re
import shutil

import pytest

from adaptd import cli, status
from adaptd.errors import AdaptdError
from tests import served, streams
from tests.conftest import not_run

PAGE = pathlib.Path(__file__).parent.parent / "adaptd" / "page"
BROWSERS = ("chromium-headless-shell", "chromium")
POOL = [word for kind in served.POOL for word in ("--set", f"pool.learners.{kind}.kind={kind}")]


@pytest.fixture(scope="module")
def browser():
    program = next((found for name in BROWSERS if (found := shutil.which(name))), None)
    if program is None:
        not_run(f"none of {', '.join(BROWSERS)} is installed")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(
            executable_path=program, args=["--no-sandbox", "--disable-gpu", "--enable-precise-memory-info"]
        )
        yield chromium
        chromium.close()


class Faults(list):
    """What a page complained of, and requests that left the daemon's address."""

    def watch(self, page, own: str) -> None:
        page.on("pageerror", lambda error: self.append(f"error: {error}"))
        page.on("console", lambda said: said.type == "error" and self.append(f"console: {said.text}"))
        page.on("request", lambda asked: asked.url.startswith(own) or self.append(f"asked: {asked.url}"))


@pytest.fixture(scope="module")
def daemon():
    with served.adaptd() as running:
        running.feed(streams.classes(4000, drift_at=2000))
        running.until_learned(4000)
        yield running


@pytest.fixture
def page(browser, daemon):
    """The live page, drawn, and at the end without a fault."""
    context = browser.new_context(viewport={"width": 1400, "height": 900}, color_scheme="dark")
    opened, faults = context.new_page(), Faults()
    faults.watch(opened, daemon.url)
    opened.goto(daemon.url)
    opened.wait_for_selector("#state.good")
    yield opened
    context.close()
    assert faults == []


def number(text: str) -> float:
    return float(re.sub(r"[^\d.]", "", text))


def wait_for_curves(page, n: int) -> None:
    """A learner that has just come to its place is drawn with the next point of the history."""
    page.wait_for_function("n => document.querySelectorAll('#score .series path').length === n", arg=n)


def test_the_page_shows_what_the_api_says(page, daemon):
    learners = daemon.get("/api/v1/learners")["learners"]
    rows = page.locator("#learners tbody tr")
    assert [row.get_attribute("data-name") for row in rows.all()] == [one["name"] for one in learners]
    status = daemon.get("/api/v1/status")
    figures = page.locator("#figures .value").all_inner_texts()
    assert number(figures[1]) == round(status["scores"]["accuracy"], 3)
    assert figures[2] == status["champion"]
    assert number(figures[3]) == status["drifts"] >= 1
    assert "Drift detected" in page.inner_text("#journal")
    wait_for_curves(page, len(learners) + 1)


def test_rows_that_come_move_the_page_without_a_reload(page, daemon):
    before = daemon.get("/api/v1/status")["labels"]
    curve = page.locator("#score .series path.blend")
    drawn = curve.get_attribute("d")
    daemon.feed(streams.classes(1500, seed=2))
    daemon.until_learned(before + 1500)
    after = f"{before + 1500:,}"
    page.wait_for_function(
        "words => document.querySelector('#figures .more').textContent.includes(words)", arg=after
    )
    page.wait_for_function(
        "drawn => document.querySelector('#score .series path.blend').getAttribute('d') !== drawn", arg=drawn
    )


def test_arrow_keys_read_a_chart_aloud(page):
    page.wait_for_function("document.querySelector('#score .empty').hidden")
    page.focus("#score .plot")
    page.keyboard.press("Home")
    first = page.inner_text("#score > .sr")
    page.keyboard.press("End")
    assert re.match(r"\d\d:\d\d:\d\d: linear ", first)
    assert page.inner_text("#score > .sr") != first
    assert page.locator("#score .tip").is_visible()
    page.keyboard.press("Escape")
    assert page.locator("#score .tip").is_hidden()


def test_everything_is_reached_by_the_tab_key_and_has_a_name(page):
    reached = set()
    for _ in range(60):
        page.keyboard.press("Tab")
        reached.add(page.evaluate("document.activeElement.id || document.activeElement.className || ''"))
    assert {"pause", "plot", "name", "every", "journal", "scroll", "skip"} <= reached
    nameless = page.evaluate(
        """() => [...document.querySelectorAll('button, input, summary, [role=group], [role=region]')]
        .filter((e) => !(e.getAttribute('aria-label') || e.getAttribute('aria-labelledby')
          || e.textContent.trim() || e.labels?.[0]?.textContent.trim())).map((e) => e.outerHTML)"""
    )
    assert nameless == []
    assert page.locator("main").count() == page.locator("h1").count() == page.locator("header").count() == 1
    assert page.locator("#news").get_attribute("aria-live") == "polite"


def test_a_chart_can_be_read_as_a_table(page, daemon):
    # Those of the configuration, and concepts that are remembered.
    names = [one["name"] for one in daemon.get("/api/v1/learners")["learners"]]
    assert names[: len(served.POOL)] == list(served.POOL)
    wait_for_curves(page, len(names) + 1)
    page.locator("#score summary").click()
    page.wait_for_selector("#score table tbody tr")
    table = page.locator("#score table")
    assert table.locator("thead th").all_inner_texts() == ["time", *names, "blend"]
    assert 1 <= table.locator("tbody tr").count() <= 26


def test_a_learner_is_lifted_out_and_let_go(page):
    button = page.locator("#learners button.name").first
    button.click()
    assert button.get_attribute("aria-pressed") == "true"
    assert page.locator("#score .series .hot").get_attribute("data-name") == served.POOL[0]
    button.click()
    assert button.get_attribute("aria-pressed") == "false"


@pytest.mark.parametrize("width", [360, 800, 1400])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_is_legible_and_nothing_is_wider_than_the_window(page, width, scheme):
    page.set_viewport_size({"width": width, "height": 800})
    page.emulate_media(color_scheme=scheme)
    # Charts take the new width when the browser has laid out the rest.
    page.wait_for_function("width => document.documentElement.scrollWidth <= width", arg=width)
    assert page.evaluate(CONTRAST) == []


# WCAG 2.2, 1.4.3: text has a contrast of 4.5 to 1, here against the nearest ground that is painted.
CONTRAST = """() => {
  const parts = (colour) => colour.match(/[\\d.]+/g).map(Number);
  const light = (colour) => {
    const linear = (v) => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
    const [r, g, b] = parts(colour).map((v) => linear(v / 255));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const ground = (element) => {
    for (let at = element; at; at = at.parentElement) {
      const colour = getComputedStyle(at).backgroundColor;
      if ((parts(colour)[3] ?? 1) > 0) return colour;
    }
    return 'rgb(255, 255, 255)';
  };
  const faults = [];
  const words = 'h1, h2, p, dt, dd, th, td, li span, label, button, summary, text';
  for (const element of document.querySelectorAll(words)) {
    if (!element.textContent.trim() || !element.getClientRects().length) continue;
    const style = getComputedStyle(element);
    const a = light(element.tagName === 'text' ? style.fill : style.color);
    const b = light(ground(element));
    const contrast = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    if (contrast < 4.5) faults.push(`${contrast.toFixed(2)} ${element.outerHTML.slice(0, 100)}`);
  }
  return faults;
}"""


def test_the_page_pauses_and_goes_on(page, daemon):
    page.click("#pause")
    asked = []
    page.on("request", lambda request: asked.append(request.url))
    before = daemon.get("/api/v1/status")["labels"]
    daemon.feed(streams.classes(200, seed=3))
    daemon.until_learned(before + 200)
    assert asked == []
    with page.expect_response("**/api/v1/status"):
        page.click("#pause")


def test_many_updates_leave_no_more_elements_and_no_more_memory(page):
    """The page's timers are made fast, so that some hundred updates run in seconds."""
    page.add_init_script(
        """window.turns = 0; const slow = window.setTimeout;
        window.setTimeout = (call, ms) => { window.turns++; return slow(call, ms / 100); };"""
    )
    page.reload()
    page.wait_for_selector("#state.good")
    devtools = page.context.new_cdp_session(page)
    devtools.send("Performance.enable")

    def used() -> tuple[float, float]:
        devtools.send("HeapProfiler.collectGarbage")
        figures = {one["name"]: one["value"] for one in devtools.send("Performance.getMetrics")["metrics"]}
        return figures["JSHeapUsedSize"], figures["Nodes"]

    def turns(n: int) -> None:
        page.wait_for_function("n => window.turns >= n", arg=n)

    turns(30)
    heap, nodes = used()
    turns(150)
    heap_after, nodes_after = used()
    # Points of the window do come in while this runs: a few hundred bytes each.
    assert heap_after - heap < 500_000
    assert nodes_after - nodes < 100


def test_a_daemon_that_went_away_is_said_and_the_last_figures_stay(browser):
    with served.adaptd() as running:
        running.feed(streams.classes(500))
        running.until_learned(500)
        context = browser.new_context()
        page = context.new_page()
        page.goto(running.url)
        page.wait_for_selector("#state.good")
    page.wait_for_selector("#notice:not([hidden])")
    assert "does not answer" in page.inner_text("#notice")
    assert page.inner_text("#state") == "no answer"
    assert page.locator("#learners tbody tr").count() == len(served.POOL)
    context.close()


def test_a_daemon_that_wants_a_token_is_given_it(browser, tmp_path):
    secret = tmp_path / "token"
    secret.write_text("a-long-secret-text\n")
    with served.adaptd(f"http.token_file={secret}") as running:
        context = browser.new_context()
        page = context.new_page()
        page.goto(running.url)
        page.wait_for_selector("#ask:not([hidden])")
        assert page.inner_text("#state") == "token wanted"
        page.fill("#token", "a-long-secret-text")
        page.keyboard.press("Enter")
        page.wait_for_selector("#state.good")
        assert page.locator("#ask").is_hidden()
        context.close()
        with pytest.raises(AdaptdError, match="--token-file"):
            status.gathered(running.url)
        assert len(status.gathered(running.url, "a-long-secret-text")["learners"]) == len(served.POOL)


# The report of a back-test.


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """A report, and what `replay` says with and without it."""
    folder = tmp_path_factory.mktemp("report")
    stream, target = folder / "a<b>&.jsonl", folder / "report.html"
    records = streams.classes(6000, drift_at=3000)
    for record in records:
        record["y"] = "</script><b>" if record["y"] == "up" else "down"
    stream.write_bytes(streams.lines(records) + b"{broken\n")

    def replay(*more: str) -> dict:
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            assert cli.main(["replay", str(stream), "--format", "json", *POOL, *more]) == 0
        return json.loads(printed.getvalue())

    return target, replay("--report", str(target)), replay()


def held(report: pathlib.Path) -> dict:
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', report.read_text())
    assert found is not None
    return json.loads(found[1])


def test_a_report_changes_no_figure(report):
    _, with_report, without = report
    for result in (with_report, without):
        del result["seconds"], result["rows_per_second"]
    assert with_report == without
    assert with_report["rejects"] == {"not_json": 1}


def test_the_curves_are_bounded_and_end_where_the_stream_ends(report):
    data = held(report[0])
    points = data["curves"]["points"]
    assert 100 < len(points) <= 601
    assert points[-1]["row"] == 6000
    # What is missing to 1 is the share of concepts that are remembered.
    assert all(0 < sum(point["weight"]) < 1 + 1e-4 for point in points)
    assert sum(points[0]["weight"]) > 1 - 1e-4
    assert data["curves"]["learners"] == list(served.POOL)
    assert any(entry["kind"] == "drift_detected" for entry in data["journal"])
    # The accuracy falls where the rule is reversed.
    before = [point["blend"] for point in points if 2500 < point["row"] < 3000]
    after = [point["blend"] for point in points if 3100 < point["row"] < 3500]
    assert min(before) > max(after)


def test_a_task_that_turns_out_to_be_another_starts_the_curves_anew(tmp_path):
    stream, target = tmp_path / "numbers.jsonl", tmp_path / "report.html"
    records = streams.numbers(600)
    for record in records[:100]:
        record["y"] = round(record["y"])
    stream.write_bytes(streams.lines(records))
    pool = ["--set", "pool.learners.linear.kind=linear", "--set", "pool.learners.prior.kind=prior"]
    assert cli.main(["replay", str(stream), "--report", str(target), *pool]) == 0
    data = held(target)
    assert data["curves"]["score_name"] == "mae"
    assert data["curves"]["points"][0]["row"] > 100
    assert data["result"]["mae"] > 0


def test_the_report_is_one_file_that_asks_nobody(report, browser):
    target, result, _ = report
    context = browser.new_context(viewport={"width": 1400, "height": 900}, offline=True)
    page, faults = context.new_page(), Faults()
    faults.watch(page, target.as_uri())
    page.goto(target.as_uri())
    assert page.inner_text("h1") == "Back-test of a<b>&.jsonl"
    assert page.locator("#score .series path").count() == len(served.POOL) + 1
    assert page.locator("#score .marks .drift").count() >= 1
    assert page.locator("#weights .band").count() == len(served.POOL)
    assert number(page.locator("#scores tr.total td").first.inner_text()) == round(result["accuracy"], 3)
    assert "Drift detected" in page.inner_text("#decisions")
    assert page.evaluate(CONTRAST) == []
    context.close()
    assert faults == []


def test_a_report_that_cannot_be_written_says_so(tmp_path, capsys):
    stream = tmp_path / "stream.jsonl"
    stream.write_bytes(streams.lines(streams.classes(20)))
    assert cli.main(["replay", str(stream), *POOL, "--report", str(tmp_path / "none" / "report.html")]) == 1
    assert "Choose a file that can be written" in capsys.readouterr().err


def test_the_page_holds_no_style_or_script_inside_and_names_only_its_own_files():
    """A strict content security policy may be put on the live page."""
    text = (PAGE / "index.html").read_text()
    assert not re.search(r"<style|\sstyle=|<script(?![^>]*\ssrc=)|\son\w+=|https?:", text)
    for name in re.findall(r'(?:src|href)="/page/([^"]+)"', text):
        assert (PAGE / name).is_file()
