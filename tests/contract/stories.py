"""Lets tests be coroutines: each gets an event loop of its own. A conftest imports `pytest_pyfunc_call` from here.

Elsewhere a single test is marked with `@story`.

A fixture that holds connections has a coroutine `aclose`, which is awaited at the end of the test, in its loop.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
from collections.abc import Callable, Coroutine
from typing import Any, ParamSpec

import pytest

P = ParamSpec("P")


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    if not inspect.iscoroutinefunction(pyfuncitem.obj):
        return None
    names = inspect.signature(pyfuncitem.obj).parameters
    given = {name: pyfuncitem.funcargs[name] for name in names}

    async def story() -> None:
        try:
            await pyfuncitem.obj(**given)
        finally:
            for value in given.values():
                if hasattr(value, "aclose"):
                    await value.aclose()

    asyncio.run(story())
    return True


def story(function: Callable[P, Coroutine[Any, Any, None]]) -> Callable[P, None]:
    """Make an ordinary test of a coroutine."""

    @functools.wraps(function)
    def test(*args: P.args, **kwargs: P.kwargs) -> None:
        asyncio.run(function(*args, **kwargs))

    return test
