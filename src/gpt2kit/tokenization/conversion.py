"""Convert the tokenizer of a Hugging Face folder, or a SentencePiece model, in a child process.

The files may be hostile, and what reads them is native code in part. The child runs this file as a script with the
limits of `trial`, and imports nothing from the folder. It prints the tokenizer's JSON, which is then tried and loaded.
"""

from __future__ import annotations

import json
import logging
import sys
from pathlib import Path

if __name__ == "__main__" and str(Path(__file__).resolve().parents[2]) not in sys.path:
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # in a clone: the child does not inherit the path

from tokenizers import Tokenizer

from gpt2kit import errors
from gpt2kit.errors import DataError, UserError
from gpt2kit.tokenization import pretrained, sentencepiece_model, trial
from gpt2kit.tokenization.tokenizer import from_plain_json, to_json

logger = logging.getLogger(__name__)

_SECONDS = 60  # of a CPU


def open_folder(folder: Path) -> Tokenizer:
    """Return the tokenizer of a folder. See `pretrained.open_folder`."""
    if (folder / pretrained.TOKENIZER).is_file():  # nothing to convert
        return pretrained.open_folder(folder)
    return _convert(folder, str(folder))


def open_sentencepiece(file: Path, where: str) -> Tokenizer:
    """Return the tokenizer of a SentencePiece model; `where` names it in errors."""
    return _convert(file, where)


def _convert(path: Path, where: str) -> Tokenizer:
    """Run the child; repeat its warnings, and raise its error."""
    request = json.dumps({"path": str(path), "where": where, "argv": sys.argv[:2]})
    output, problem = trial.run_child(__file__, request.encode(), _SECONDS)
    if problem:
        raise DataError(f"{where}: not a tokenizer ({problem}). Name another one")
    answer = json.loads(output)
    for warning in answer["warnings"]:
        logger.warning(warning)
    if "error" in answer:
        raise getattr(errors, answer["kind"])(answer["error"])
    return from_plain_json(answer["tokenizer"], where)


class _Collector(logging.Handler):
    """Keeps the messages of log records."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(record.getMessage())


def main() -> None:
    """Convert what the request on standard input names, and print the answer."""
    request = json.loads(sys.stdin.buffer.read())
    sys.argv = request["argv"]  # errors name the command that the user typed
    collector = _Collector()
    logging.getLogger("gpt2kit").addHandler(collector)
    path, where = Path(request["path"]), request["where"]
    answer: dict[str, object]
    try:
        if path.is_dir():
            tokenizer = pretrained.open_folder(path)
        else:
            tokenizer = sentencepiece_model.convert(pretrained.read_file(path), where)
        answer = {"tokenizer": to_json(tokenizer)}
    except UserError as error:
        answer = {"error": str(error), "kind": type(error).__name__}
    print(json.dumps({**answer, "warnings": collector.messages}))


if __name__ == "__main__":
    trial.limit_child(_SECONDS)
    trial.report_failure(main)
