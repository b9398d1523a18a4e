"""The page tells what the report tells, and nothing that stands in the report can become a part of the page."""

import re
from html.parser import HTMLParser

from core.report.render import html
from core.report.schema import Absent, EarlierRemoval, Measured, Report

VOID = {"meta", "img", "br", "link"}


class Text(HTMLParser):
    """What a reader sees, and every element by name; checks that elements are closed in order."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.words: list[str] = []
        self.elements: list[str] = []
        self._open: list[str] = []
        self.feed(page)
        assert self._open == []

    def handle_starttag(self, tag: str, _attrs: object) -> None:
        self.elements.append(tag)
        if tag not in VOID:
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def test_the_page_tells_what_the_report_tells(report: Report) -> None:
    page = Text(html(report))
    text = " ".join(page.words)
    for told in (
        report.output_model, report.input_model, report.spec_digest, "1" * 64, "npo", "0.97", "[0.95, 0.99]",
        "21 of 21", "run without the service", "no retain set was given", "forget.probability at most 0.1",
        *report.verdict.reasons, *report.limitations, *report.output_files,
    ):  # fmt: skip
        assert told in text, told
    assert report.verdict.verdict.replace("_", " ") in text


def test_nothing_in_a_report_or_a_plot_becomes_part_of_the_page(report: Report) -> None:
    evil = "</td><script>alert(1)</script>"
    changed = report.model_copy(
        update={"limitations": [evil], "retain": Absent(absent=evil), "output_files": {evil: "0" * 64}}
    )
    page = html(changed, {f"plots/{evil}.svg": b"<svg onload='alert(1)'><script>alert(2)</script></svg>"})
    seen = Text(page)
    assert "script" not in seen.elements
    assert "svg" not in seen.elements
    assert re.findall(r"\bsrc=\"([^\"]{0,26})", page) == ["data:image/svg+xml;base64,"]
    assert not re.search(r"https?://", page)
    assert evil in "".join(seen.words)


def test_what_earlier_requests_removed_is_shown(report: Report) -> None:
    measured = {"forget.probability": Measured(value=0.123, rows=9, low=None, high=None)}
    known = EarlierRemoval(
        job="job_1", commitment="2" * 64, rows=9, then=measured, now=measured, came_back=True, reasons=["it is back"]
    )
    gone = Absent(absent="its data was destroyed")
    unknown = EarlierRemoval(
        job="job_2", commitment="3" * 64, rows=9, then=measured, now=gone, came_back=gone, reasons=[]
    )
    text = " ".join(Text(html(report.model_copy(update={"earlier": [known, unknown]}))).words)
    for told in ("job_1", "yes", "it is back", "0.123", "job_2", "its data was destroyed"):
        assert told in text
    none = " ".join(Text(html(report.model_copy(update={"earlier": []}))).words)
    assert "Nothing was removed" in none
