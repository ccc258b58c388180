"""Progress of long calls: a tqdm bar, a callable, or nothing. Without torch."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

logger = logging.getLogger("shardwright")


class Bar:
    """`report` is what the extension calls with the bytes done and the bytes to do; None where nobody wants to know."""

    def __init__(self, wanted: bool | Callable[[int, int], object]) -> None:
        self.bar: Any = None
        self.call = wanted if callable(wanted) else None
        self.done = 0
        if wanted is True:
            try:
                from tqdm.auto import tqdm
            except ImportError:
                logger.info("progress: tqdm is not installed")
            else:
                self.bar = tqdm(unit="B", unit_scale=True, desc="shardwright")
        self.report: Callable[[int, int], None] | None = self.update if self.bar is not None or self.call is not None else None

    def update(self, done: int, total: int) -> None:
        if self.call is not None:
            self.call(done, total)
        if self.bar is not None:
            self.bar.total = total
            self.bar.update(done - self.done)
            self.done = done

    def close(self) -> None:
        if self.bar is not None:
            self.bar.close()
