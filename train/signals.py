"""Leaving on SIGINT and SIGTERM after the current step."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def stop_requests() -> Iterator[Callable[[], int]]:
    """Yield a function that returns the number of the signal that arrived, SIGINT or SIGTERM, else 0.

    The first signal restores the earlier handlers, so that a second one acts at once. Outside the main thread nothing
    is changed.
    """
    requested: list[int] = []
    signals = (signal.SIGINT, signal.SIGTERM) if threading.current_thread() is threading.main_thread() else ()
    earlier = {number: signal.getsignal(number) for number in signals}

    def restore() -> None:
        for number, handler in earlier.items():
            signal.signal(number, handler)

    def request(number: int, frame: object) -> None:
        requested.append(number)
        restore()

    for number in signals:
        signal.signal(number, request)
    try:
        yield lambda: requested[0] if requested else 0
    finally:
        restore()
