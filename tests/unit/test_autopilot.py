"""The scripts of bench/autopilot: texts for a law, a measure of their difficulty, the runs, and the fit."""

from __future__ import annotations

import importlib
import json
import math
import random
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import ROOT, SENTENCE

WORDS = ["stone", "river", "light", "garden", "winter", "shadow", "bridge", "morning"]
PAGE = r"""
.\" A comment
.TH LS 1 2024
.SH NAME
ls \- list \fBdirectory\fP contents
.TP
.BR \-a ", " \-\-all
do not ignore entries \(em see
.UR https://example.org
.IR dir (5)
.TS
left out
.TE
.PP
\[lq]quoted\[rq] \[u00E9]
"""


@pytest.fixture(autouse=True)
def bench(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [str(ROOT / "bench/autopilot"), str(ROOT / "bench"), *sys.path])


@pytest.fixture
def ngrams() -> Any:
    return importlib.import_module("ngrams")


def sentences(count: int, seed: int) -> bytes:
    chance = random.Random(seed)
    return "".join(" ".join(chance.choices(WORDS, k=6)) + ".\n" for _ in range(count)).encode()


def test_the_text_of_a_page_has_no_markup() -> None:
    corpora = importlib.import_module("corpora")
    assert corpora.clean(corpora.man_text(PAGE)) == (
        "NAME\nls - list directory contents\n\n-a, --all\ndo not ignore entries — see\ndir(5)\n\n“quoted” é"
    )
    assert corpora.man_text(".so man1/ls.1\n") == ""
    page = (
        "<html><head><title>T</title></head><body><p>One\n two</p><script>x()</script><pre>a\n  b</pre></body></html>"
    )
    assert corpora.clean(corpora.html_text(page)) == "One two\n\na\n  b"
    assert list(corpora.split_fortunes("one\n\x1b[32mtwo\x1b[m\n%\nthree\n")) == ["one\ntwo\n", "three\n"]
    assert corpora.only_script("one\nдва\nthree", "CYRILLIC") == "два"


def test_copies_of_documents_are_dropped(tmp_path: Path) -> None:
    corpora = importlib.import_module("corpora")
    texts = ["a long enough document", "a  long enough\ndocument", "another long document", "short"]
    path = tmp_path / "texts.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
    assert len(corpora.documents([path], "jsonl", None)) == 2


def test_the_corpora_are_enough_and_of_many_scripts() -> None:
    entries = importlib.import_module("corpora").read_list()
    uses = [entry["use"] for entry in entries]
    assert uses.count("fit") >= 12 and uses.count("held_out") >= 6
    assert {"Latin", "Cyrillic", "Han", "kana"} < {entry["script"] for entry in entries}
    assert {"prose", "verse", "code"} < {entry["kind"] for entry in entries}
    assert len({entry["name"] for entry in entries}) == len(entries)


def test_random_letters_take_the_bits_of_their_alphabet(ngrams: Any) -> None:
    letters = np.random.default_rng(1).integers(ord("a"), ord("a") + 16, 60_000, np.uint8).tobytes()
    assert ngrams.bits_by_order(letters[:50_000], letters[50_000:])[1] == pytest.approx(4.0, abs=0.02)


def test_words_take_the_bits_of_their_choice(ngrams: Any) -> None:
    bits = ngrams.bits_by_order(sentences(2000, 1), sentences(200, 2))
    choice = 3 / (sum(map(len, WORDS)) / len(WORDS) + 1)  # one of eight words, spread over its letters and a space
    assert choice < bits[-1] < 1.2 * choice and bits[0] > bits[1] > bits[2]


def test_the_probabilities_of_all_bytes_add_up_to_one(ngrams: Any) -> None:
    train, context = sentences(20, 1), b"the stone "

    def bits(text: bytes) -> float:
        return float(ngrams.bits_by_order(train, text)[-1] * len(text))

    total = sum(2 ** (bits(context) - bits(context + bytes([byte]))) for byte in range(256))
    assert total == pytest.approx(1.0)


def test_more_text_makes_it_easier_and_the_slope_says_so(ngrams: Any) -> None:
    more, less = (ngrams.measure(sentences(count, 1), sentences(100, 2)) for count in (1000, 20))
    assert more.bits < less.bits and less.slope > 0
    assert more.bytes == len(sentences(1000, 1))
    noise = np.random.default_rng(1).integers(0, 256, 40_000, np.uint8).tobytes()
    assert abs(ngrams.measure(noise[:30_000], noise[30_000:]).slope) < 0.05


def test_copied_text_is_a_repetition(ngrams: Any) -> None:
    train = sentences(50, 1)
    assert ngrams.repeated_fraction(train, train[500:900]) == 1.0
    assert ngrams.repeated_fraction(train, bytes(range(200))) == 0.0


@pytest.mark.parametrize(("train", "held_out"), [(b"", b"abc"), (b"a", b"abc"), (b"abc", b""), (b"abc", b"a")])
def test_tiny_texts_have_finite_figures(ngrams: Any, train: bytes, held_out: bytes) -> None:
    assert all(math.isfinite(value) for value in vars(ngrams.measure(train, held_out)).values())


def test_a_run_in_the_journal_is_not_repeated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    grid = importlib.import_module("grid")
    texts = [SENTENCE.format(number) * 40 for number in range(60)]
    lines = "".join(json.dumps({"text": text}) + "\n" for text in texts)
    (tmp_path / "python.jsonl").write_text(lines, encoding="utf-8")
    journal = tmp_path / "journal.jsonl"
    arguments = ["grid.py", str(tmp_path), "--flops", "1e11", "--runs", "1", "--journal", str(journal)]
    monkeypatch.setattr(sys, "argv", arguments)
    grid.main()
    row, pilot = (json.loads(line) for line in journal.read_text(encoding="utf-8").splitlines())
    (use, setting), result = row["key"], row["result"]
    assert pilot["key"][0] == "pilot" and pilot["result"]["text_bits"] == result["text_bits"]
    assert (use, setting["corpus"]) == ("fit", "python") and 0 < result["bpb"] < 8
    assert result["steps"] * setting["batch_size"] * setting["block_size"] == result["tokens_read"]
    assert importlib.import_module("fit").read_runs(journal, "fit")["bpb"].tolist() == [result["bpb"]]
    printed = capsys.readouterr().out
    grid.main()
    assert capsys.readouterr().out == printed and len(journal.read_text(encoding="utf-8").splitlines()) == 2


def synthetic_runs(corpora: int, per_corpus: int, truth: dict[str, float], noise: float) -> dict[str, Any]:
    """Return runs on texts of several difficulties that follow a law, but for noise."""
    law, draws = importlib.import_module("law"), np.random.default_rng(1)
    count = corpora * per_corpus
    tokens, passes = np.exp(draws.uniform(np.log(2e4), np.log(3e6), count)), np.exp(draws.uniform(-1, 3.4, count))
    bits = np.repeat(draws.uniform(1.4, 2.6, corpora), per_corpus)
    runs = {
        "corpus": np.repeat([f"text {number:02}" for number in range(corpora)], per_corpus),
        **{"text_bits": bits, "text_short_bits": bits * 1.4, "text_slope": np.full(count, 0.1)},
        **{"text_repetition": np.repeat(draws.uniform(0, 0.3, corpora), per_corpus), "text_bytes": np.full(count, 1e6)},
        **{"bytes": 3.0 * tokens, "tokens": tokens, "passes": passes, "steps": tokens * passes / 2048},
        **{"matrices": np.exp(draws.uniform(np.log(1e5), np.log(5e6), count)), "block_size": np.full(count, 256)},
        **{"dropout": draws.choice([0, 0.1], count), "weight_decay": draws.choice([0.1, 2.0], count)},
        "flops": np.full(count, 1e12),
    }
    runs["bpb"] = np.exp(law.log_bits(runs, truth) + noise * draws.standard_normal(count))
    return runs


def test_the_fit_recovers_a_law_and_its_interval_covers_new_texts() -> None:
    fit, law = importlib.import_module("fit"), importlib.import_module("law")
    truth = {name: prior.mean + prior.deviation / 2 for name, prior in law.PRIORS.items()}
    runs = synthetic_runs(12, 10, truth, noise=0.03)
    errors = fit.cross_validate(runs)
    fitted = fit.make_law(runs, errors)
    assert 0.03 < fitted.half_width < 0.09  # nine of ten errors of a normal distribution are below 1.64 deviations
    assert (fitted.runs, fitted.max_flops) == (120, 1e12)
    others = synthetic_runs(20, 5, truth, noise=0.03)
    distances = np.abs(fit.errors_of(others, fitted.coefficients))
    assert 0.75 <= (distances <= fitted.half_width).mean() <= 1
    low, high = fitted.interval({name: column[0] for name, column in others.items()})
    assert high / low == pytest.approx(math.exp(2 * fitted.half_width))


def test_the_law_knows_that_text_is_memorized() -> None:
    law = importlib.import_module("law")
    (run,) = ({name: column[0] for name, column in synthetic_runs(1, 1, priors(law), 0.0).items()},)

    def bits(**others: float) -> float:
        return float(law.log_bits({**run, "tokens": 4e4, "matrices": 3e6, **others}, priors(law)))

    assert bits(passes=4.0) < bits(passes=1.0)
    assert bits(passes=60.0) > bits(passes=6.0)
    assert bits(passes=60.0, dropout=0.1, weight_decay=2.0) < bits(passes=60.0, dropout=0.0, weight_decay=0.1)


def priors(law: Any) -> dict[str, float]:
    return {name: prior.mean for name, prior in law.PRIORS.items()}


def test_a_law_is_not_fitted_to_a_few_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fit, journal = importlib.import_module("fit"), tmp_path / "journal.jsonl"
    row = {"key": ["fit", {"corpus": "python"}], "result": {"bpb": 2.0}, "seconds": 1}
    journal.write_text(json.dumps(row) + "\n", encoding="utf-8")
    monkeypatch.setattr(sys, "argv", ["fit.py", "--journal", str(journal), "--output", str(tmp_path / "law.json")])
    with pytest.raises(SystemExit, match=r"1 runs on 1 corpora, and at least 100 on 12 are needed"):
        fit.main()
    assert not (tmp_path / "law.json").exists()
