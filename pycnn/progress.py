"""What `fit` shows: a tqdm bar an epoch where tqdm is installed, a line an epoch otherwise."""

import time
from collections.abc import Callable
from typing import Any

try:
    from tqdm import tqdm
except ImportError:
    tqdm = None

REFRESH = 0.1  # seconds; a bar that is drawn after each step would take longer than the step


def _numbers(values: dict[str, float]) -> str:
    return "  ".join(f"{name} {value:.4g}" for name, value in values.items())


class Progress:
    """verbose 0 shows nothing, 1 a bar, 2 a line an epoch."""

    def __init__(self, verbose: int, epochs: int):
        self._bars = verbose == 1 and tqdm is not None
        self._lines = verbose == 2 or (verbose == 1 and tqdm is None)
        self._epochs = epochs
        self._bar: Any = None

    def begin(self, epoch: int, samples: int | None) -> None:
        if self._bars:
            width = len(str(self._epochs))
            label = f"epoch {epoch + 1:>{width}}/{self._epochs}"
            self._bar = tqdm(total=samples, desc=label, unit=" images", leave=True, dynamic_ncols=True)
            self._shown, self._waiting = 0.0, 0

    def step(self, samples: int, values: Callable[[], dict[str, float]]) -> None:
        if self._bar is not None:
            self._waiting += samples
            now = time.perf_counter()
            if now - self._shown >= REFRESH:
                self._shown = now
                self._show(values())

    def _show(self, values: dict[str, float]) -> None:
        self._bar.set_postfix({k: f"{v:.4g}" for k, v in values.items()}, refresh=False)
        self._bar.update(self._waiting)
        self._waiting = 0

    def end(self, epoch: int, values: dict[str, float]) -> None:
        if self._bar is not None:
            self._show(values)
            self._bar.refresh()
            self.close()
        if self._lines:
            print(f"epoch {epoch + 1}/{self._epochs}  {_numbers(values)}", flush=True)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None
