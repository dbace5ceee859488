"""What a type checker sees in the decorators of methods, so that it knows a proxy by the class of its agent.

A proxy is typed as the agent's class: ``create_agent(Reader)`` gives a ``Reader``. That is right for a plain method as
it stands. One that gives an `AsyncResult` or a `Stream` must say so to the checker, which reads a class as if it were
called here: a decorator of the package turns the method into a descriptor whose type is that of the proxy's method. At
run time the decorators are those of `agents.marks`, and this module is not loaded. ``docs/typing.rst`` says which
decorator gives what, and what a checker cannot know.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from typing import Any, Concatenate, Generic, ParamSpec, TypeVar, overload

from .result import AsyncResult
from .stream import Stream

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")
F = TypeVar("F")
S_contra = TypeVar("S_contra", contravariant=True)
R_co = TypeVar("R_co", covariant=True)


class SyncMethod(Generic[P, R]):
    """A method whose callers wait for the value."""

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        raise NotImplementedError

    def aio(self, *args: P.args, **kwargs: P.kwargs) -> AsyncResult[R]:
        raise NotImplementedError

    def with_timeout(self, seconds: float | None) -> SyncMethod[P, R]:
        raise NotImplementedError


class AsyncMethod(Generic[P, R]):
    """A method that gives its callers a result at once."""

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> AsyncResult[R]:
        raise NotImplementedError

    def aio(self, *args: P.args, **kwargs: P.kwargs) -> AsyncResult[R]:
        raise NotImplementedError

    def with_timeout(self, seconds: float | None) -> AsyncMethod[P, R]:
        raise NotImplementedError


class StreamMethod(Generic[P, R]):
    """A method that gives its callers items as they are made."""

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> Stream[R]:
        raise NotImplementedError

    def aio(self, *args: P.args, **kwargs: P.kwargs) -> Stream[R]:
        raise NotImplementedError

    def with_timeout(self, seconds: float | None) -> StreamMethod[P, R]:
        raise NotImplementedError


class method(Generic[S_contra, P, R_co]):  # a decorator
    """Mark a method for type checkers: what its callers get follows from how it is written."""

    def __init__(self, function: Callable[Concatenate[S_contra, P], R_co]) -> None:
        raise NotImplementedError

    @overload
    def __get__(
        self: method[S_contra, P, Coroutine[Any, Any, T]], agent: object, owner: Any = None
    ) -> AsyncMethod[P, T]: ...
    @overload
    def __get__(
        self: method[S_contra, P, AsyncIterator[T]], agent: object, owner: Any = None
    ) -> StreamMethod[P, T]: ...
    @overload
    def __get__(self: method[S_contra, P, Iterator[T]], agent: object, owner: Any = None) -> StreamMethod[P, T]: ...
    @overload
    def __get__(self, agent: object, owner: Any = None) -> SyncMethod[P, R_co]: ...
    def __get__(self, agent: object, owner: Any = None) -> Any:
        raise NotImplementedError

    def __call__(self, agent: Any, /, *args: P.args, **kwargs: P.kwargs) -> R_co:
        raise NotImplementedError


class async_func(Generic[S_contra, P, R_co]):
    """Mark a method: its callers get an `AsyncResult` at once."""

    def __init__(self, function: Callable[Concatenate[S_contra, P], R_co]) -> None:
        raise NotImplementedError

    @overload
    def __get__(
        self: async_func[S_contra, P, Coroutine[Any, Any, T]], agent: object, owner: Any = None
    ) -> AsyncMethod[P, T]: ...
    @overload
    def __get__(self, agent: object, owner: Any = None) -> AsyncMethod[P, R_co]: ...
    def __get__(self, agent: object, owner: Any = None) -> Any:
        raise NotImplementedError


class sync_func(Generic[S_contra, P, R_co]):
    """Mark a method: its callers wait for the value."""

    def __init__(self, function: Callable[Concatenate[S_contra, P], R_co]) -> None:
        raise NotImplementedError

    @overload
    def __get__(
        self: sync_func[S_contra, P, Coroutine[Any, Any, T]], agent: object, owner: Any = None
    ) -> SyncMethod[P, T]: ...
    @overload
    def __get__(self, agent: object, owner: Any = None) -> SyncMethod[P, R_co]: ...
    def __get__(self, agent: object, owner: Any = None) -> Any:
        raise NotImplementedError


class stream_func(Generic[S_contra, P, R_co]):
    """Mark a method: it returns an iterator whose items are sent one by one."""

    def __init__(self, function: Callable[Concatenate[S_contra, P], R_co]) -> None:
        raise NotImplementedError

    @overload
    def __get__(
        self: stream_func[S_contra, P, AsyncIterator[T]], agent: object, owner: Any = None
    ) -> StreamMethod[P, T]: ...
    @overload
    def __get__(
        self: stream_func[S_contra, P, Iterator[T]], agent: object, owner: Any = None
    ) -> StreamMethod[P, T]: ...
    def __get__(self, agent: object, owner: Any = None) -> Any:
        raise NotImplementedError


def concurrent(function: F) -> F:
    """Mark a method, under any other decorator of these: it runs beside the agent's turn."""
    raise NotImplementedError


def idempotent(function: F) -> F:
    """Mark a method, under any other decorator of these: running it twice does no harm."""
    raise NotImplementedError


def once(function: F) -> F:
    """Mark a method, under any other decorator of these: it changes its agent's state once, whatever is sent again."""
    raise NotImplementedError
