"""The examples of docs/api.md run, with a tiny model as the newest run."""

from __future__ import annotations

import ast
import doctest
import inspect
import re

import pytest
from helpers import ROOT, Run

from gpt2kit import api

PAGE = (ROOT / "docs/api.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```python\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)


def test_examples_run(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(run.work)
    examples = "\n".join(block for block in BLOCKS if ">>>" in block)
    test = doctest.DocTestParser().get_doctest(examples, {}, "api.md", "docs/api.md", 0)
    assert len(test.examples) > 15
    report: list[str] = []
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    assert not runner.run(test, out=report.append).failed, "".join(report)


def test_keywords_of_the_training_examples_exist() -> None:
    for block in (block for block in BLOCKS if ">>>" not in block):
        calls = [node for node in ast.walk(ast.parse(block)) if isinstance(node, ast.Call)]
        [train] = [call for call in calls if getattr(call.func, "attr", "") == "train"]
        names = {keyword.arg for keyword in train.keywords}
        assert names <= {*inspect.signature(api.train).parameters, *api._option_names()}
