"""`model.init_from`: a new run from the weights of another one, or of a Hugging Face model.

What it began with is written into its checkpoints, so a resumed run neither needs nor reads `init_from` again.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer

from gpt2kit.checkpoint import checkpoint
from gpt2kit.checkpoint.checkpoint import Opened
from gpt2kit.data.remote import SCRATCH
from gpt2kit.errors import CheckpointError, UserError, problems_of
from gpt2kit.model import vocabulary_transfer
from gpt2kit.model.finetuning import frozen
from gpt2kit.model.gpt2 import GPT2
from gpt2kit.tokenization import tokenizer as tokenizers

TAKEN = ("n_layer", "n_head", "n_embd", "n_inner", "activation_function", "initializer_range", "layer_norm_epsilon")
"""Options of the model that its weights decide."""
_CHECKED = 32
"""Tokens that the self-checks look at."""


def problems(options: Mapping[str, Any]) -> list[str]:
    """What is wrong with the model's options of a beginning, in their words."""
    rules = {
        f"model.freeze_steps {options['freeze_steps']}: must not be negative": (options["freeze_steps"] or 0) < 0,
        f"model.freeze_steps {options['freeze_steps']}: needs model.freeze, the parts to freeze": options[
            "freeze_steps"
        ]
        is not None
        and options["freeze"] in (None, "", (), []),
        f"model.lora {options['lora']}: must be at least 1": options["lora"] is not None and options["lora"] < 1,
        "model.lora: trains nothing else, so it needs model.init_from": options["lora"] and not options["init_from"],
        "model.freeze: all is frozen with model.lora. Leave it out": options["lora"] and options["freeze"],
        "model.new_vocabulary: needs model.init_from, the weights to move": options["new_vocabulary"]
        and not options["init_from"],
    }
    return problems_of(rules)


def freeze_problems(options: Mapping[str, Any]) -> list[str]:
    """What is wrong with `model.freeze` for a model of so many layers, before that model is made."""
    words = options["freeze"]
    tiny = {"n_layer": options["n_layer"], "n_head": 1, "n_embd": 1, "vocab_size": 1, "n_positions": 1}
    try:
        with torch.random.fork_rng(devices=[]):  # the run's own weights are drawn from it
            model = GPT2(tiny)
        frozen(model, [words] if isinstance(words, (int, str)) else list(words or []))
    except UserError as error:
        return [str(error)]
    return []


def defaults(source: Opened, config: Any) -> dict[str, Any]:
    """What the options are by default in a run from these weights: the shape, context and tokenizer that they had."""
    shape = source.shape
    return {
        **{f"model.{name}": shape[name] for name in TAKEN},
        "data.block_size": shape["n_positions"],
        "data.tokenizer": kept(source.tokenizer, config.data.cache_dir),
    }


def settle(config: Any, source: Opened) -> list[str]:
    """Name the weights' tokenizer if it is meant; the sizes that the user has written and the weights have not."""
    if config.data.tokenizer in (None, config.model.init_from):
        config.data.tokenizer = kept(source.tokenizer, config.data.cache_dir)
    shape = source.shape
    return [
        f"model.{name} {config.model[name]}: the weights of model.init_from have {shape[name]}. Leave it out"
        for name in TAKEN
        if config.model[name] != shape[name] and name != "initializer_range"
    ]


def unsaid(config: Any, usual: Any) -> set[str]:
    """Settings that `init_from` has decided, by their names: those that the user has left as they are by default."""
    names = ["data.tokenizer", "data.block_size", *(f"model.{name}" for name in TAKEN)]
    return {name for name in names if config[name] == usual[name]}


def kept(tokenizer: Tokenizer, cache_dir: str) -> str:
    """The folder that a checkpoint's tokenizer is kept in, so that the run's config names one."""
    root = SCRATCH if "://" in cache_dir else Path(cache_dir)
    folder = root / "tokenizers" / tokenizers.fingerprint(tokenizer)[:24]
    if not (folder / "tokenizer.json").is_file():
        tokenizers.save(tokenizer, folder)
    return str(folder)


def keep_tokenizer(config: Any, resumed: Path) -> None:
    """Bring back a tokenizer that `kept` had kept and that is gone: the checkpoint has it, too."""
    name = config.data.tokenizer
    if isinstance(name, str) and not Path(name).exists():
        own = tokenizers.from_json(str(checkpoint.read(resumed)[checkpoint.KEY]["tokenizer"]), str(resumed))
        if Path(name).name == tokenizers.fingerprint(own)[:24]:
            config.data.tokenizer = kept(own, config.data.cache_dir)


def begin(
    model: GPT2, source: Opened, tokenizer: Tokenizer, init_from: str, new_vocabulary: bool = False
) -> tuple[dict[str, Any], list[str]]:
    """Put the source's weights into `model`, fitted to its context and to `tokenizer`.

    Another vocabulary than the source's is refused unless it is wanted.

    Returns:
        What the run began with, as plain types for its checkpoints; and the same in words.
    """
    how = vocabulary_transfer.spelling(tokenizer, source.tokenizer)
    same = tokenizers.fingerprint(tokenizer) == tokenizers.fingerprint(source.tokenizer) or how.is_identity
    if not same and not new_vocabulary:
        raise UserError(
            f"data.tokenizer: not the vocabulary of model.init_from {init_from} ({tokenizers.size(tokenizer):,} "
            f"tokens, its own has {tokenizers.size(source.tokenizer):,}). Leave data.tokenizer out to keep its own, or "
            "say --model.new_vocabulary true to move the model to this one"
        )
    old = source.model.transformer
    context = (int(old.wpe.weight.shape[0]), int(model.shape["n_positions"]))
    state = dict(source.model.state_dict())
    rows = len(model.transformer.wte.weight)
    ids = vocabulary_transfer.Spelling([[i] for i in range(tokenizers.size(tokenizer))], []) if same else how
    embedding = vocabulary_transfer.moved(old.wte.weight.detach(), ids, rows)
    state |= {"transformer.wte.weight": embedding, "lm_head.weight": embedding}
    state["transformer.wpe.weight"] = vocabulary_transfer.positions(old.wpe.weight.detach(), context[1])
    model.load_state_dict(state, strict=True)
    start = {
        "from": init_from,
        "weights": fingerprint(source.model),
        "tokens_seen": source.facts.get("tokens_seen"),
        "context": list(context),
        "vocabulary": None if same else ids.counts(),
        "val_bpb": None,
    }
    check_same_pieces(model, source.model, ids)
    check_saved(model)
    return start, [f"weights of {init_from}", *_context_told(*context), *([] if same else _vocabulary_told(ids))]


def _context_told(old: int, new: int) -> list[str]:
    if new < old:
        return [f"context {new} of its {old} tokens: the first {new} positions are kept, the others are lost"]
    if new > old:
        return [f"context {new} instead of {old} tokens: the {old} positions are stretched over it; train some steps"]
    return []


def _vocabulary_told(how: vocabulary_transfer.Spelling) -> list[str]:
    counts = how.counts()
    mean = counts["of"] / max(counts["spelled"], 1)
    rest = f", {counts['unspelled']:,} that none spell begin as the mean of all" if counts["unspelled"] else ""
    return [
        f"another vocabulary, {len(how.old):,} pieces: {counts['copied']:,} are copied, {counts['spelled']:,} begin as "
        f"the mean of {mean:.1f} old pieces{rest}"
    ]


def fingerprint(model: GPT2) -> str:
    """SHA-256 of the weights, the same whatever file they come in."""
    found = hashlib.sha256()
    vocab = int(model.shape["vocab_size"])
    for name, tensor in sorted(model.state_dict().items()):
        if name != "lm_head.weight":
            rows = tensor[:vocab] if name == "transformer.wte.weight" else tensor
            found.update(name.encode() + rows.detach().float().contiguous().numpy().tobytes())
    return found.hexdigest()


@torch.no_grad()
def check_same_pieces(model: GPT2, source: GPT2, how: vocabulary_transfer.Spelling) -> float:
    """Over pieces that both vocabularies have, both models must say the same; the largest difference of logits.

    That shows at once a body that was not copied, and input and output rows that are not each other's. Both are given
    the source's positions, since those of another context are others.
    """
    pairs = [(new, old[0]) for new, old in enumerate(how.old) if len(old) == 1]
    step = max(len(pairs) // _CHECKED, 1)
    length = min(_CHECKED, model.shape["n_positions"], source.shape["n_positions"])
    pairs = pairs[::step][:length]
    if not pairs:
        return 0.0
    new, old = (torch.tensor(ids) for ids in zip(*pairs, strict=True))
    here, there = (of.transformer.wpe.weight[: len(new)] for of in (model, source))
    ours = logits(model, model.transformer.wte(new) + (there - here))[:, new]
    theirs = logits(source, old)[:, old]
    difference = float((ours - theirs).abs().max())
    if not difference <= rounding(theirs):
        raise CheckpointError(
            f"model.init_from: with its weights the model does not say what it said before (logits "
            f"differ by {difference:g}). This is a defect of gpt2kit; please report it"
        )
    return difference


@torch.no_grad()
def check_saved(model: GPT2) -> None:
    """Saved and loaded again, the model must give the same logits to the bit."""
    buffer = io.BytesIO()
    torch.save(model.state_dict(), buffer)
    buffer.seek(0)
    again = GPT2(model.shape)
    again.load_state_dict(torch.load(buffer, weights_only=True), strict=True)
    vocab, length = int(model.shape["vocab_size"]), min(_CHECKED, int(model.shape["n_positions"]))
    ids = torch.linspace(0, vocab - 1, length).long()
    if not torch.equal(logits(model, ids), logits(again, ids)):
        raise CheckpointError(
            "model.init_from: saved and loaded, the model gives other logits. "
            "This is a defect of gpt2kit; please report it"
        )


def logits(model: GPT2, text: torch.Tensor) -> torch.Tensor:
    """`[tokens, vocab_size]` of one text, without dropout; `text` is ids, or embeddings `[tokens, n_embd]`."""
    training = model.training
    given = {"inputs_embeds" if text.is_floating_point() else "input_ids": text[None]}
    found = model.eval()(**given, use_cache=False).logits[0, :, : model.shape["vocab_size"]]
    model.train(training)
    return found.float()  # type: ignore[no-any-return]


def rounding(logits: torch.Tensor) -> float:
    """The largest difference that the order of float32 sums may make."""
    return 1e-4 * max(1.0, float(logits.abs().max()))


def open_source(init_from: str) -> Opened:
    """The checkpoint or Hugging Face model that a run is to begin with."""
    try:
        return checkpoint.open(init_from)
    except CheckpointError as error:
        raise CheckpointError(f"model.init_from: {error}") from None
