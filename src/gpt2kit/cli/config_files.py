"""Read YAML into plain values and mappings that record the lines of their keys. Knows nothing about options."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any

import yaml

from gpt2kit import files
from gpt2kit.errors import UserError, nearest

LARGEST = 100_000  # values in a file, with its aliases expanded
_MAX_CHARACTERS = 1 << 22
DEEPEST = 100  # levels


class Mapping(dict[str, Any]):
    """Values by key, with the line of each key and their file, which is empty for YAML on the command line."""

    file: str
    lines: dict[str, int]


class _Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """Refuses files that would exhaust the stack or the memory: libyaml recurses until the process crashes."""

    level = values = 0

    def descend_resolver(self, node: yaml.Node | None, index: object) -> None:
        self.level += 1
        if self.level > DEEPEST:
            raise yaml.YAMLError(f"nested more than {DEEPEST} levels deep")

    def ascend_resolver(self) -> None:
        self.level -= 1

    def build(self, node: yaml.Node, file: str) -> Any:
        """Build the value of a node. Aliases are expanded, as jsonargparse will do."""
        self.values += 1
        if self.values > LARGEST:
            raise yaml.YAMLError(f"its aliases expand to more than {LARGEST:,} values")
        if isinstance(node, yaml.ScalarNode):
            return self._build_scalar(node)
        self.descend_resolver(None, None)
        if isinstance(node, yaml.SequenceNode):
            value: Any = [self.build(item, file) for item in node.value]
        else:
            value = Mapping()
            value.file, value.lines = file, {}
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


def folder() -> Path:
    """Return the folder of gpt2kit's own config files: in the installed package, else in the clone."""
    package = Path(__file__).resolve().parents[1]
    return package / "configs" if (package / "configs").is_dir() else package.parents[1] / "configs"


def locate(name: str) -> str:
    """Return the path of one of gpt2kit's config files by its name, such as recipe/poems; else the name as it is.

    A file in the current folder comes first.
    """
    own = folder() / f"{name.removesuffix('.yaml')}.yaml"
    is_own = "/" in name and ".." not in name and not Path(name).is_file() and own.is_file()
    return str(own) if is_own else name


def load(path: str) -> Mapping:
    """Read a config file, which must be a mapping."""
    try:
        if files.is_named_pipe(Path(path)):
            raise UserError(f"{path}: a named pipe, which may wait forever. Name a file")
        with open(path, encoding="utf-8") as file:
            text = file.read(_MAX_CHARACTERS + 1)
        if len(text) > _MAX_CHARACTERS:
            raise UserError(f"{path}: more than {_MAX_CHARACTERS:,} characters, so not a config file. Check the path")
        value = parse(text, path)
    except UnicodeDecodeError:
        raise UserError(f"{path}: not UTF-8 text, so not a config file. Check the path") from None
    except (OSError, ValueError) as error:  # ValueError: a NUL character in the path
        own = (file.relative_to(folder()).with_suffix("").as_posix() for file in folder().glob("*/*.yaml"))
        advice = nearest(path.removesuffix(".yaml"), own) or ". Check the path"
        raise UserError(f"{path}: cannot be read ({getattr(error, 'strerror', error)}){advice}") from None
    except yaml.YAMLError as error:
        mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None) or str(error)
        place = f" line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise UserError(f"{path}{place}: {' '.join(problem.split())}. Is this a config file?") from None
    if not isinstance(value, Mapping):
        kind = "empty" if value is None else "not a mapping of options"
        raise UserError(f"{path}: {kind}. See --print_config")
    return value
