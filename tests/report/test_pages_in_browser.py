"""The pages in a real browser: charts, sorting, hover, filters, hostile text, widths, print."""

import json
import re

import pytest

from fedsdr.cli.report import page_of, texts_of
from fedsdr.distill.records import RewriteRecord, write_distilled

HOSTILE = "<script>document.title = 'owned'</script><img src=x onerror=alert(1)>&amp;\"'"
CLIENTS = ["bank", "clinic", HOSTILE, "x" * 120, "school", "shop"]

# Elements past the right edge where nothing scrolls, and words of a chart past its drawing.
CUT = """() => [...document.querySelectorAll("main *:not(svg *), svg text")].filter(e => {
  const box = e.getBoundingClientRect();
  const around = e.ownerSVGElement?.getBoundingClientRect()
    ?? {left: 0, right: document.documentElement.clientWidth};
  const cut = box.right > around.right + 1 || box.left < around.left - 1;
  return box.width && cut && !e.closest(".table, pre");
}).map(e => e.outerHTML.slice(0, 200))"""


@pytest.fixture
def report(run_of, tmp_path):
    folder = run_of(CLIENTS, rounds=3, rows=4)
    path = tmp_path / "report.html"
    path.write_text(page_of([folder]))
    return path


def drawn(page):
    page.wait_for_selector("body[data-drawn=all]", state="attached")
    return page


def record(number, raw, rewrite, **values):
    fixed = {"id": f"row {number}", "turn": 0, "instruction": f"ask {number}", "raw": raw,
             "rewrite": rewrite, "used": "rewrite", "reason": "", "family": "text", "seed": 0,
             "teacher": "t", "new_tokens": 3, "finished": True}  # fmt: skip
    return RewriteRecord(**fixed | values)


@pytest.fixture
def texts(tmp_path):
    run = tmp_path / "run"
    kept = {"used": "raw", "reason": "truncated", "finished": False}
    write_distilled(run / "distilled/bank.jsonl", [
        record(1, "the sum is 42", "the sum is 41"),
        record(2, HOSTILE, f"{HOSTILE} and more", **kept),
    ])  # fmt: skip
    write_distilled(run / "distilled/clinic.jsonl", [record(3, "one two", "entirely different")])
    path = tmp_path / "rewrites.html"
    path.write_text(texts_of(run))
    return path


def test_every_chart_is_drawn_and_has_marks(report, open_page):
    page = drawn(open_page(report))
    charts = page.locator(".chart")
    assert charts.count() > 5
    for i in range(charts.count()):
        assert len(charts.nth(i).get_attribute("aria-label")) > 60
        assert charts.nth(i).locator("svg path").count() > 2, charts.nth(i).get_attribute("id")


def test_a_table_is_sorted_by_the_number_in_a_column_and_back_by_keyboard(report, open_page):
    page = drawn(open_page(report))
    table = page.locator("table").first

    def column():
        cells = table.locator("tbody tr td:nth-child(9)").all_inner_texts()
        return [float(re.match(r"[\d.]+", cell)[0]) for cell in cells]

    head = table.locator("thead th").nth(8)
    head.locator("button").click()
    assert column() == sorted(column())
    assert head.get_attribute("aria-sort") == "ascending"
    page.keyboard.press("Enter")
    assert column() == sorted(column(), reverse=True)
    assert len(set(column())) > 3


def test_hover_shows_the_values_of_a_point_as_text(report, open_page):
    page = drawn(open_page(report))
    figure = page.locator("figure", has_text="Training loss, phase R.raw")
    point = figure.locator(".mark-symbol.role-mark path").nth(4)
    point.scroll_into_view_if_needed()
    point.hover()
    assert page.locator("#tip").is_visible()
    lines = page.locator("#tip").inner_text().split("\n")
    assert lines[0] in ("clinic", "bank")
    assert re.fullmatch(r"value \d\.\d{4}", lines[2])


def test_hostile_names_and_texts_are_shown_and_not_run(report, texts, open_page):
    for path, place in ((report, "tbody th"), (texts, "article .text")):
        page = open_page(path)
        assert page.title() != "owned"
        assert page.locator(place, has_text="<script>document.title").count() > 0
        assert page.locator("img").count() == 0


@pytest.mark.parametrize("width", [390, 768, 1280, 1920])
def test_nothing_is_cut_at_any_width(width, report, texts, open_page):
    for path in (report, texts):
        page = open_page(path, width)
        if path is report:
            drawn(page)
        assert page.evaluate(CUT) == []
        assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_text_has_enough_contrast_with_its_paper_in_light_and_dark(report, open_page):
    """WCAG 2: 4.5 for text; 3 for the colours of a chart."""
    for scheme in ("light", "dark"):
        page = open_page(report, scheme=scheme)
        paper, *colours = page.evaluate("""() => ["paper", "ink", "soft", "link", "bad",
          ...[0, 1, 2, 3, 4, 5].map(i => "series-" + i)].map(name => {
            const probe = document.createElement("p");
            probe.style.color = `var(--${name})`;
            document.body.append(probe);
            return getComputedStyle(probe).color.match(/\\d+/g).map(Number);
          })""")
        for i, colour in enumerate(colours):
            assert contrast(paper, colour) >= (4.5 if i < 4 else 3), (scheme, i)


def contrast(one, other):
    """The contrast ratio of WCAG 2."""

    def luminance(colour):
        parts = [c / 255 for c in colour]
        linear = [c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
        return sum(weight * c for weight, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))

    light, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def test_in_print_no_table_is_wider_than_the_paper(report, open_page):
    page = drawn(open_page(report, width=688, scheme="dark"))  # A4 without margins, 96 dots an inch
    page.emulate_media(media="print")
    widths = page.evaluate("""() => [...document.querySelectorAll("table, .chart svg")]
      .map(e => e.getBoundingClientRect().width)""")
    assert max(widths) <= 688
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert page.pdf(format="A4").startswith(b"%PDF")


def test_the_rewrites_stand_largest_change_first_with_their_differences_marked(texts, open_page):
    page = open_page(texts)
    raws = page.locator("article section[aria-label=raw] .text").all_inner_texts()
    assert raws == ["one two", "the sum is 42", HOSTILE]
    changed = page.locator("article", has_text="the sum is 42")
    assert changed.locator("del").all_inner_texts() == ["42"]
    assert changed.locator("ins").all_inner_texts() == ["41"]


def test_filters_by_client_reason_and_sign_join(texts, open_page):
    page = open_page(texts)

    def shown():
        return page.locator("article:visible").count()

    assert shown() == 3
    page.select_option("select[name=client]", "bank")
    assert shown() == 2
    page.select_option("select[name=reason]", "kept raw: truncated")
    assert shown() == 1
    assert page.locator("#count").inner_text().startswith("1 of 3 shown")
    page.select_option("select[name=sign]", "numbers lost")
    assert shown() == 0
    page.select_option("select[name=reason]", "")
    assert page.locator("article:visible").inner_text().count("the sum is") == 2


def test_a_page_of_400_clients_is_small_and_drawn_soon(run_of, tmp_path, open_page):
    folder = run_of([f"client-{i:03d}" for i in range(400)], rounds=20)
    path = tmp_path / "report.html"
    path.write_text(page_of([folder]))
    assert path.stat().st_size < 5e6
    page = drawn(open_page(path))
    assert page.evaluate("performance.now()") < 60_000  # 3 s on an idle core
    assert page.locator("figure", has_text="Updates and refusals").locator("path").count() > 7_900


def test_the_data_of_the_page_of_texts_holds_no_text(texts):
    found = re.search(r'id="data">(.*?)</script>', texts.read_text(), re.S)
    assert all("sum" not in json.dumps(entry) for entry in json.loads(found[1]))
