"""`model.init_from`: start a new run from the weights of another one, or of a Hugging Face model.

The run's checkpoints record what it started from, so a resumed run neither needs nor reads `init_from` again.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from gpt2kit.checkpoint import adapter, checkpoint
from gpt2kit.checkpoint.checkpoint import LoadedCheckpoint
from gpt2kit.checkpoint.foreign import NoTokenizer
from gpt2kit.checkpoint.options import ForeignOptions
from gpt2kit.commands import command_name
from gpt2kit.data.remote import SCRATCH
from gpt2kit.errors import CheckpointError, Problems, UserError, problems_of
from gpt2kit.model.config import ARCHITECTURE_FIELDS, tensor_sizes
from gpt2kit.model.freezing import find_parameters, names_parts
from gpt2kit.model.gpt2 import GPT2
from gpt2kit.model.vocabulary_transfer import (
    VocabularyMapping,
    map_line_break,
    map_vocabulary,
    remap_embedding,
    resize_positions,
)
from gpt2kit.tokenization import tokenizer as tokenizers


def option_problems(options: Mapping[str, Any]) -> list[str]:
    """List what is invalid in the model's options for initial weights and fine-tuning."""
    init_from, freeze, steps = (options[name] for name in ("init_from", "freeze", "freeze_steps"))
    rank, alpha = options["lora_r"], options["lora_alpha"]
    can_replace = init_from or not options["replace_tokenizer"]
    problems = Problems()
    problems.check(
        steps is None or names_parts(freeze), f"model.freeze_steps {steps}: needs model.freeze, the parts to freeze"
    )
    problems.check(
        init_from or not options["adapter_base"], "model.adapter_base: needs model.init_from, the adapter to start from"
    )
    problems.check(init_from or not rank, "model.lora_r: needs model.init_from, the weights to fine-tune")
    problems.check(alpha is None or rank, f"model.lora_alpha {alpha}: needs model.lora_r")
    problems.check(not (rank and freeze), "model.freeze: model.lora_r freezes all weights. Omit one of the two")
    problems.check(can_replace, "model.replace_tokenizer: needs model.init_from, the weights to adapt")
    return problems.messages


def freeze_problems(options: Mapping[str, Any]) -> list[str]:
    """List what is invalid in `model.freeze`, before the model is built. Its layers may not be known yet."""
    if options["n_layer"] == "auto":
        return []
    shape = {"n_layer": options["n_layer"], "n_embd": 1, "vocab_size": 1, "n_positions": 1}
    names = [name for name in tensor_sizes(shape) if name != "lm_head.weight"]
    return problems_of(find_parameters, names, options["freeze"])


def open_source(init_from: str, foreign: ForeignOptions = ForeignOptions()) -> LoadedCheckpoint:
    """Open the model that a run starts from; `foreign` is for one of another program, or for an adapter."""
    own = ForeignOptions(adapter_base=foreign.adapter_base)
    try:
        try:
            return checkpoint.open(init_from, options=own)
        except NoTokenizer:
            return checkpoint.open(init_from, options=foreign)
    except CheckpointError as error:
        message = str(error).replace("--tokenizer ", "--data.tokenizer ").replace("--n_head ", "--model.n_head ")
        message = message.replace("--adapter_base", "--model.adapter_base")
        raise CheckpointError(f"model.init_from: {message}") from None


def foreign_options(config: Any) -> ForeignOptions:
    """Return what the options of a run say about the weights of another program."""
    spec, heads = config.data.tokenizer, config.model.n_head
    vocab = spec if spec is None or isinstance(spec, str) else spec.vocab
    return ForeignOptions(vocab, heads if isinstance(heads, int) else None, config.model.adapter_base)


def source_defaults(source: LoadedCheckpoint, config: Any) -> dict[str, Any]:
    """Return the default options of a run from these weights: their architecture, context and tokenizer."""
    return {
        **{f"model.{name}": source.shape[name] for name in ARCHITECTURE_FIELDS},
        "data.block_size": source.shape["n_positions"],
        "data.tokenizer": cache_tokenizer(source.tokenizer, config.data.cache_dir),
    }


def apply_defaults(config: Any, source: LoadedCheckpoint) -> list[str]:
    """Set what is `auto`, and data.tokenizer if no other is named, to what the weights have; list contradictions."""
    for name in ARCHITECTURE_FIELDS:
        if config.model[name] == "auto":
            config.model[name] = source.shape[name]
    if not source.has_tokenizer or config.data.tokenizer in (None, config.model.init_from):
        config.data.tokenizer = cache_tokenizer(source.tokenizer, config.data.cache_dir)
    problems = Problems()
    problems.check(
        source.has_tokenizer or not config.model.replace_tokenizer,
        f"model.replace_tokenizer: data.tokenizer is the vocabulary of {source.path}. To use another one, export the "
        f"model first ({command_name('export')})",
    )
    return problems.messages + [
        f"model.{name} {config.model[name]}: the weights of model.init_from have {source.shape[name]}. Omit it"
        for name in ARCHITECTURE_FIELDS
        if config.model[name] != source.shape[name] and name != "initializer_range"
    ]


def options_at_default(config: Any, defaults: Any) -> set[str]:
    """Return the options that `init_from` decides and the user did not set.

    The tokenizer is always that of the weights, unless it is replaced, but the user may name it in several ways.
    """
    names = ["data.tokenizer", "data.block_size", *(f"model.{name}" for name in ARCHITECTURE_FIELDS)]
    at_default = {name for name in names if config[name] == defaults[name]}
    return at_default if config.model.replace_tokenizer else at_default | {"data.tokenizer"}


def cache_tokenizer(tokenizer: Tokenizer, cache_dir: str) -> str:
    """Return a folder in the cache with a checkpoint's tokenizer, so that the run's config can name it."""
    root = SCRATCH if "://" in cache_dir else Path(cache_dir)
    folder = root / "tokenizers" / tokenizers.fingerprint(tokenizer)[:24]
    if not (folder / "tokenizer.json").is_file():
        tokenizers.save(tokenizer, folder)
    return str(folder)


def restore_tokenizer(config: Any, resumed: Path) -> None:
    """Take the tokenizer of the resumed checkpoint if the config names none, or a cached one that was deleted.

    In runs of earlier versions, none means the folder that was their default.
    """
    name = config.data.tokenizer
    if name is None or (isinstance(name, str) and not Path(name).exists()):
        own = checkpoint.read_tokenizer(resumed, checkpoint.read(resumed)[checkpoint.KEY])
        if name is None or Path(name).name == tokenizers.fingerprint(own)[:24]:
            config.data.tokenizer = cache_tokenizer(own, config.data.cache_dir)


def map_source_vocabulary(
    source: LoadedCheckpoint, tokenizer: Tokenizer, init_from: str, replace_tokenizer: bool
) -> VocabularyMapping:
    """Return how the source's tokens spell those of `tokenizer`; they may differ only with `replace_tokenizer`."""
    size = tokenizers.size(tokenizer)
    if tokenizers.fingerprint(tokenizer) == tokenizers.fingerprint(source.tokenizer):
        return VocabularyMapping([[i] for i in range(size)], [])
    mapping = map_line_break(tokenizer, source.tokenizer) or map_vocabulary(tokenizer, source.tokenizer)
    if not (mapping.is_identity or mapping.adds_end or replace_tokenizer):
        raise UserError(
            f"data.tokenizer: not the vocabulary of model.init_from {init_from} ({size:,} tokens instead of "
            f"{tokenizers.size(source.tokenizer):,}). Omit data.tokenizer to use the model's own, or adapt the model "
            "to this one with --model.replace_tokenizer true"
        )
    return mapping


def load_initial_weights(
    model: GPT2, source: LoadedCheckpoint, tokenizer: Tokenizer, init_from: str, replace_tokenizer: bool = False
) -> tuple[dict[str, Any], list[str]]:
    """Load the source's weights into `model`, adapted to its context and to `tokenizer`.

    Returns:
        What the run starts from, as plain types for its checkpoints; and lines that describe it.
    """
    mapping = map_source_vocabulary(source, tokenizer, init_from, replace_tokenizer)
    positions = source.state["transformer.wpe.weight"]
    old_context, context = len(positions), int(model.shape["n_positions"])
    embedding = remap_embedding(source.state["transformer.wte.weight"], mapping, len(model.transformer.wte.weight))
    state = source.state | {"transformer.wte.weight": embedding, "lm_head.weight": embedding}
    state["transformer.wpe.weight"] = resize_positions(positions, context)
    model.load_state_dict(state, strict=True)
    lines = [f"weights of {init_from}"]
    if context != old_context:
        change = "interpolated; train for some steps" if context > old_context else "cut off"
        lines.append(f"context {context} instead of {old_context} tokens: position embeddings are {change}")
    counts = None if mapping.is_identity else mapping.counts()
    if mapping.adds_end:
        lines.append(
            f"the token that ended a text is now the line break. {tokenizers.EOS} is added as token "
            f"{tokenizers.eos_id(tokenizer):,}, and starts as the mean of all"
        )
    elif counts:
        old_tokens = counts["of"] / max(counts["spelled"], 1)
        size = tokenizers.size(tokenizer)
        lines.append(
            f"new vocabulary of {size:,} tokens: {counts['copied']:,} are copied, {counts['spelled']:,} start as the "
            f"mean of {old_tokens:.1f} old tokens, {counts['unspelled']:,} as the mean of all"
        )
    start = {
        "from": init_from,
        "weights": hash_weights(source),
        "tokens_seen": source.metadata.get("tokens_seen"),
        "context": [old_context, context],
        "vocabulary": counts,
        "val_bpb": None,
    }
    return start, lines


def hash_weights(source: LoadedCheckpoint) -> str:
    """Return the SHA-256 of the weights, which does not depend on the file format."""
    return adapter.hash_weights(source.state, source.shape["vocab_size"])
