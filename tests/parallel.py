"""Races, made as likely as threads can make them."""

import threading
from collections.abc import Callable
from typing import TypeVar

Result = TypeVar("Result")


def at_once(threads: int, act: Callable[[int], Result]) -> list[Result]:
    """Call `act(0)`, `act(1)`, ... from threads that start together; the first exception is raised again here."""
    start = threading.Barrier(threads)
    results: list[Result] = []
    errors: list[BaseException] = []

    def run(number: int) -> None:
        start.wait()
        try:
            results.append(act(number))
        except BaseException as error:
            errors.append(error)

    running = [threading.Thread(target=run, args=(number,), daemon=True) for number in range(threads)]
    for thread in running:
        thread.start()
    for thread in running:
        thread.join()
    if errors:
        raise errors[0]
    return results
