"""The page of the web demo: its controls, and its content while text is generated. All text on it is escaped."""

from __future__ import annotations

import asyncio
import contextlib
import html
import logging
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gpt2kit.errors import UserError, first_line, refuse
from gpt2kit.generation.decoder import SampledToken
from gpt2kit.generation.generator import Generator
from gpt2kit.generation.options import GenerationOptions
from gpt2kit.runs import pages
from gpt2kit.serving import download, models
from gpt2kit.serving.download import Downloads
from gpt2kit.serving.models import Model, Service
from gpt2kit.serving.requests import Clients, Turns, in_thread
from gpt2kit.tokenization.tokenizer import EOS

if TYPE_CHECKING:
    import gradio

logger = logging.getLogger(__name__)

# Number of the most likely tokens to show with each sampled one.
_ALTERNATIVES = 5
# Maximum number of tokens of a text to show with alternatives.
_MAX_TOKENS = 2000
# Events of each kind that Gradio starts at the same time; most of them wait. And the number of all its events.
_MAX_WAITING = 64
_MAX_EVENTS = 256
# Seconds that the page waits for a model to be loaded.
_WAIT_TIMEOUT = 600
# Seconds between two updates of the page.
_UPDATE_INTERVAL = 0.08
_DOWNLOAD = """(text) => {
  const link = document.createElement('a');
  link.href = URL.createObjectURL(new Blob([text ?? ''], {type: 'text/plain;charset=utf-8'}));
  link.download = 'text.txt';
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}"""
# Follows the link of a note. An element of the parsed document could not be clicked.
_FOLLOW = """(note) => {
  const anchor = new DOMParser().parseFromString(note ?? '', 'text/html').querySelector('a');
  if (!anchor) return;
  const link = document.createElement('a');
  link.href = anchor.getAttribute('href');
  link.download = '';
  link.click();
}"""
STYLE = """
.gradio-container { max-width: 1100px !important; margin: 0 auto !important; }
#text textarea { font-size: 1.05rem; line-height: 1.6; }
.tokens { line-height: 2.1; overflow-wrap: anywhere; padding: .5rem 0; }
.tokens .t { unicode-bidi: isolate; white-space: pre-wrap; border-radius: 3px; padding: 1px 0;
  background: color-mix(in srgb, #e8743b calc(var(--surprise) * 1%), transparent); cursor: default; }
.tokens .t > .a { display: none; position: fixed; left: 50%; bottom: 1rem; transform: translateX(-50%); z-index: 99;
  white-space: pre; padding: .5rem .8rem; max-width: 94vw; overflow: hidden; pointer-events: none;
  border-radius: 6px; background: var(--background-fill-primary); color: var(--body-text-color);
  border: 1px solid var(--border-color-primary); font-size: .9rem; line-height: 1.5; box-shadow: 0 4px 14px #0006; }
.tokens .t:hover > .a, .tokens .t:focus > .a { display: block; }
.tokens:hover .t:focus:not(:hover) > .a { display: none; }
.facts { opacity: .85; font-size: .92rem; }
.facts a { color: inherit !important; margin: 0 !important; padding: 0 !important; }
.label-wrap { text-align: left; }
footer { display: none !important; }
"""


def build(
    service: Service, max_concurrency: int, clients: Clients, downloads: Downloads | None = None
) -> gradio.Blocks:
    """Build the page; `max_concurrency` requests are computed at the same time, while their clients are connected."""
    import gradio as gr

    names, turns, page_turns = list(service.models), Turns(max_concurrency), Turns(1)

    async def generate(request: Any, name: Any, *values: Any) -> AsyncIterator[tuple[Any, Any, str]]:
        def is_wanted() -> bool:
            return clients.is_present(request.session_hash)

        try:
            with turns.queued() as turn:
                async for before in turns.wait(turn, is_wanted):
                    yield gr.skip(), gr.skip(), f"Requests before this one: {before}"
                stalled = service.models[name].stalled if name in service.models else []
                contents = in_thread(generate_content(service, name, *values), is_wanted, stalled)
                async with contextlib.aclosing(contents):
                    async for content in contents:
                        yield content
        except UserError as error:
            raise gr.Error(html.escape(str(error)), duration=None, print_exception=False) from None
        except Exception as error:
            logger.warning(f"{name}: {type(error).__name__}: {first_line(error)}")
            message = f"{name}: cannot generate text ({type(error).__name__}). Select another model or prompt"
            raise gr.Error(html.escape(message), duration=None, print_exception=False) from None

    async def show_model(request: Any, name: Any) -> AsyncIterator[tuple[Any, ...]]:
        model = service.models.get(name)
        if model is None:
            return
        disabled = gr.update(interactive=False)
        yield format_facts(model), gr.skip(), disabled, *((disabled, "") if downloads else ())
        until = time.monotonic() + _WAIT_TIMEOUT
        while not model.done.is_set() and clients.is_present(request.session_hash) and time.monotonic() < until:
            await asyncio.sleep(0.1)
        examples = gr.update(choices=model.examples, value=None)
        usable = gr.update(interactive=model.generator is not None)
        yield format_facts(model), examples, usable, *((usable, gr.skip()) if downloads else ())

    async def prepare(request: Any, name: Any) -> AsyncIterator[str]:
        assert downloads is not None

        def is_wanted() -> bool:
            return clients.is_present(request.session_hash)

        try:
            with page_turns.queued() as page_turn:
                async for before in page_turns.wait(page_turn, is_wanted):
                    yield format_note(f"Pages before this one: {before}")
                with turns.queued() as turn:
                    async for before in turns.wait(turn, is_wanted):
                        yield format_note(f"Requests before this one: {before}")
                    yield format_note("Preparing the page ...")
                    stalled = service.models[name].stalled if name in service.models else []
                    steps = in_thread(downloads.prepare(str(name)), is_wanted, stalled)
                    async with contextlib.aclosing(steps):
                        async for _ in steps:
                            pass
            if file := downloads.ready(str(name)):  # else the client has left
                yield format_link(str(name), file)
        except UserError as error:
            yield format_note(str(error))
        except Exception as error:
            logger.warning(f"{name}: {type(error).__name__}: {first_line(error)}")
            yield format_note(f"{name}: the page cannot be prepared ({type(error).__name__})")

    for function in (generate, show_model, prepare):
        function.__annotations__["request"] = gr.Request  # how Gradio recognizes this parameter

    with gr.Blocks(title="gpt2kit", analytics_enabled=False) as blocks:
        with gr.Row():
            with gr.Column(scale=2, min_width=300):
                model = gr.Dropdown(names, value=names[0], label="Model", filterable=False)
                facts = gr.HTML(format_facts(service.models[names[0]]))
                if downloads:
                    get_page = gr.Button("Download the model as HTML", size="md", interactive=False)
                    note = gr.HTML("")
                prompt = gr.Textbox(label="Prompt", lines=4, max_lines=12, max_length=models.MAX_CHARACTERS)
                example = gr.Dropdown([], label="Example prompts", filterable=False)
                with gr.Row():
                    start = gr.Button("Generate", variant="primary", min_width=120, interactive=False)
                    stop = gr.Button("Stop", min_width=120)
                tokens = gr.Slider(1, models.MAX_NEW_TOKENS, 150, step=1, label="Max new tokens")
                temperature = gr.Slider(0, models.MAX_TEMPERATURE, 0.8, step=0.05, label="Temperature (0: greedy)")
                samples = gr.Slider(1, models.MAX_SAMPLES, 1, step=1, label="Number of samples")
                seed = gr.Number(1, label="Seed", info="The same seed reproduces the same text", precision=0)
                with gr.Accordion("Advanced options", open=False):
                    top_k = gr.Slider(0, 200, 0, step=1, label="Top-k (0: off)")
                    top_p = gr.Slider(0.05, 1, 0.95, step=0.01, label="Top-p (1: off)")
                    penalty = gr.Slider(1, 2, 1, step=0.05, label="Repetition penalty (1: off)")
            with gr.Column(scale=3, min_width=300):
                text = gr.Textbox(
                    label="Generated text", lines=12, max_lines=40, buttons=["copy"], elem_id="text", interactive=False
                )
                with gr.Row():
                    status = gr.HTML("", min_height=24)
                    save = gr.Button("Download", size="sm", min_width=120)
                with gr.Accordion("Token probabilities (stronger color: less likely; hover or tap for alternatives)"):
                    tokens_view = gr.HTML("", elem_id="tokens")
        private: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden", "preprocess": False}
        event: dict[str, Any] = {
            "inputs": [model, prompt, tokens, temperature, top_k, top_p, penalty, samples, seed],
            "outputs": [text, tokens_view, status],
            "scroll_to_output": True,  # on a phone the text is below the controls
            "concurrency_limit": _MAX_WAITING,
            "concurrency_id": "generate",
            **private,
        }
        generating = [start.click(generate, **event), prompt.submit(generate, **event)]
        stop.click(None, cancels=generating, **private)
        save.click(None, [text], js=_DOWNLOAD, **private)
        example.input(None, [example], [prompt], js="(choice) => choice ?? ''", **private)
        outputs = [facts, example, start, *((get_page, note) if downloads else ())]
        for trigger in (model.change, blocks.load):
            trigger(show_model, [model], outputs, concurrency_limit=_MAX_WAITING, **private)
        if downloads:
            prepared = get_page.click(prepare, [model], [note], concurrency_limit=_MAX_WAITING, **private)
            prepared.success(None, [note], js=_FOLLOW, **private)
    blocks.max_threads = _MAX_EVENTS
    blocks.queue(max_size=64, api_open=False)
    return blocks


def generate_content(
    service: Service,
    name: str,
    prompt: str,
    max_new_tokens: float,
    temperature: float,
    top_k: float,
    top_p: float,
    penalty: float,
    num_samples: float,
    seed: float,
) -> Iterator[tuple[str, str, str]]:
    """Yield the content of the page while text is generated: the texts, the tokens as HTML, and the status."""
    try:
        options = GenerationOptions(
            temperature=float(temperature),
            top_k=int(top_k),
            top_p=float(top_p),
            repetition_penalty=float(penalty),
            seed=int(seed or 0),
            num_samples=int(num_samples) if temperature else 1,  # at temperature 0 all samples would be the same
            max_new_tokens=int(max_new_tokens),
        )
    except (TypeError, ValueError, OverflowError):
        raise UserError("a setting is not a number") from None
    prompt = str(prompt or "")
    refuse(models.request_problems(prompt, options))
    generator = service.generator(str(name))
    texts = [prompt] * options.num_samples
    sampled: list[list[SampledToken]] = [[] for _ in texts]
    counts = [0] * options.num_samples
    start, last_update = time.monotonic(), 0.0
    for chunk in generator.generate([prompt], options, alternatives=_ALTERNATIVES):
        texts[chunk.sample] += chunk.text
        if chunk.sampled:
            sampled[chunk.sample].append(chunk.sampled)
        counts[chunk.sample] = chunk.tokens
        if time.monotonic() - last_update > _UPDATE_INTERVAL:
            last_update = time.monotonic()
            yield join_texts(texts), "", f"{sum(counts)} tokens"
    seconds = max(time.monotonic() - start, 1e-3)
    tokens = (tokens_html(generator, row) for row in sampled)
    yield join_texts(texts), "<hr>".join(tokens), f"{sum(counts)} tokens, {sum(counts) / seconds:,.0f} tokens/s"


def join_texts(texts: list[str]) -> str:
    """Join texts with a line between them."""
    return ("\n\n" + "─" * 12 + "\n\n").join(texts)


def tokens_html(generator: Generator, sampled: list[SampledToken]) -> str:
    """Return each token, darker the less likely it was, with its alternatives. All text in it is escaped."""
    spans = []
    for item in sampled[:_MAX_TOKENS]:
        text = show_token(generator, item.token)
        rows = [f"{text}  {item.probability:.1%}  sampled"]
        rows += [f"{show_token(generator, token)}  {probability:.1%}" for token, probability in item.most_likely]
        alternatives = "&#10;".join(html.escape(row.replace("\n", "")) for row in rows)
        spans.append(
            f'<span class="t" tabindex="0" style="--surprise:{60 * (1 - item.probability):.0f}">{html.escape(text)}'
            f'<span class="a">{alternatives}</span></span>'
        )
    return f'<div class="tokens">{"".join(spans)}</div>'


def show_token(generator: Generator, token: int) -> str:
    """Return a token as visible text; a part of a character as its bytes."""
    if token == generator.eos:
        return EOS
    raw = generator.token_bytes(token)
    try:
        return pages.visible(raw.decode())
    except UnicodeDecodeError:
        return raw.hex(" ").upper()


def format_facts(model: Model) -> str:
    """Return the facts about a model as HTML, escaped."""
    facts = " · ".join(f"{name}: {value}" for name, value in model.facts.items())
    return f'<div class="facts">{html.escape(model.failure or facts or "Loading the model ...")}</div>'


def format_note(text: str) -> str:
    """Return the state of a download as HTML, escaped."""
    return f'<div class="facts" role="status">{html.escape(text)}</div>'


def format_link(name: str, file: Path) -> str:
    """Return a link to the page of a model, and its size."""
    link = f'<a href="{html.escape(download.link(name))}" download>{html.escape(download.file_name(name))}</a>'
    return f'<div class="facts" role="status">{link} ({file.stat().st_size / 1e6:,.1f} MB)</div>'
