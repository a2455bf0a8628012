"""YAML as plain values, with the lines of its keys. tests/unit/cli/test_options.py has hostile config files."""

from __future__ import annotations

import pytest
import yaml

from gpt2kit import yaml_reader


def test_values_are_plain_and_keys_have_lines() -> None:
    content = yaml_reader.parse("a: 1\nb:\n  c: [x, 2001-01-01, 0.5, null]\n", "a.yaml")
    assert content == {"a": 1, "b": {"c": ["x", "2001-01-01", 0.5, None]}}
    assert content.lines == {"a": 1, "b": 2} and content["b"].lines == {"c": 3} and content["b"].file == "a.yaml"
    assert yaml_reader.parse("") is None and yaml_reader.parse("3") == 3


def test_keys_that_are_set_twice_are_refused() -> None:
    with pytest.raises(yaml.MarkedYAMLError, match=r"a is set twice\. Remove this line or line 1"):
        yaml_reader.parse("a: 1\na: 2\n")
