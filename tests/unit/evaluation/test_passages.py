from __future__ import annotations

import html.parser
from pathlib import Path

import numpy as np
import pytest

from gpt2kit.evaluation.evaluate import Passage, make_boxes, select_documents
from gpt2kit.evaluation.report import render_page
from gpt2kit.evaluation.statistics import UnitScores
from gpt2kit.tokenization import tokenizer


@pytest.mark.parametrize("text", ["the fox", "江南好 🫨 x", "\N{REPLACEMENT CHARACTER} a", "", "é\n\t<b>&\u202eabc"])
def test_boxes_are_whole_characters_and_contain_all_tokens(text: str, corpus: Path) -> None:
    byte_level = tokenizer.load(corpus / "tokenizer")
    ids = byte_level.encode(text, add_special_tokens=False).ids
    nats = [float(position) for position in range(len(ids))]
    boxes = make_boxes(byte_level, ids, nats)
    assert "".join(characters for characters, _ in boxes) == text
    assert [value for _, values in boxes for value in values] == nats
    if "🫨" in text:
        assert any(characters == "🫨" and len(values) == 4 for characters, values in boxes)


def test_boxes_contain_tokens_that_never_complete_a_character(corpus: Path) -> None:
    byte_level = tokenizer.load(corpus / "tokenizer")
    first = byte_level.encode("🫨", add_special_tokens=False).ids[0]
    boxes = make_boxes(byte_level, [first] * 40, [1.0] * 40)
    assert sum(len(values) for _, values in boxes) == 40


def test_the_first_and_the_hardest_documents_are_selected() -> None:
    size = np.array([100, 10, 100, 100, 100, 100])
    scores = UnitScores(np.array([1.0, 99, 2, 3, 50, 4]), size, size, size, size)
    assert [number for number, _ in select_documents(scores)] == [0, 1, 2, 4, 5, 3]
    assert select_documents(UnitScores(*(np.zeros(1) for _ in range(5)))) == [(0, "at the beginning")]


class TagChecker(html.parser.HTMLParser):
    """Checks that each tag is closed, and that only the attributes of the template occur."""

    ATTRIBUTES = frozenset(["lang", "charset", "name", "content", "http-equiv", "class", "style", "title", "dir"])

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        assert {name for name, _ in attrs} <= self.ATTRIBUTES, attrs
        if tag != "meta":
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_text_is_never_markup() -> None:
    evil = "</span></div><script>alert(1)</script><img src=x onerror=alert(1)>\"'&amp;\u202e\x00{body}"
    passage = Passage(0, "at the beginning", 1.0, [(character, [0.5]) for character in evil] + [(evil, [1.0, 99.0])], 7)
    page = render_page([(evil, f"loss {evil}", [passage, Passage(1, "among the hardest", 0.0, [], 0)])])
    checker = TagChecker()
    checker.feed(page)
    assert not checker.open and not checker.tags & {"script", "img"}
    assert "\u202e" not in page and "U+202E" in page
    assert "1.00 + 99.00 nats, 2 tokens" in page and "… 7 more tokens" in page and "--a:0.85" in page
