"""Models for many readers: several checkpoints, loaded once in the background, and requests held to limits."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gpt2kit.checkpoint import checkpoint, huggingface
from gpt2kit.errors import CheckpointError, Problems, UserError, refuse
from gpt2kit.generation.generator import Generator, TextChunk
from gpt2kit.generation.options import GenerationOptions, Precision, generation_problems
from gpt2kit.model.config import parameter_count
from gpt2kit.runs import folder

PATIENCE = 600
"""Seconds that a request waits for its model to be loaded."""
_PRESETS = 4


@dataclass(frozen=True)
class Limits:
    """Limits of one request, the same for every user."""

    prompt_chars: int = 4000
    max_new_tokens: int = 500
    num_samples: int = 4
    temperature: float = 2.0


@dataclass
class Model:
    """One checkpoint of the service. `generator` is set once it is loaded, `failure` if that failed."""

    name: str
    path: str
    generator: Generator | None = None
    facts: dict[str, str] = field(default_factory=dict)
    presets: list[str] = field(default_factory=list)
    failure: str = ""
    done: threading.Event = field(default_factory=threading.Event)


class Service:
    """Some models, loaded one after another in a thread of its own, each once.

    Args:
        models: from `find_models`.
        precision: of weights and arithmetic.
    """

    def __init__(self, models: Sequence[Model], precision: Precision = "auto") -> None:
        self.models = {model.name: model for model in models}
        self.limits = Limits()
        self._precision = precision

    def load(self) -> threading.Thread:
        """Begin to load; the first model comes first."""
        thread = threading.Thread(target=self._load, daemon=True)
        thread.start()
        return thread

    def _load(self) -> None:
        for model in self.models.values():
            try:
                opened = checkpoint.open(model.path)
                model.facts = describe(opened)
                model.generator = Generator(opened, self._precision, note=lambda text: None)
                model.presets = presets(opened.metadata.get("settings")) or openings(model.generator)
            except Exception as error:  # whatever it is, the other models are to be served
                model.failure = str(error)
            finally:
                model.done.set()

    def model(self, name: str) -> Model:
        """The loaded model of that name."""
        found = self.models.get(name)
        if found is None:
            raise UserError(f"no model {name[:80]!r}. Choose one of {', '.join(self.models)}")
        if not found.done.wait(PATIENCE):
            raise UserError(f"{found.name}: still loading. Try again in a while")
        if found.generator is None:
            raise CheckpointError(found.failure)
        return found

    def generate(
        self, name: str, prompt: str, options: GenerationOptions, alternatives: int = 0
    ) -> Iterator[TextChunk]:
        """Generate text with one of the models, if the request is within the limits."""
        refuse(self.problems(prompt, options))
        generator = self.model(name).generator
        assert generator is not None
        yield from generator.generate([prompt], options, alternatives=alternatives)

    def problems(self, prompt: str, options: GenerationOptions) -> list[str]:
        """List what is invalid in a request, or above the limits."""
        limits, problems = self.limits, Problems(generation_problems(options))
        length, tokens, samples = len(prompt), options.token_limit or 0, options.num_samples
        most = limits.prompt_chars
        problems.check(length <= most, f"{length:,} characters: a prompt has at most {most:,}")
        most = limits.max_new_tokens
        problems.check(tokens <= most, f"{tokens:,} tokens: a text has at most {most:,}")
        most = limits.num_samples
        problems.check(samples <= most, f"{samples} texts: a request gets at most {most}")
        problems.check(
            options.temperature <= limits.temperature,
            f"temperature {options.temperature}: must be at most {limits.temperature}",
        )
        return problems.messages


def find_models(ckpt_paths: Sequence[str]) -> list[Model]:
    """What the paths mean: .ckpt files, run folders, folders of runs, Hugging Face folders; each with its own name."""
    found: list[tuple[str, str]] = []
    for given in ckpt_paths:
        path = Path(given)
        if given.startswith(huggingface.HUB) or (path / huggingface.CONFIG).is_file():
            found.append((path.name or path.resolve().name, given))
        elif path.is_dir() and not (path / "checkpoints").is_dir():
            runs = sorted(
                (sub.parent for sub in path.rglob("checkpoints") if checkpoint.checkpoints(sub.parent)), key=str
            )
            if not runs:
                raise CheckpointError(
                    f"{path}: no run with a checkpoint in this folder. Name a run or a folder of runs"
                )
            found += [(str(run.relative_to(path)), str(checkpoint.find(run))) for run in runs]
        else:
            file = str(checkpoint.find(path))
            found.append(((path.name or path.resolve().name).removesuffix(".ckpt"), file))
    files = dict.fromkeys(file for _, file in found)
    names: dict[str, str] = {}
    for name, file in found:
        if file in files:
            del files[file]
            names[name if name not in names else f"{name} ({len(names) + 1})"] = file
    return [Model(name, file) for name, file in names.items()]


def describe(opened: checkpoint.LoadedCheckpoint) -> dict[str, str]:
    """A model's size, corpus and bits per byte, as far as the checkpoint and its run's log say."""
    facts = opened.metadata
    settings = facts.get("settings")
    data = settings.get("data") if isinstance(settings, dict) else None
    files = data.get("train_files") if isinstance(data, dict) else None
    names = [str(name) for name in (files if isinstance(files, list) else [files] if files else [])]
    corpus = ", ".join("/".join(Path(name).parts[-2:]) for name in names[:3]) + " ..." * (len(names) > 3)
    tokens = facts.get("train_tokens")
    score = last_validation(opened.path, facts.get("step"))
    return {
        "size": f"{parameter_count(opened.shape) / 1e6:,.1f} M parameters",
        "corpus": (corpus or "unknown") + (f" ({tokens / 1e6:,.1f} M tokens)" if isinstance(tokens, int) else ""),
        "bits per byte": "unknown" if score is None else f"{score:.3f}",
        "context": f"{opened.shape['n_positions']:,} tokens",
    }


def last_validation(file: Path, step: object) -> float | None:
    """The validation's, at the checkpoint's step, or the last one before it."""
    try:
        bits = folder.read_metrics(file.parent.parent).get("val_bpb", {})
    except (OSError, UserError):
        return None
    steps = [logged for logged in bits if isinstance(step, int) and logged <= step]
    return bits[steps[-1]] if steps else None


def presets(settings: Any) -> list[str]:
    """The prompts that a run's own callbacks have written with, if any."""
    trainer = settings.get("trainer") if isinstance(settings, dict) else None
    callbacks = trainer.get("callbacks") if isinstance(trainer, dict) else None
    found: list[str] = []
    for callback in callbacks if isinstance(callbacks, list) else []:
        options = callback.get("init_args") if isinstance(callback, dict) else None
        prompts = options.get("prompts") if isinstance(options, dict) else None
        found += [text for text in prompts if isinstance(text, str)] if isinstance(prompts, list) else []
    return found[:_PRESETS]


def openings(generator: Generator) -> list[str]:
    """Return how the model itself begins a document: some first words, to start from."""
    options = GenerationOptions(temperature=0.7, top_p=0.9, num_samples=2 * _PRESETS, max_new_tokens=8)
    texts: dict[int, str] = {}
    for chunk in generator.generate([""], options):
        texts[chunk.sample] = texts.get(chunk.sample, "") + chunk.text
    begins = [text.strip().split("\n")[0] for text in texts.values()]
    shorter = [text.rsplit(" ", 1)[0] if " " in text else text for text in begins]
    return list(dict.fromkeys(text for text in shorter if text.strip()))[:_PRESETS]
