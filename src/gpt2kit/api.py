"""The Python API: `gpt2kit.load` and `gpt2kit.train` return a `Model`, which generates text and scores it.

A wrong value raises the same `UserError` as on the command line. docs/api.md has examples.
"""

from __future__ import annotations

import dataclasses
import inspect
import json
import numbers
import os
import re
import signal
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from types import UnionType
from typing import TYPE_CHECKING, Any, Literal, cast, get_args, get_type_hints, overload

import numpy as np
import torch
from numpy.typing import NDArray

from gpt2kit import launch
from gpt2kit.checkpoint import checkpoint
from gpt2kit.checkpoint.checkpoint import LoadedCheckpoint
from gpt2kit.checkpoint.options import ForeignOptions
from gpt2kit.commands import command_name
from gpt2kit.errors import MachineError, Problems, UserError, nearest, refuse
from gpt2kit.evaluation.options import Precision as ScoringPrecision
from gpt2kit.generation.generator import Generator
from gpt2kit.generation.options import GenerationOptions, Precision, generation_problems, is_text
from gpt2kit.metrics import Score
from gpt2kit.text import memory
from gpt2kit.text.memory import Texts
from gpt2kit.tokenization.tokenizer import find_eos

if TYPE_CHECKING:
    from gpt2kit.evaluation.surprisal import Span, Surprisal
    from gpt2kit.model.gpt2 import GPT2

# Options of `gpt2kit train` after which no model is trained in this process, and the last parts of options that print.
_NOT_TRAINING = ("merge", "part", "plan", "tune", "verify_resume")
_PRINTING = ("help", "print_config")


class Model:
    """A trained model. `gpt2kit.load` returns one.

    Attributes:
        checkpoint: its weights, tokenizer and metadata.
        generator: generates text, in `precision`.
        gpt2: the network as a torch module, a subclass of transformers' `GPT2LMHeadModel`, for scores.
    """

    def __init__(self, checkpoint: LoadedCheckpoint, device: str = "auto", precision: Precision = "auto") -> None:
        self.checkpoint = checkpoint
        self.generator = Generator(checkpoint, precision, device=device)
        self._scoring_precision: ScoringPrecision = "32" if precision == "auto" else precision

    def __repr__(self) -> str:
        shape = self.checkpoint.shape
        size = f"{shape['n_layer']} layers, width {shape['n_embd']}, context {shape['n_positions']}"
        return f"<gpt2kit.Model {self.checkpoint.path}: {size}>"

    @cached_property
    def gpt2(self) -> GPT2:
        """The network in eval mode, on the model's device, in float32 unless `precision` names another type."""
        from gpt2kit.evaluation.scoring import prepare  # here and below, because transformers imports slowly

        return prepare(self.checkpoint.model, str(self.generator.gpt2.device), self._scoring_precision)

    @overload
    def generate(
        self, prompt: str = "", n: Literal[1] = 1, *, stream: Literal[False] = False, **options: Any
    ) -> str: ...
    @overload
    def generate(self, prompt: str = "", *, n: int, stream: Literal[False] = False, **options: Any) -> list[str]: ...
    @overload
    def generate(self, prompt: str = "", *, stream: Literal[True], **options: Any) -> Iterator[str]: ...
    def generate(
        self, prompt: str = "", n: int = 1, *, stream: bool = False, **options: Any
    ) -> str | list[str] | Iterator[str]:
        """Continue a prompt. The result begins with the prompt, as the output of generate.py does.

        Args:
            prompt: the beginning of the text. Default: the start of a document.
            n: number of texts.
            stream: return an iterator over the parts of one text, the prompt first.
            **options: fields of `GenerationOptions`, which are the options of generate.py.

        Returns:
            A text; a list of texts if `n` is above 1; an iterator if `stream` is set.
        """
        hints = get_type_hints(GenerationOptions)
        hints["n"] = hints.pop("num_samples")
        _refuse_unknown("generate", options, [*hints, "stream"])
        values: dict[str, Any] = {
            name: [value] if isinstance(value, str) and hints[name] == Sequence[str] else value
            for name, value in options.items()
        }
        for name, value in {"n": n, **values}.items():
            if not _has_type(value, hints[name]):
                raise TypeError(f"generate(): {name} {value!r:.60} has the wrong type")
        chosen = GenerationOptions(num_samples=n, **values)
        messages = generation_problems(chosen)
        problems = Problems(message.replace("--num_samples", "n").replace("--", "") for message in messages)
        problems.check(isinstance(prompt, str), f"prompt {prompt!r}: must be one text")
        problems.check(n == 1 or not stream, f"n {n}: stream returns one text. Leave out one of the two")
        refuse(problems.messages)
        if stream:
            return self._stream(prompt, chosen)
        texts = [prompt] * n
        for chunk in self.generator.generate([prompt], chosen):
            texts[chunk.sample] += chunk.text
        return texts[0] if n == 1 else texts

    def _stream(self, prompt: str, options: GenerationOptions) -> Iterator[str]:
        yield prompt
        for chunk in self.generator.generate([prompt], options):
            yield chunk.text

    @overload
    def score(self, texts: str, stride: int | None = None, batch_size: int = 16) -> Score: ...  # type: ignore[overload-overlap]
    @overload
    def score(self, texts: Iterable[str], stride: int | None = None, batch_size: int = 16) -> list[Score]: ...
    def score(self, texts: str | Iterable[str], stride: int | None = None, batch_size: int = 16) -> Score | list[Score]:
        """Return how well the model predicts each text: the figures of test.py for the text as one document.

        Args:
            texts: one text, or several.
            stride: tokens from one window of a long text to the next, as in test.py. Default: the context.
            batch_size: windows per forward pass. Changes the speed, not the figures.

        Returns:
            A `Score` for one text, a list for several. The end of the text counts as one token and one byte. If the
            vocabulary has no end-of-text token, the first token and its bytes do not count.
        """
        from gpt2kit.evaluation.scoring import sizes_after_first
        from gpt2kit.evaluation.statistics import count_words

        documents = [texts] if isinstance(texts, str) else list(texts)
        tokens = [self._encode(text)[0] for text in documents]
        count_rest = None if self._start else sizes_after_first(self.checkpoint.tokenizer)
        scores = []
        for text, ids, nats in zip(documents, tokens, self._predict(tokens, stride, batch_size), strict=True):
            counts = [len(ids) - 1, len(text.encode()), len(text), count_words(text)[0]]
            if count_rest:  # no words: the first one is predicted in part
                counts = [*count_rest(ids, np.array([len(ids), *counts[1:3]])).tolist(), 0]
            elif self._predicts_ends:
                counts[1:] = [count + 1 for count in counts[1:]]
            scores.append(Score(float(nats.sum()), *counts))
        return scores[0] if isinstance(texts, str) else scores

    def surprisal(self, text: str, stride: int | None = None, batch_size: int = 16) -> Surprisal:
        """Return nats, bits, rank and entropy of each token of a text, given the tokens before it.

        The first token is predicted from an end-of-document token, as in training; it is left out if the vocabulary has
        no such token. The end of the text is left out.

        Args:
            text: the text.
            stride: see `score`.
            batch_size: see `score`.
        """
        from gpt2kit.evaluation.surprisal import make_rows

        tokens, spans = self._encode(text)
        [statistics] = self._predict([tokens], stride, batch_size, statistics=True)
        spans = spans[0 if self._start else 1 :]
        return make_rows(text, spans, statistics[:, : len(spans)])

    @property
    def _start(self) -> list[int]:
        """The end-of-document token before each text; nothing if the vocabulary has none."""
        eos = find_eos(self.checkpoint.tokenizer)
        return [] if eos is None else [eos]

    @property
    def _predicts_ends(self) -> bool:
        return self.checkpoint.metadata.get("append_eos") is not False

    def _encode(self, text: str) -> tuple[NDArray[np.int64], list[Span]]:
        """Return a text's ids with the end-of-document tokens around it, and the characters of each of its tokens."""
        from gpt2kit.evaluation.surprisal import encode
        from gpt2kit.text.reader import split_text

        if not isinstance(text, str) or not is_text(text):
            raise UserError(f"text {text!r:.60}: must be one text, without bytes that are not UTF-8")
        ids, spans = encode(split_text([text]), self.checkpoint.tokenizer)
        end = self._start if self._predicts_ends else []
        return np.array([*self._start, *ids, *end], np.int64), spans

    def _predict(
        self, texts: Sequence[NDArray[np.int64]], stride: int | None, batch_size: int, statistics: bool = False
    ) -> list[NDArray[np.float64]]:
        from gpt2kit.evaluation.scoring import predict_texts

        context = self.checkpoint.shape["n_positions"]
        problems = Problems()
        problems.check(stride is None or 1 <= stride <= context, f"stride {stride}: must be from 1 to {context}")
        problems.check(batch_size >= 1, f"batch_size {batch_size}: must be at least 1")
        refuse(problems.messages)
        return predict_texts(self.gpt2, texts, stride, batch_size, self._scoring_precision, statistics)


def load(
    path: str | Path,
    device: str | torch.device = "auto",
    precision: Precision | Literal[32, 16] = "auto",
    tokenizer: str | Path | None = None,
    n_head: int | None = None,
    adapter_base: str | Path | None = None,
) -> Model:
    """Open a model. Nothing in its files is executed.

    Args:
        path: `last`, a run folder (its best checkpoint), a .ckpt file, a Hugging Face folder, the folder of a peft
            adapter, or hf://OWNER/NAME.
        device: `auto` (a GPU if there is one), `cpu`, `cuda` or `cuda:1`.
        precision: 32, bf16 or 16. auto: as generate.py for generation, and 32, as test.py, for scores.
        tokenizer: the vocabulary of a checkpoint of another program, as `--tokenizer` of generate.py.
        n_head: its number of attention heads, if its file does not record it.
        adapter_base: the model that an adapter belongs to. Default: the one on the hub that it names.
    """
    device, precision = str(device), cast(Precision, str(precision))
    match = re.fullmatch(r"auto|cpu|cuda(?::(\d+))?", device)
    if not match:
        raise UserError(f"device {device!r}: must be auto, cpu, cuda or cuda:N")
    if device.startswith("cuda") and int(match[1] or 0) >= (count := torch.cuda.device_count()):
        raise MachineError(f"device {device}: this machine has {count} GPUs that torch can use. Use auto")
    if precision not in get_args(Precision):
        raise UserError(f"precision {precision}: must be auto, 32, bf16 or 16")
    vocabulary, base = (None if value is None else str(value) for value in (tokenizer, adapter_base))
    foreign = ForeignOptions(vocabulary, n_head, base)
    return Model(checkpoint.open(path, options=foreign), device, precision)


def train(
    files: str | Path | Sequence[str | Path] | Mapping[str, Any] | None = None,
    *,
    texts: Texts | None = None,
    valid_texts: Texts | None = None,
    test_texts: Texts | None = None,
    config: str | Path | Sequence[str | Path] = (),
    options: Mapping[str, Any] | None = None,
    **settings: Any,
) -> Model:
    """Train a model in this process, as trainer.py does, and return its best checkpoint.

    Ctrl-C saves a checkpoint and raises KeyboardInterrupt.

    Args:
        files: text files or folders, or several texts with names: `data.train_files`. Default: those of `config`.
        texts: text in memory to train on, instead of files: strings, or rows with the fields that `field` or `template`
            names, such as a `datasets.Dataset`.
        valid_texts: the same for validation.
        test_texts: the same for the test.
        config: config files, in increasing precedence.
        options: options by their full names, such as `{"trainer.callbacks": [...]}`.
        **settings: options by the last part of their names, such as `max_time="20m"` for `trainer.max_time`.
    """
    from gpt2kit.cli import train as command

    names = _option_names()
    split_texts = {"train": texts, "valid": valid_texts, "test": test_texts}
    _refuse_unknown("train", settings, [*names, "files", "texts", "valid_texts", "test_texts", "config", "options"])
    if not isinstance(files, str | Path | list | tuple | Mapping | None):
        raise UserError(f"files: must be paths, not {type(files).__name__}. Give text in memory as texts")
    if isinstance(files, str) and files.startswith("["):
        files = [files]  # [a] would be read as a list
    values: dict[str, Any] = {} if files is None else {"data.train_files": files}
    values |= {names[name]: value for name, value in settings.items()} | dict(options or {})
    for split, items in split_texts.items():
        if items is not None:
            if f"data.{split}_files" in values:
                raise UserError(f"data.{split}_files: texts are also given. Leave out one of the two")
            values[f"data.{split}_files"] = memory.save(items)
    for name in values:
        if name in _NOT_TRAINING or name.partition("=")[0].rpartition(".")[2] in _PRINTING:
            raise UserError(f"{name}: trains no model. Use {command_name('train')} --{name}")
    configs = [config] if isinstance(config, str | Path) else config
    arguments = [f"--config={path}" for path in configs]
    if values.pop("override_optimizer", False):
        arguments.append("--override_optimizer")  # a flag
    for name, value in values.items():
        try:
            text = value if isinstance(value, str | Path) else json.dumps(value, default=os.fspath)
        except (TypeError, ValueError):
            raise UserError(f"{name}: must be plain values. Give a class as its class_path and init_args") from None
        arguments.append(f"--{name}={text}")
    launch.follow_launcher()
    try:
        with warnings.catch_warnings():  # the command filters some warnings
            run = command.main(arguments)
    except SystemExit as stop:
        if stop.code == 128 + signal.SIGINT:
            raise KeyboardInterrupt from None
        raise
    if run is None:
        raise UserError("train: this run writes no checkpoint. Leave out fast_dev_run and logger=False")
    return load(run)


def _option_names() -> dict[str, str]:
    """Return the options of trainer.py by the last part of their names."""
    import pytorch_lightning as pl

    from gpt2kit.cli.run_options import RunOptions
    from gpt2kit.cli.train_options import LINKED
    from gpt2kit.data.datamodule import TextDataModule
    from gpt2kit.optim import Muon
    from gpt2kit.text.reader import Reader
    from gpt2kit.training.module import GPT2Module
    from gpt2kit.training.trainer import make_trainer

    own = ["seed_everything", *(field.name for field in dataclasses.fields(RunOptions))]
    names = {name: name for name in own if name not in _NOT_TRAINING}
    owners: list[tuple[str, Any]] = [("data", TextDataModule), ("data.reader", Reader), ("model", GPT2Module)]
    owners += [("model.optimizer", Muon), ("trainer", make_trainer), ("trainer", pl.Trainer)]
    for owner, kind in owners:
        for parameter in inspect.signature(kind).parameters.values():
            full = f"{owner}.{parameter.name}"
            if parameter.kind is not parameter.VAR_KEYWORD and full not in (*LINKED, "model.optimizer.params"):
                assert names.setdefault(parameter.name, full) == full, f"{parameter.name}: the name of two options"
    return names


def _has_type(value: object, hint: Any) -> bool:
    """Return whether a value has the type of an option: `bool`, `int`, `float`, `Sequence[str]`, or one of them | None.

    Numbers may also be numpy's.
    """
    if isinstance(hint, UnionType):
        return any(_has_type(value, kind) for kind in get_args(hint))
    if hint == Sequence[str]:
        return isinstance(value, list | tuple) and all(isinstance(item, str) for item in value)
    if isinstance(value, bool):
        return hint is bool
    return isinstance(value, {int: numbers.Integral, float: numbers.Real}.get(hint, hint))


def _refuse_unknown(function: str, given: Iterable[str], known: Iterable[str]) -> None:
    """Raise for a keyword argument that a function does not have, as Python does."""
    known = list(known)
    for name in given:
        if name not in known:
            raise TypeError(f"{function}() got an unexpected keyword argument {name!r}{nearest(name, known)}")
