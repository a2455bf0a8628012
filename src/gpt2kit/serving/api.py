"""The service by HTTP, in the form of OpenAI's completions: `POST /v1/completions`, `GET /v1/models`."""

from __future__ import annotations

import base64
import json
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from gpt2kit.errors import UserError, refuse
from gpt2kit.generation.generator import Piece, Wish
from gpt2kit.generation.sampling import Rules
from gpt2kit.serving.models import Service

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response
    from starlette.routing import Route

_NUMBERS: dict[str, tuple[type, float]] = {
    "max_tokens": (int, 16),
    "n": (int, 1),
    "temperature": (float, 1.0),
    "top_p": (float, 1.0),
    "top_k": (int, 0),
    "min_p": (float, 0.0),
    "repetition_penalty": (float, 1.0),
    "seed": (int, 1),
}
_WAITING = 32
"""Requests that may wait for their turn; more are told to come back."""


def routes(service: Service, auth: tuple[str, str] | None, at_once: int) -> list[Route]:
    """The two addresses; `at_once` texts are written at a time."""
    from starlette.concurrency import run_in_threadpool
    from starlette.responses import JSONResponse, StreamingResponse
    from starlette.routing import Route

    turns, room = threading.Semaphore(at_once), threading.Semaphore(at_once + _WAITING)

    def guarded(answer: Callable[[Any], Any]) -> Callable[[Request], Any]:
        async def checked(request: Request) -> Response:
            if not allowed(request.headers.get("authorization", ""), auth):
                return JSONResponse(complaint("wrong or missing password"), 401, {"WWW-Authenticate": "Basic"})
            try:
                return await answer(request)
            except UserError as error:
                return JSONResponse(complaint(str(error)), 400)

        return checked

    async def models(request: Request) -> Response:
        listed = [{"id": name, "object": "model", **model.facts} for name, model in service.models.items()]
        return JSONResponse({"object": "list", "data": listed})

    async def completions(request: Request) -> Response:
        name, prompts, wish, streamed = read(await request.body(), service)
        refuse(service.problems(prompts, wish))
        if not room.acquire(blocking=False):
            return JSONResponse(complaint("too many requests are waiting. Try again in a while"), 429)
        room.release()  # taken again once the answer begins, which one whose asker has left never does
        pieces = in_turn(service.write(name, prompts, wish), turns, room)
        head = {"id": f"cmpl-{secrets.token_hex(8)}", "created": int(time.time()), "model": name}
        if streamed:
            return StreamingResponse(events(head, pieces, wish), media_type="text/event-stream")
        return JSONResponse(await run_in_threadpool(whole, head, pieces, wish))

    return [
        Route("/v1/models", guarded(models), methods=["GET"]),
        Route("/v1/completions", guarded(completions), methods=["POST"]),
    ]


def read(body: bytes, service: Service) -> tuple[str, list[str], Wish, bool]:
    """What a request asks for: model, prompts, wish, and whether to stream."""
    try:
        asked = json.loads(body)
    except (ValueError, RecursionError):
        raise UserError("the request is not JSON") from None
    if not isinstance(asked, dict):
        raise UserError("the request is no JSON object")
    prompts = asked.get("prompt", "")
    prompts = [prompts] if isinstance(prompts, str) else prompts
    stop = asked.get("stop") or []
    stop = [stop] if isinstance(stop, str) else stop
    if not isinstance(prompts, list) or not all(isinstance(prompt, str) for prompt in prompts):
        raise UserError("prompt: a text or a list of texts")
    if not isinstance(stop, list) or not all(isinstance(word, str) for word in stop):
        raise UserError("stop: a text or a list of texts")
    found: dict[str, Any] = {}
    for name, (kind, default) in _NUMBERS.items():
        value = asked.get(name)
        value = default if value is None else value
        number = isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 1 << 53
        if not number or (kind is int and value != int(value)):
            raise UserError(f"{name}: {'a whole number' if kind is int else 'a number'}")
        found[name] = kind(value)
    rules = Rules(
        temperature=found["temperature"],
        top_k=found["top_k"],
        top_p=found["top_p"],
        min_p=found["min_p"],
        repetition_penalty=found["repetition_penalty"],
        seed=found["seed"],
    )
    wish = Wish(rules, num_samples=found["n"], max_new_tokens=found["max_tokens"], stop=tuple(stop))
    name = asked.get("model") or next(iter(service.models))
    return str(name), prompts, wish, bool(asked.get("stream"))


def in_turn(pieces: Iterator[Piece], turns: threading.Semaphore, room: threading.Semaphore) -> Iterator[Piece]:
    """The pieces, once it is this request's turn."""
    with room, turns:
        yield from pieces


def whole(head: dict[str, Any], pieces: Iterator[Piece], wish: Wish) -> dict[str, Any]:
    """The answer in one go."""
    choices: dict[int, dict[str, Any]] = {}
    tokens: dict[int, int] = {}
    for piece in pieces:
        index = piece.prompt * wish.num_samples + piece.sample
        choice = choices.setdefault(index, {"index": index, "text": "", "finish_reason": None, "logprobs": None})
        choice["text"] += piece.text
        choice["finish_reason"] = reason(piece)
        tokens[index] = piece.tokens
    listed = [choices[index] for index in sorted(choices)]
    return {
        **head,
        "object": "text_completion",
        "choices": listed,
        "usage": {"completion_tokens": sum(tokens.values())},
    }


def events(head: dict[str, Any], pieces: Iterator[Piece], wish: Wish) -> Iterator[str]:
    """The answer as it is written, as server-sent events."""
    try:
        for piece in pieces:
            if piece.text or piece.end:
                index = piece.prompt * wish.num_samples + piece.sample
                choice = {"index": index, "text": piece.text, "finish_reason": reason(piece), "logprobs": None}
                answer = {**head, "object": "text_completion", "choices": [choice]}
                yield f"data: {json.dumps(answer, ensure_ascii=False)}\n\n"
    except UserError as error:
        yield f"data: {json.dumps(complaint(str(error)))}\n\n"
    yield "data: [DONE]\n\n"


def reason(piece: Piece) -> str | None:
    """Why a text has ended, in OpenAI's words."""
    return {"": None, "length": "length"}.get(piece.end, "stop")


def complaint(message: str) -> dict[str, Any]:
    """An error, in OpenAI's form."""
    return {"error": {"message": message, "type": "invalid_request_error"}}


def allowed(header: str, auth: tuple[str, str] | None) -> bool:
    """Whether the request names the user and password, or, as OpenAI's clients do, the password as a key."""
    if auth is None:
        return True
    kind, _, value = header.partition(" ")
    if kind.lower() == "bearer":
        return secrets.compare_digest(value.strip().encode(), auth[1].encode())
    try:
        given = base64.b64decode(value, validate=True)
    except ValueError:
        return False
    return kind.lower() == "basic" and secrets.compare_digest(given, ":".join(auth).encode())
