"""Run a function in many threads at once."""

import threading
from collections.abc import Callable

LONG = 60.0  # seconds that nothing here takes


def in_threads(work: Callable[[int], None], count: int = 8) -> None:
    """Call `work` with 0, 1, ... in as many threads at once; the first failure is raised here."""
    failures: list[BaseException] = []

    def guarded(number: int) -> None:
        try:
            work(number)
        except BaseException as error:  # noqa: BLE001 - raised below
            failures.append(error)

    threads = [threading.Thread(target=guarded, args=(number,), daemon=True) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(LONG)
    assert not any(thread.is_alive() for thread in threads), "threads wait for each other"
    if failures:
        raise failures[0]
