"""Ctrl-C as a request: the loop stops where its state can be saved."""

import signal
import threading
from types import FrameType, TracebackType
from typing import Any

__all__ = ["CtrlC", "Interrupted"]


class Interrupted(KeyboardInterrupt):
    """Training was interrupted ``where``, at a step boundary; the message says what was saved and how to go on."""

    def __init__(self, where: str, saved: str) -> None:
        super().__init__(f"{where}; {saved}")
        self.where = where


class CtrlC:
    """Inside the ``with`` block the first Ctrl-C sets ``requested``; a second one interrupts at once, as usual.

    Without effect outside the main thread, and where the program handles the signal in its own way.
    """

    requested = False
    _previous: Any = None

    def __enter__(self) -> "CtrlC":
        ours = threading.current_thread() is threading.main_thread()
        if ours and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            self._previous = signal.signal(signal.SIGINT, self._request)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._previous is not None:
            signal.signal(signal.SIGINT, self._previous)

    def _request(self, number: int, frame: FrameType | None) -> None:
        self.requested = True
        signal.signal(signal.SIGINT, self._previous)
