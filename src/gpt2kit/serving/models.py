"""The models of the web demo: checkpoints that are loaded once, in the background, and the limits of requests."""

from __future__ import annotations

import itertools
import logging
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from gpt2kit.checkpoint import adapter, checkpoint, huggingface, paths, saved_text
from gpt2kit.checkpoint.checkpoint import LoadedCheckpoint
from gpt2kit.checkpoint.options import ForeignOptions
from gpt2kit.errors import CheckpointError, Problems, UserError, first_line, printable
from gpt2kit.generation.examples import find_examples, generate_examples
from gpt2kit.generation.generator import Generator
from gpt2kit.generation.options import GenerationOptions, Precision, generation_problems
from gpt2kit.model.config import parameter_count
from gpt2kit.runs import folder, lifecycle
from gpt2kit.runs.pages import valid_unicode

logger = logging.getLogger(__name__)

# Limits of one request.
MAX_CHARACTERS, MAX_NEW_TOKENS, MAX_SAMPLES, MAX_TEMPERATURE = 4000, 500, 4, 2.0
# Seconds after which the next model is loaded although one is not finished.
_LOAD_TIMEOUT = 60


@dataclass
class Model:
    """A checkpoint that the service loads."""

    name: str
    path: str
    generator: Generator | None = None  # once it is loaded
    opened: LoadedCheckpoint | None = None  # for downloads; shares its weights with the generator, if these are float32
    facts: dict[str, str] = field(default_factory=dict)
    examples: list[str] = field(default_factory=list)  # prompts
    failure: str = ""  # why it could not be loaded
    done: threading.Event = field(default_factory=threading.Event)  # set when it is loaded, or failed
    stalled: list[threading.Thread] = field(default_factory=list)  # requests that do not end


class Service:
    """Models that are loaded once, one after another, in the background. A model that fails does not affect others.

    Args:
        models: from `find_models`.
        precision: precision of weights and arithmetic.
        examples: example prompts for all models. Default: those of each model.
        foreign: for checkpoints of other programs.
        allow_download: keep the checkpoints, so that the page can hand them out.
    """

    def __init__(
        self,
        models: Sequence[Model],
        precision: Precision = "auto",
        examples: Sequence[str] = (),
        foreign: ForeignOptions = ForeignOptions(),
        allow_download: bool = False,
    ) -> None:
        self.allow_download = allow_download
        self.models = {model.name: model for model in models}
        self._precision = precision
        self._examples = list(examples)
        self._foreign = foreign

    def load(self) -> threading.Thread:
        """Start loading the models, in their order."""
        thread = threading.Thread(target=self._load, daemon=True)
        thread.start()
        return thread

    def _load(self) -> None:
        for model in self.models.values():
            thread = threading.Thread(target=self._load_model, args=(model,), daemon=True)
            thread.start()
            thread.join(_LOAD_TIMEOUT)

    def _load_model(self, model: Model) -> None:
        try:
            opened = checkpoint.open(model.path, options=self._foreign, is_shared=len(self.models) > 1)
            model.facts = describe(opened)
            generator = Generator(opened, self._precision, note=lambda text: None)
            model.examples = (
                self._examples or find_examples(opened.metadata, MAX_CHARACTERS) or generate_examples(generator)
            )
            model.opened = opened if self.allow_download else None
            model.generator = generator
        except BaseException as error:  # pyo3's PanicException is not an Exception
            reason = str(error) if isinstance(error, UserError) else f"{model.path}: {first_line(error)}"
            model.failure = printable(valid_unicode(" ".join(reason.split())))
            logger.warning(f"{model.name} cannot be used: {model.failure}")
        finally:
            model.done.set()

    def generator(self, name: str) -> Generator:
        """Return the generator of a model; raise if the model is not loaded, or does not respond."""
        model = self._find(name)
        if model.generator is None:
            raise CheckpointError(model.failure)
        if any(thread.is_alive() for thread in model.stalled):
            raise UserError(f"{model.name}: does not respond to an earlier request. Select another model")
        return model.generator

    def checkpoint(self, name: str) -> LoadedCheckpoint:
        """Return the checkpoint of a model; raise if the model is not loaded."""
        model = self._find(name)
        if model.opened is None:
            raise CheckpointError(model.failure or f"{model.name}: cannot be downloaded")
        return model.opened

    def _find(self, name: str) -> Model:
        model = self.models.get(name)
        if model is None:
            raise UserError(f"no model {name[:80]!r}. Choose one of {', '.join(self.models)}")
        if not model.done.is_set():
            raise UserError(f"{model.name}: still loading. Try again later")
        return model


def request_problems(prompt: str, options: GenerationOptions) -> list[str]:
    """List what is invalid in a request, and what is above the limits."""
    problems = Problems(generation_problems(options))
    for name, value, limit in (
        ("characters in the prompt", len(prompt), MAX_CHARACTERS),
        ("max new tokens", options.token_limit or 0, MAX_NEW_TOKENS),
        ("number of samples", options.num_samples, MAX_SAMPLES),
        ("temperature", options.temperature, MAX_TEMPERATURE),
    ):
        problems.check(value <= limit, f"{name}: {value:,} is more than the limit of {limit:,}")
    return problems.messages


def find_models(ckpt_paths: Sequence[str]) -> list[Model]:
    """Return the models at the paths: .ckpt files, runs, folders of runs, or Hugging Face folders.

    Each checkpoint is returned once, with a unique name.
    """
    models: dict[str, Model] = {}
    for path in ckpt_paths:
        for found, file in _find_checkpoints(path):
            if file in [model.path for model in models.values()]:
                continue
            name = valid_unicode(found)
            names = itertools.chain([name], (f"{name} ({number})" for number in itertools.count(2)))
            unique = next(candidate for candidate in names if candidate not in models)
            models[unique] = Model(unique, file)
    return list(models.values())


def _find_checkpoints(ckpt_path: str) -> list[tuple[str, str]]:
    """Return the names and paths of the checkpoints at a path."""
    path = Path(paths.resolve(ckpt_path))
    name = path.name or path.resolve().name
    if ckpt_path.startswith(huggingface.HUB) or (path / huggingface.CONFIG).is_file() or adapter.is_adapter(path):
        return [(name, ckpt_path)]
    if not path.is_dir() or (path / "checkpoints").is_dir():
        return [(name.removesuffix(".ckpt"), str(paths.find(path)))]
    try:
        runs = sorted((sub.parent for sub in path.rglob("checkpoints") if paths.checkpoints(sub.parent)), key=str)
    except RecursionError:
        raise CheckpointError(f"{path}: its folders are nested too deeply. Name a run or a folder of runs") from None
    if not runs:
        raise CheckpointError(f"{path}: no run with a checkpoint in this folder. Name a run or a folder of runs")
    return [(str(run.relative_to(path)), str(paths.find(run))) for run in runs]


def describe(opened: checkpoint.LoadedCheckpoint) -> dict[str, str]:
    """Return a model's size, training text, bits per byte and context, as far as they are recorded."""
    names = [valid_unicode(name)[-200:] for name in saved_text.training_files(opened.metadata)]
    text = ", ".join("/".join(Path(name).parts[-2:]) for name in names[:3]) or "unknown"
    if len(names) > 3:
        text += " ..."
    tokens = opened.metadata.get("train_tokens")
    if isinstance(tokens, int):
        text += f" ({format_count(tokens)} tokens)"
    run = lifecycle.run_of(opened.path)
    bits = folder.last_value(run, "val_bpb", opened.metadata.get("step"))
    return {
        "parameters": format_count(parameter_count(opened.shape)),
        "training text": text,
        "validation bits per byte": "unknown" if bits is None else f"{bits:.3f}",
        "context length": f"{opened.shape['n_positions']:,} tokens",
    }


def format_count(count: int) -> str:
    """Return a number, in millions if it is large."""
    return f"{count / 1e6:,.1f} M" if count >= 1e6 else f"{count:,}"
