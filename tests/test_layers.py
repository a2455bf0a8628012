"""The rules of docs/design.md that a reader relies on: layers, light imports, public names."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

PACKAGE = ROOT / "src" / "gpt2kit"
ROWS = [
    row.split()
    for row in (
        "errors files parsing command watch sources decoding json_stream formats splits text run_folder token_html"
        " curves run_page plots",
        "pieces bans verse sampling tokenizer_kinds tokenizer_report tokenizer tokenizer_training tokenizer_spec store"
        " cache encoding_gigatoken encoding_processes encoding shelf shards fetching download corpora streaming"
        " uploading places parts overlap verbatim reading",
        "blocks windows sliding batches launch shape quick_layers engine freezing lora sharded guard hardware"
        " newton_schulz optim metrics flops per_document bootstrap rules transfer",
        "attention loss data row module memory weights huggingface checkpoint fsdp",
        "start runs prompts writing beams author generate scoring copies report heatmap subjects evaluate model_card"
        " gguf_file reloading export",
        "position loggers samples limits epoch_exports callbacks baseline ranks resume horizon verify facts options"
        " trial plan find service api page web earlier asked",
        "cli",
    )
]
PLACE = {name: (row, column) for row, names in enumerate(ROWS) for column, name in enumerate(names)}
HEAVY = {0: {"torch", "transformers", "pytorch_lightning", "numpy", "tokenizers"}, 1: {"torch", "transformers"}}
HEAVY[2] = {"transformers", "pytorch_lightning"}


class Bare(ast.NodeTransformer):
    """Leaves docstrings out."""

    def visit_Expr(self, node: ast.Expr) -> ast.AST | None:
        return None if isinstance(node.value, ast.Constant) else node


def imported(path: Path) -> set[str]:
    """What a module imports as it is loaded; `gpt2kit.x` for our own."""
    found: set[str] = set()
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Import):
            found |= {name.name for name in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module == "gpt2kit":
            found |= {f"gpt2kit.{name.name}" for name in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add(node.module or "")
    return found


@pytest.mark.parametrize("path", sorted(PACKAGE.glob("*.py")), ids=lambda path: path.stem)
def test_a_module_imports_only_from_below_or_from_its_left(path: Path) -> None:
    name = path.stem
    if name == "__init__":
        assert not imported(path), "importing gpt2kit does nothing; move the import into the module that needs it"
        return
    assert name in PLACE, f"{name}.py has no row in docs/design.md 2; give it one there and in this test"
    for other in imported(path):
        top = other.split(".")[0]
        row = PLACE[name][0]
        assert top not in HEAVY.get(row, set()), f"{name}.py (row {row}) imports {top}; import it inside the function"
        if top == "gpt2kit" and (inner := other.split(".")[1]) in PLACE:
            assert PLACE[inner] < PLACE[name], (
                f"{name}.py imports {inner}.py, which is above it or to its right in docs/design.md 2; "
                f"move what is needed into a lower module, or pass it in as an argument"
            )
            assert {name, inner} != {"data", "module"}, "data and module never import each other; join them in cli.py"


def test_training_is_short_enough_to_read() -> None:
    """From text to loss: at most ten files and about 1,200 lines of code, docstrings aside."""
    files = ["text", "tokenizer", "store", "shards", "blocks", "batches", "data", "metrics", "optim", "module"]
    code = 0
    for name in files:
        tree = ast.parse((PACKAGE / f"{name}.py").read_text(encoding="utf-8"))
        code += len(ast.unparse(Bare().visit(tree)).splitlines())
    assert code <= 1250, f"{code} lines; take something off the path from text to loss"


@pytest.mark.parametrize(
    "script", ["train_tokenizer", "trainer", "test", "cache", "generate", "export", "plot", "web_demo"]
)
def test_every_script_answers_help_from_any_folder(script: str, tmp_path: Path) -> None:
    told = subprocess.run(
        [sys.executable, str(ROOT / f"{script}.py"), "--help"], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert "usage:" in told.stdout and not told.stderr
    assert len((ROOT / f"{script}.py").read_text(encoding="utf-8").splitlines()) <= 25


def test_training_a_tokenizer_needs_no_torch() -> None:
    words = "import sys; sys.argv = ['train_tokenizer.py', '--help']; import runpy"
    program = f"""{words}
try:
    runpy.run_path({str(ROOT / "train_tokenizer.py")!r}, run_name="__main__")
except SystemExit:
    pass
print("heavy:", sorted({{"torch", "transformers", "pytorch_lightning"}} & set(sys.modules)))"""
    told = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert told.stdout.endswith("heavy: []\n")
