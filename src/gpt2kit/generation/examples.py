"""Example prompts for a model: those of its run, or the first words of documents that it generates."""

from __future__ import annotations

from typing import Any

from gpt2kit.checkpoint.validation import lookup
from gpt2kit.generation.generator import Generator
from gpt2kit.generation.options import GenerationOptions
from gpt2kit.runs.pages import valid_unicode

# Maximum number of example prompts.
_MAX_EXAMPLES = 4


def find_examples(metadata: dict[str, Any], max_characters: int) -> list[str]:
    """Return the prompts of the callbacks in a run's settings, without longer ones."""
    callbacks = lookup(metadata, "settings", "trainer", "callbacks")
    examples: list[str] = []
    for callback in callbacks if isinstance(callbacks, list) else []:
        prompts = lookup(callback, "init_args", "prompts")
        examples += [text for text in prompts if isinstance(text, str)] if isinstance(prompts, list) else []
    return [valid_unicode(text) for text in examples if len(text) <= max_characters][:_MAX_EXAMPLES]


def generate_examples(generator: Generator) -> list[str]:
    """Return the first words of documents that the model generates."""
    if generator.eos is None:  # a text cannot begin without a prompt
        return []
    options = GenerationOptions(temperature=0.7, top_p=0.9, num_samples=2 * _MAX_EXAMPLES, max_new_tokens=8)
    texts: dict[int, str] = {}
    for chunk in generator.generate([""], options):
        texts[chunk.sample] = texts.get(chunk.sample, "") + chunk.text
    lines = [text.strip().split("\n")[0] for text in texts.values()]
    # The last word may be incomplete.
    examples = [line.rsplit(" ", 1)[0] for line in lines]
    # U+FFFD stands for bytes of a character that is not complete.
    return list(dict.fromkeys(text for text in examples if text.strip() and "\ufffd" not in text))[:_MAX_EXAMPLES]
