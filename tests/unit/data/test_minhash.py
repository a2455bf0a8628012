"""The search for near copies, without files."""

from __future__ import annotations

import random
from collections.abc import Sequence

import numpy as np
import pytest

from gpt2kit.data import minhash
from gpt2kit.data.minhash import Sketcher, find_copies

WORDS = [
    f"{a}{b}{c}" for a in ("ba", "dor", "fi", "gul") for b in ("me", "nart", "po") for c in ("s", "ta", "vik", "wo")
]
HAN = "".join(chr(0x4E00 + 37 * number) for number in range(400))


def prose(chance: random.Random, words: int = 200) -> str:
    return " ".join(f"{chance.choice(WORDS)}{chance.randrange(1000)}" for _ in range(words))


def poem(chance: random.Random, characters: int = 24) -> str:
    text = "".join(chance.choices(HAN, k=characters))
    return "\n".join(text[start : start + 6] for start in range(0, characters, 6))


def copies(texts: Sequence[str], threshold: float = 0.8, staying: Sequence[int] = ()) -> list[int]:
    sketcher = Sketcher(threshold)
    for text in texts:
        sketcher.add([text])
    thresholds = np.full(len(texts), threshold)
    thresholds[list(staying)] = np.inf
    return find_copies(sketcher.signatures(), thresholds).tolist()


def similarity(a: str, b: str) -> float:
    """Return the exact similarity."""
    x, y = (set(minhash.shingles([text])[0].tolist()) for text in (a, b))
    return len(x & y) / len(x | y)


def replace_one(chance: random.Random, text: str, letters: str) -> str:
    place = chance.choice([number for number, letter in enumerate(text) if letter != "\n"])
    return text[:place] + chance.choice(letters) + text[place + 1 :]


def test_the_first_of_several_copies_stays() -> None:
    chance = random.Random(1)
    a, b = prose(chance), prose(chance)
    almost = f"{a[:500]}x{a[500:]}"
    assert copies([a, b, almost, a, b]) == [-1, -1, 0, 0, 1]
    assert copies([almost, b, a]) == [-1, -1, 0]


def test_a_document_is_compared_only_with_documents_that_stay() -> None:
    """The second is a copy of the first. The third is similar to the second only, so it stays."""
    chance = random.Random(2)
    first = prose(chance).split()
    second = [*first]
    second[:20] = [f"zz{number}" for number in range(20)]
    third = [*second]
    third[180:] = [f"yy{number}" for number in range(20)]
    texts = [" ".join(text) for text in (first, second, third)]
    assert similarity(texts[0], texts[2]) < 0.75 < similarity(texts[1], texts[2])
    assert copies(texts, 0.75) == [-1, 0, -1]
    assert copies(texts[1:], 0.75) == [-1, 0]


def test_case_spaces_punctuation_and_the_width_of_letters_do_not_count() -> None:
    text = "白日依山盡，黃河入海流。\nThe end of 1 poem"
    assert copies([text, "白日依山盡 黃河入海流 ＴＨＥ　ＥＮＤ of (1) poem!"], 1.0) == [-1, 0]


@pytest.mark.parametrize("seed", range(4))
def test_poems_of_24_characters_with_another_character_are_found_and_other_poems_are_not(seed: int) -> None:
    chance = random.Random(seed)
    poems = [poem(chance) for _ in range(500)]
    edited = [replace_one(chance, text, HAN) for text in poems]
    actual = copies([*poems, *edited])
    assert actual[:500] == [-1] * 500
    expected = [n for n in range(500) if similarity(poems[n], edited[n]) > 0.82]
    assert len(expected) > 400
    assert sum(actual[500 + n] == n for n in expected) > 0.97 * len(expected)


def test_most_pairs_are_on_the_right_side_of_the_threshold() -> None:
    chance = random.Random(3)
    originals, edited = [], []
    for number in range(400):
        words = prose(chance, 150).split()
        originals.append(" ".join(words))
        count = number % 40
        words[:count] = [f"q{chance.randrange(10**6)}" for _ in range(count)]
        edited.append(" ".join(words))
    actual = copies([*originals, *edited])
    for number, (a, b) in enumerate(zip(originals, edited, strict=True)):
        exact = similarity(a, b)
        if exact > 0.92:
            assert actual[400 + number] == number
        if exact < 0.68:
            assert actual[400 + number] == -1
    is_copy = [similarity(a, b) >= 0.8 for a, b in zip(originals, edited, strict=True)]
    right = [expected == (number >= 0) for expected, number in zip(is_copy, actual[400:], strict=True)]
    assert np.mean(right) > 0.9


@pytest.mark.parametrize("threshold", [0.1, 0.3, 0.5, 0.7, 0.8, 0.9, 0.95, 1.0])
def test_bands_find_pairs_at_the_threshold(threshold: float) -> None:
    length = minhash.band_length(threshold)
    assert 1 - (1 - threshold**length) ** (minhash.BUCKETS // length) >= 0.99 or length == 1


def test_documents_that_must_stay_do_and_others_are_compared_with_them() -> None:
    chance = random.Random(4)
    a, b = prose(chance), prose(chance)
    assert copies([a, a, b, b, a], staying=[0, 1, 2]) == [-1, -1, -1, 2, 0]


def test_documents_without_letters_stay() -> None:
    assert copies(["...", "...", "", "!", "a", "a"]) == [-1, -1, -1, -1, -1, 4]


def test_pieces_of_a_long_document_are_one_document(monkeypatch: pytest.MonkeyPatch) -> None:
    chance = random.Random(5)
    text, other = prose(chance, 3000), prose(chance, 3000)
    whole = Sketcher(0.8)
    whole.add([text])
    monkeypatch.setattr(minhash, "BATCH", 4096)
    sketcher = Sketcher(0.8)
    for pieces in ([text], [other], [text[:5000], text[5000:5010], text[5010:]]):
        sketcher.add(pieces)
    signatures = sketcher.signatures()
    assert find_copies(signatures, np.full(3, 0.8)).tolist() == [-1, -1, 0]
    assert minhash.similarities(whole.signatures().values[0], signatures.values)[[0, 2]].min() > 0.98


def test_signatures_do_not_depend_on_the_documents_before(monkeypatch: pytest.MonkeyPatch) -> None:
    chance = random.Random(6)
    texts = [prose(chance, chance.choice([1, 5, 300])) for _ in range(50)]
    all_at_once = Sketcher(0.8)
    for text in texts:
        all_at_once.add([text])
    for number in (0, 17, 49):
        alone = Sketcher(0.8)
        alone.add([texts[number]])
        for own, other in zip(alone.signatures(), all_at_once.signatures(), strict=True):
            assert np.array_equal(own[0], other[number])


def test_signatures_do_not_change_between_versions() -> None:
    """A resumed run must leave out what it left out before."""
    sketcher = Sketcher(0.8)
    sketcher.add(["白日依山盡，黃河入海流。"])
    sketcher.add(["The quick brown fox jumps over the lazy dog"])
    values, bands = sketcher.signatures()
    assert values[0][values[0] > 0][:5].tolist() == [190, 152, 117, 19, 209]
    assert values[1, ::16].tolist() == [35, 84, 157, 0, 0, 0, 0, 234]
    assert bands[:, :2].tolist() == [[4234047550, 1173610032], [3105292796, 1040287389]]


def test_many_similar_documents_take_bounded_time() -> None:
    """A line that differs in its number only is similar to all others, but not similar enough."""
    lines = [f"value {number} of the long table number {number * 7919}" for number in range(3000)]
    assert copies(lines, 0.95).count(-1) > 2900
