"""The model card of an export: the header that the Hugging Face hub reads, figures of the run, and samples.

Nothing is invented: what neither the checkpoint nor its run nor an option says is left out. Names and texts may contain
anything, so the header is written by the hub's own client, and the rest is escaped.
"""

from __future__ import annotations

import contextlib
import json
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gpt2kit import __version__
from gpt2kit.checkpoint import huggingface, saved_text
from gpt2kit.checkpoint.checkpoint import LoadedCheckpoint
from gpt2kit.checkpoint.validation import lookup
from gpt2kit.data.stages import parse_stages, stage_lines
from gpt2kit.errors import UserError
from gpt2kit.export.options import CardOptions
from gpt2kit.generation.examples import find_examples, generate_examples
from gpt2kit.generation.generator import Generator
from gpt2kit.generation.options import GenerationOptions
from gpt2kit.hub import is_repository
from gpt2kit.model.config import parameter_count
from gpt2kit.runs import folder, lifecycle
from gpt2kit.runs.pages import mark_hidden, render, valid_unicode
from gpt2kit.text.sources import HUB as HUB_DATASETS
from gpt2kit.tokenization import tokenizer as tokenizers

# How samples are generated: the default settings of generate.py, and nothing is selected.
SAMPLING = GenerationOptions(max_new_tokens=60)
_MAX_SAMPLES, _MAX_PROMPT_CHARACTERS = 3, 200


@dataclass(frozen=True)
class Sample:
    """A text that the model generated."""

    prompt: str
    text: str  # with the prompt


@dataclass(frozen=True)
class Details:
    """What a card says that its checkpoint does not record."""

    options: CardOptions = field(default_factory=CardOptions)
    repository: str | None = None  # the name on the hub
    samples: Sequence[Sample] = ()
    run: Path | None = None  # the folder of the run. Default: the one that contains the checkpoint


@dataclass(frozen=True)
class Score:
    """Figures of the model on a text."""

    split: str  # as the hub calls it
    name: str  # of one of several test texts; empty for the only one
    text: str
    bits_per_byte: float
    perplexity: float | None  # per token


def generate_samples(opened: LoadedCheckpoint) -> list[Sample]:
    """Continue the prompts of the run's samples, else the first words of texts that the model generates."""
    # On a CPU in float32, so that the card of a checkpoint is the same on every machine, up to rounding.
    generator = Generator(opened, "32", note=lambda text: None, device="cpu")
    examples = find_examples(opened.metadata, _MAX_PROMPT_CHARACTERS) or generate_examples(generator)
    # Without an end-of-text token, a text cannot begin without a prompt.
    prompts = [prompt for prompt in examples if generator.eos is not None or generator.encode(prompt)][:_MAX_SAMPLES]
    texts = list(prompts)
    for chunk in generator.generate(prompts, SAMPLING):
        texts[chunk.prompt] += chunk.text
    return [Sample(prompt, text) for prompt, text in zip(prompts, texts, strict=True)]


def render_card(opened: LoadedCheckpoint, name: str, dtype: str, details: Details = Details()) -> str:
    """Return the card as Markdown with a YAML header."""
    title = mark_hidden(valid_unicode(" ".join(name.split())))
    base, is_on_hub = find_base(opened)
    run = details.run or lifecycle.run_of(opened.path)
    scores = list(read_scores(opened, run))
    datasets = list(details.options.datasets) or find_datasets(opened.metadata)
    return render(
        "model_card.md",
        Path(__file__).parent / "templates",
        header=render_header(title, base if is_on_hub else None, datasets, scores, details),
        title=escape(title),
        model=json.dumps(details.repository or title, ensure_ascii=False),
        is_own="format" in opened.metadata,
        rows=[(label, escape(value)) for label, value in describe(opened, dtype, run)],
        samples=[
            {"prompt": escape(sample.prompt), "lines": mark_hidden(sample.text).split("\n")}
            for sample in details.samples
        ],
        sampling=SAMPLING,
        end=tokenizers.find_eos(opened.tokenizer),
        context=f"{opened.shape['n_positions']:,}",
        version=__version__,
    )


def render_header(
    title: str, base_model: str | None, datasets: Sequence[str], scores: Sequence[Score], details: Details
) -> str:
    """Return the YAML that the hub reads."""
    from huggingface_hub import EvalResult, ModelCardData  # here, because it imports slowly

    dataset = datasets[0] if len(datasets) == 1 else "custom"
    results = []
    for score in scores:
        metrics = [("bits_per_byte", "Bits per byte", score.bits_per_byte)]
        if score.perplexity is not None:
            metrics.append(("perplexity", "Perplexity per token", score.perplexity))
        results += [
            EvalResult(
                task_type="text-generation",
                task_name="Language modeling",
                dataset_type=dataset,
                dataset_name=score.text,
                dataset_config=score.name or None,  # figures of texts without different ones would be mixed up
                dataset_split=score.split,
                metric_type=kind,
                metric_name=metric,
                metric_value=round(value, 4),
            )
            for kind, metric, value in metrics
        ]
    data = ModelCardData(
        license=details.options.license,
        language=list(details.options.language) or None,
        datasets=list(datasets) or None,
        base_model=base_model,
        library_name="transformers",
        pipeline_tag="text-generation",
        tags=["gpt2", "gpt2kit"],
        model_name=title if results else None,
        eval_results=results or None,
        widget=[{"text": sample.prompt} for sample in details.samples if sample.prompt] or None,
    )
    header: str = data.to_yaml()
    return header


def find_base(opened: LoadedCheckpoint) -> tuple[str, bool]:
    """Return the name of the initial weights, which may be empty, and whether it is a name on the hub."""
    source = lookup(opened.metadata, "start", "from")
    name = " ".join(str(source or "").removeprefix(huggingface.HUB).rstrip("/").split())
    repository = name.partition("@")[0]
    if isinstance(source, str) and source.startswith(huggingface.HUB) and is_repository(repository):
        return repository, True
    return "/".join(name.split("/")[-2:]), False  # no other folders of this machine


def find_datasets(metadata: dict[str, Any]) -> list[str]:
    """Return the names of the hub's datasets among the training files of a run."""
    names = saved_text.training_files(metadata)
    datasets = [name.removeprefix(HUB_DATASETS).partition("?")[0] for name in names if name.startswith(HUB_DATASETS)]
    return list(dict.fromkeys(filter(is_repository, datasets)))


def read_scores(opened: LoadedCheckpoint, run: Path | None) -> Iterator[Score]:
    """Yield the figures of the checkpoint on the validation text, and on the text with which test.py tested it."""
    bits = _number(opened.metadata.get("val_bpb"))
    if bits is not None:
        perplexity = folder.last_value(run, "val_ppl", opened.metadata.get("step"))
        yield Score("validation", "", "validation text", bits, _number(perplexity))
    with contextlib.suppress(OSError, UserError):
        for name, content in (folder.read_tests(run) if run else {}).items():
            results = content.get("results")
            result = results[0] if isinstance(results, list) and results else None
            bits, file = _number(lookup(result, "bits_per_byte")), lookup(result, "file")
            if bits is not None and isinstance(file, str) and Path(file).name == opened.path.name:
                size, text = _number(lookup(content, "text", "bytes")), f"test text {name}".rstrip()
                text = text if size is None else f"{text}, {size:,.0f} bytes"
                yield Score("test", name, text, bits, _number(lookup(result, "perplexity")))


def escape(text: str) -> str:
    """Return a line of Markdown that shows the text as it is, without HTML and formatting."""
    # An underscore inside a word is plain text, as in epoch_3.
    return re.sub(r"([\\`*\[\]<>|~&]|(?<!\w)_|_(?!\w))", r"\\\1", mark_hidden(" ".join(text.split())))


def describe(opened: LoadedCheckpoint, dtype: str, run: Path | None) -> list[tuple[str, str]]:
    """Return the rows of the card's table: labels and values."""
    return [(label, value) for label, value in _rows(opened, dtype, run) if value]


def _rows(opened: LoadedCheckpoint, dtype: str, run: Path | None) -> Iterator[tuple[str, str]]:
    shape, metadata = opened.shape, opened.metadata

    def format_number(value: object, form: str) -> str:
        number = _number(value)
        return "" if number is None else form.format(number)

    text, seen = _number(metadata.get("train_tokens")), _number(metadata.get("tokens_seen"))
    yield "parameters", f"{parameter_count(shape):,}, as {dtype}"
    yield "shape", f"{shape['n_layer']} layers, {shape['n_head']} heads, width {shape['n_embd']}"
    yield "context", f"{shape['n_positions']:,} tokens"
    yield "vocabulary", f"{shape['vocab_size']:,} tokens, tokenizer {tokenizers.fingerprint(opened.tokenizer)[:12]}"
    yield "training text", format_number(text, "{:,.0f} tokens")
    yield "tokens seen in training", format_number(seen, "{:,.0f}")
    stages = _stages(metadata)
    yield "passes over the training text", f"{seen / text:.2f}" if seen and text and not stages else ""
    for number, line in enumerate(stages, 1):
        yield f"stage {number}", escape(line)
    yield "optimizer steps", format_number(metadata.get("step"), "{:,.0f}")
    yield "tokens per step", format_number(_tokens_per_step(metadata), "{:,.0f}")
    optimizer = lookup(metadata, "settings", "model", "optimizer")
    name, rate = lookup(optimizer, "class_path"), lookup(optimizer, "init_args", "lr")
    if isinstance(name, str):
        yield "optimizer", name.rsplit(".", 1)[-1][:60] + format_number(rate, ", learning rate {:g}")
    if run is not None:
        hours = folder.last_value(run, "hours", metadata.get("step"))
        yield "hours of training", format_number(hours, "{:.3g}")
        yield "device", _describe_device(run)
    for score in read_scores(opened, run):
        yield f"bits per byte of the {score.text}", f"{score.bits_per_byte:.4f}"
        yield f"perplexity per token of the {score.text}", format_number(score.perplexity, "{:,.2f}")
    yield "initial weights", find_base(opened)[0]
    yield "tokens see only their own document", "yes" if metadata.get("document_start") is not None else ""


def _stages(metadata: dict[str, Any]) -> list[str]:
    """Return a line for each of several stages."""
    step = metadata.get("step")
    with contextlib.suppress(ValueError):
        return stage_lines(parse_stages(metadata), step if isinstance(step, int) else None)
    return []


def _tokens_per_step(metadata: dict[str, Any]) -> float | None:
    batch, block = (_number(lookup(metadata, "data", name)) for name in ("global_batch", "block_size"))
    return None if batch is None or block is None else batch * block


def _describe_device(run: Path) -> str:
    """Return the devices of the run's last start; empty if they are not recorded."""
    try:
        starts = folder.read_starts(run)
    except (OSError, UserError):
        return ""
    device = lookup(starts[-1], "start", "device") if starts else None
    count, name = _number(lookup(device, "count")), lookup(device, "name")
    if count is None or not isinstance(name, str):
        return ""
    return name[:100] if count == 1 else f"{count:,.0f} x {name[:100]}"


def _number(value: object) -> float | None:
    """Return a number that a file contains; None for other values, and if it is negative or not finite."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if is_number and 0 <= value < math.inf else None  # type: ignore[arg-type, operator]
