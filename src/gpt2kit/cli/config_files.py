"""Reads a config file as YAML nodes, which know their lines. Knows nothing about options."""

from __future__ import annotations

from collections.abc import Iterator

import yaml

from gpt2kit.errors import UserError

LARGEST = 100_000  # values that aliases may add to a file
DEEPEST = 100  # levels; libyaml's loader recurses without a limit, until the process crashes
MERGE = "tag:yaml.org,2002:merge"


class _Limited:
    """Counts levels, where the loader goes down and up."""

    depth = 0

    def descend_resolver(self, node: yaml.Node, index: object) -> None:
        self.depth += 1
        if self.depth > DEEPEST:
            raise yaml.YAMLError(f"nested more than {DEEPEST} levels deep")

    def ascend_resolver(self) -> None:
        self.depth -= 1


LOADER = type("LOADER", (_Limited, getattr(yaml, "CSafeLoader", yaml.SafeLoader)), {})


def load(path: str) -> yaml.MappingNode:
    """Read a config file; refuse one that is not a mapping, has a key twice, or expands to far more than it holds."""
    try:
        with open(path, encoding="utf-8") as file:
            text = file.read()
    except FileNotFoundError:
        raise UserError(f"{path}: no such config file. Check the path") from None
    except UnicodeDecodeError:
        raise UserError(f"{path}: not UTF-8 text, so not a config file. Check the path") from None
    except (OSError, ValueError) as error:  # ValueError: a NUL character in the path
        raise UserError(f"{path}: cannot be read ({getattr(error, 'strerror', error)}). Check the path") from None
    try:
        node = compose(text)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        where = f" line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise UserError(f"{path}{where}: {error.problem}. Indent with spaces, and quote odd text") from None
    except yaml.YAMLError as error:
        raise UserError(f"{path}: {' '.join(str(error).split())}. Is this a config file?") from None
    if not isinstance(node, yaml.MappingNode):
        kind = "empty" if node is None else "not a mapping of options"
        raise UserError(f"{path}: {kind}. See --print_config")
    sizes: dict[int, int] = {}
    if _expanded(node, path, sizes) > LARGEST + 2 * len(sizes):  # a value and its key
        raise UserError(f"{path}: its aliases expand to more than {LARGEST:,} values. Is this a config file?")
    return node


def compose(text: str) -> yaml.Node | None:
    """The nodes of a YAML text; None if it is empty."""
    node: yaml.Node | None = yaml.compose(text, LOADER)
    return node


def pairs(node: yaml.MappingNode) -> Iterator[tuple[yaml.ScalarNode, yaml.Node]]:
    """The keys and values of a mapping, with those that `<<` merges into it."""
    for key, value in node.value:
        if key.tag != MERGE:
            yield key, value
            continue
        for merged in value.value if isinstance(value, yaml.SequenceNode) else [value]:
            if isinstance(merged, yaml.MappingNode):
                yield from pairs(merged)


def _expanded(node: yaml.Node, path: str, sizes: dict[int, int]) -> int:
    """How many keys and values a node is with its aliases written out. Each node is looked at once."""
    if id(node) in sizes:
        if sizes[id(node)] == 0:
            raise UserError(f"{path} line {node.start_mark.line + 1}: an alias inside of what it stands for")
        return sizes[id(node)]
    sizes[id(node)] = 0
    size = 1
    if isinstance(node, yaml.SequenceNode):
        size += sum(_expanded(item, path, sizes) for item in node.value)
    elif isinstance(node, yaml.MappingNode):
        lines: dict[str, int] = {}
        for key, value in node.value:
            line = key.start_mark.line + 1
            if not isinstance(key, yaml.ScalarNode):
                raise UserError(f"{path} line {line}: a key must be the name of an option")
            if key.value in lines:
                raise UserError(f"{path} lines {lines[key.value]} and {line}: {key.value} stands twice. Remove one")
            lines[key.value] = line
            size += 1 + _expanded(value, path, sizes)
    sizes[id(node)] = size
    return size
