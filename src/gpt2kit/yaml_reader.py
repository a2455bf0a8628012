"""Read YAML into plain values and mappings that record the lines of their keys. Knows nothing about options.

The text may be hostile: libyaml recurses until the process crashes, and aliases can name one value billions of times.
"""

from __future__ import annotations

import gc
from typing import Any

import yaml

_MAX_VALUES = 100_000  # in a text, with its aliases expanded
_MAX_LEVELS = 100


class Mapping(dict[str, Any]):
    """Values by key, with the line of each key and their file, which is empty for YAML on the command line."""

    def __init__(self, file: str) -> None:
        super().__init__()
        self.file = file
        self.lines: dict[str, int] = {}


class _Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """Refuses texts with too many levels or values."""

    level = values = 0

    def descend_resolver(self, node: yaml.Node | None, index: object) -> None:
        self.level += 1
        if self.level > _MAX_LEVELS:
            raise yaml.YAMLError(f"nested more than {_MAX_LEVELS} levels deep")

    def ascend_resolver(self) -> None:
        self.level -= 1

    def build(self, node: yaml.Node, file: str) -> Any:
        """Build the value of a node. Aliases are expanded, as jsonargparse will do."""
        self.values += 1
        if self.values > _MAX_VALUES:
            raise yaml.YAMLError(f"its aliases expand to more than {_MAX_VALUES:,} values")
        if isinstance(node, yaml.ScalarNode):
            return self._build_scalar(node)
        self.descend_resolver(None, None)
        if isinstance(node, yaml.SequenceNode):
            value: Any = [self.build(item, file) for item in node.value]
        else:
            value = Mapping(file)
            for key, item in node.value:
                is_name, mark = isinstance(key, yaml.ScalarNode) and key.value, key.start_mark
                name = key.value if is_name else "(a key without a name)"
                if name in value:
                    problem = f"{name} is set twice. Remove this line or line {value.lines[name]}"
                    raise yaml.MarkedYAMLError(problem=problem, problem_mark=mark)
                value[name], value.lines[name] = self.build(item, file), mark.line + 1
            merged = value.pop("<<", None)
            for part in merged if isinstance(merged, list) else [merged]:
                if isinstance(part, Mapping):
                    value.update({name: part[name] for name in part if name not in value})
                    value.lines = part.lines | value.lines
        self.ascend_resolver()
        return value

    def _build_scalar(self, node: yaml.ScalarNode) -> Any:
        if node.tag.endswith(":timestamp"):
            return node.value
        try:
            return self.construct_object(node)
        except (AttributeError, LookupError, TypeError):  # of a value that does not fit its tag, such as !!bool x
            problem = f"{node.value!r:.60} is no {node.tag.rpartition(':')[2]:.60}"
            raise yaml.MarkedYAMLError(problem=problem, problem_mark=node.start_mark) from None


def parse(text: str, file: str = "") -> Any:
    """Return the value of a YAML text; raise `yaml.YAMLError` if it is not YAML."""
    loader = _Loader(text)
    collects_garbage = gc.isenabled()
    gc.disable()  # each collection walks every object of torch: for 20,000 keys they take four times as long as parsing
    try:
        node = loader.get_single_node()
        return None if node is None else loader.build(node, file)
    finally:
        if collects_garbage:
            gc.enable()


def parse_or_keep(value: Any) -> Any:
    """Parse YAML text; return any other value unchanged."""
    try:
        return parse(value) if isinstance(value, str) else value
    except (yaml.YAMLError, ValueError):  # ValueError: a number such as 0x_
        return value
