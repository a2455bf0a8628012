from __future__ import annotations

import html.parser
from pathlib import Path

import numpy as np
import pytest

from gpt2kit.evaluation.heatmap import Passage, make_boxes, render_page, select_documents
from gpt2kit.evaluation.statistics import DocumentScores
from gpt2kit.tokenization import tokenizer


@pytest.mark.parametrize("text", ["the fox", "江南好 🫨 x", "\N{REPLACEMENT CHARACTER} a", "", "é\n\t<b>&\u202eabc"])
def test_boxes_are_whole_characters_and_lose_no_token(text: str, corpus: Path) -> None:
    found = tokenizer.load(corpus / "tokenizer")
    ids = found.encode(text, add_special_tokens=False).ids
    nats = [float(at) for at in range(len(ids))]
    parts = make_boxes(found, ids, nats)
    assert "".join(part for part, _ in parts) == text
    assert [value for _, values in parts for value in values] == nats
    if "🫨" in text:
        assert any(part == "🫨" and len(values) == 4 for part, values in parts)


def test_tokens_that_never_end_a_character(corpus: Path) -> None:
    found = tokenizer.load(corpus / "tokenizer")
    first = found.encode("🫨", add_special_tokens=False).ids[0]
    parts = make_boxes(found, [first] * 40, [1.0] * 40)
    assert sum(len(values) for _, values in parts) == 40


def test_the_hardest_documents_are_chosen() -> None:
    size = np.array([100, 10, 100, 100, 100, 100])
    scores = DocumentScores(np.array([1.0, 99, 2, 3, 50, 4]), size, size, size, size)
    assert [number for number, _ in select_documents(scores)] == [0, 1, 2, 4, 5, 3]
    assert select_documents(DocumentScores(*(np.zeros(1) for _ in range(5)))) == [(0, "at the beginning")]


class Checked(html.parser.HTMLParser):
    """Every tag that is opened is closed, and no other but ours is there."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.add(tag)
        assert not {name for name, _ in attrs} - {
            "lang",
            "charset",
            "name",
            "content",
            "http-equiv",
            "class",
            "style",
            "title",
            "dir",
        }, attrs
        if tag != "meta":
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_nothing_in_a_text_is_markup() -> None:
    evil = "</span></div><script>alert(1)</script><img src=x onerror=alert(1)>\"'&amp;\u202e\x00{body}"
    passage = Passage(0, "at the beginning", 1.0, [(character, [0.5]) for character in evil] + [(evil, [1.0, 99.0])], 7)
    made = render_page([(evil, f"loss {evil}", [passage, Passage(1, "among the hardest", 0.0, [], 0)])])
    checked = Checked()
    checked.feed(made)
    assert not checked.open and not checked.seen & {"script", "img"} and "\u202e" not in made and "U+202E" in made
    assert "1.00 + 99.00 nats, 2 tokens" in made and "… 7 more tokens" in made and "--a:0.85" in made
