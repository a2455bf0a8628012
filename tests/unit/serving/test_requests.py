"""Requests whose client leaves, that wait for their turn, or that never end."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import pytest

from gpt2kit.errors import UserError
from gpt2kit.serving.requests import Clients, Turns, in_thread

Result = TypeVar("Result")


def run(coroutine: Coroutine[Any, Any, Result]) -> Result:
    """Run a coroutine in a thread of its own: `asyncio.run` would drop the event loop that gradio made in this one."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(asyncio.run, coroutine).result()


class PanicException(BaseException):
    """What the tokenizers library raises."""


def test_a_client_is_present_while_its_stream_is_open() -> None:
    clients = Clients(connect_timeout=0.2)
    assert not clients.is_present("a")
    clients.request("a")
    assert clients.is_present("a") and not clients.is_present("b")
    with clients.stream("a"):
        time.sleep(0.3)
        assert clients.is_present("a")
    assert not clients.is_present("a")
    clients.request("b")
    time.sleep(0.3)
    assert not clients.is_present("b")


def test_requests_run_in_order_and_those_of_lost_clients_are_dropped() -> None:
    turns, started = Turns(1), list[str]()
    present = {"a", "b", "c"}

    async def request(name: str, seconds: float) -> list[int]:
        with turns.queued() as turn:
            before = [count async for count in turns.wait(turn, lambda: name in present)]
            if name in present:
                started.append(name)
                await asyncio.sleep(seconds)
        return before

    async def all_requests() -> list[list[int]]:
        tasks = [asyncio.create_task(request(name, 0.5)) for name in "abc"]
        await asyncio.sleep(0.1)
        present.discard("b")
        return await asyncio.gather(*tasks)

    first, _, third = run(all_requests())
    assert started == ["a", "c"] and not first and third[0] == 2 and third[-1] == 1


def numbers(seen: list[int]) -> Iterator[int]:
    for number in range(1000):
        seen.append(number)
        time.sleep(0.01)
        yield number


def test_a_thread_stops_when_its_items_are_not_wanted() -> None:
    seen, until = list[int](), time.monotonic() + 0.3

    async def consume() -> list[int]:
        return [item async for item in in_thread(numbers(seen), lambda: time.monotonic() < until, [])]

    assert run(consume())
    count = len(seen)
    time.sleep(0.3)
    assert len(seen) <= count + 1 < 100


@pytest.mark.parametrize("error", [UserError("no"), PanicException("panic"), SystemExit(3)])
def test_an_error_in_a_thread_reaches_the_request(error: BaseException) -> None:
    def items() -> Iterator[int]:
        yield 1
        raise error

    async def consume() -> None:
        async for _ in in_thread(items(), lambda: True, []):
            pass

    with pytest.raises((UserError, RuntimeError), match=r"no|panic|3"):
        run(consume())


def test_a_thread_that_does_not_respond_is_given_up() -> None:
    end, stalled = threading.Event(), list[threading.Thread]()

    def items() -> Iterator[int]:
        end.wait()
        yield 1

    async def consume() -> None:
        async for _ in in_thread(items(), lambda: True, stalled, stall_timeout=0.1):
            pass

    with pytest.raises(UserError, match="did not respond"):
        run(consume())
    assert stalled[0].is_alive()
    end.set()
    stalled[0].join()
