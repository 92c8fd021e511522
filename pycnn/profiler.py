"""Where the time of a training step or a prediction goes: a row a layer.

The plan is run call by call, each timed alone, so that every call also pays for starting the threads (1 to 2 us);
the best of many passes counts. Operations are the multiplications and additions of direct convolution and matrix
products, so that Winograd's algorithm may show more than the machine's peak; bytes are those of each array that a
call reads or writes, counted once.
"""

import copy
import json
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pycnn import calls, native
from pycnn.executor import backend
from pycnn.plan import Arena, Binding, PlanBuilder

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SECONDS, LEAST_PASSES = 0.5, 3
PARTS = ("forward", "backward", "update")


@dataclass
class Row:
    """A layer's seconds by part, its operations and the bytes that it moves."""

    layer: str
    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(PARTS, 0.0))
    operations: int = 0
    bytes: int = 0

    @property
    def total(self) -> float:
        return sum(self.seconds.values())


@dataclass
class Profile:
    """What `model.profile` measured; `str` gives the table."""

    rows: list[Row]
    batch: int
    peak_gflops: float  # measured: multiply-adds in registers
    copy_gbs: float  # measured: a copy of arrays beyond the caches, bytes read and written
    sort: bool = False

    @property
    def seconds(self) -> float:
        return sum(row.total for row in self.rows)

    def ordered(self) -> list[Row]:
        """The rows in the order of the layers, or the longest first."""
        return sorted(self.rows, key=lambda row: -row.total) if self.sort else self.rows

    def as_dicts(self) -> list[dict[str, Any]]:
        """Each row with its share of the time, its rate, and the share of the machine's peak that it reaches."""
        rows = []
        for row in self.ordered():
            time_taken = max(row.total, 1e-12)
            rate, unit, peak = row.operations / time_taken * 1e-9, "GFLOP/s", self.peak_gflops
            if not row.operations:
                rate, unit, peak = row.bytes / time_taken * 1e-9, "GB/s", self.copy_gbs
            rates = {"rate": rate, "unit": unit, "share_of_peak": rate / peak}
            rows.append(asdict(row) | {"share": row.total / self.seconds} | rates)
        return rows

    def __str__(self) -> str:
        parts = [part for part in PARTS if any(row.seconds[part] for row in self.rows)]
        head = f"{'layer':<24}" + "".join(f"{part:>12}" for part in parts) + f"{'share':>8}{'rate':>16}{'of peak':>9}"
        lines = [head, "-" * len(head)]
        for row in self.as_dicts():
            times = "".join(f"{row['seconds'][part] * 1e3:9.3f} ms" for part in parts)
            rate = f"{row['rate']:8.1f} {row['unit']:<7}"
            lines.append(f"{row['layer']:<24}{times}{row['share']:8.1%}{rate:>16}{row['share_of_peak']:9.0%}")
        lines.append(lines[1])
        lines.append(
            f"{self.seconds * 1e3:.3f} ms for {self.batch} images on {native.get_num_threads()} thread(s); "
            f"measured peaks: {self.peak_gflops:.0f} GFLOP/s, copy {self.copy_gbs:.1f} GB/s"
        )
        return "\n".join(lines)

    def to_json(self, path: str | Path) -> None:
        """Writes the rows and the machine's peaks."""
        peaks = {"batch": self.batch, "peak_gflops": self.peak_gflops, "copy_gbs": self.copy_gbs}
        Path(path).write_text(json.dumps(peaks | {"rows": self.as_dicts()}, indent=2))

    def plot(self, path: str | Path | None = None) -> "Figure":
        """A bar a layer, cut into its parts; needs the extra pycnn[plot]."""
        from pycnn import plot

        return plot.profile(self, path)


def profile(model: Any, x: Any, y: Any, sort: bool) -> Profile:
    """The profile of a training step on x and y, or, where y is None, of a prediction; on a copy of the model."""
    model = copy.deepcopy(model)
    x = model._input_array("profile", x)
    if x.ndim == 0 or len(x) == 0:
        raise ValueError("[profile] x is empty")
    with backend("c"):
        if y is None:
            model._ready(x).predict(x, model._ready(x)._output(len(x)))
        else:
            model._compiled("profile")
            executor, x, labels, kind = model._data("profile", x, y)
            executor.train(x, labels, model._loss, kind, model._updates, 0.0)
            for state in model._updates.states:
                state[0] = 0  # the learning rate: timing must not lead to numbers that no training has
        executor = model._ready(x)
    binding = executor.last_binding()
    plan, first = binding.plan, binding.plan.marks["prepared"]
    names = list(dict.fromkeys(node.layer.name for node in executor.graph.nodes))
    rows = {name: Row(name) for name in ("input", *names, "loss", "output")}
    for call, seconds in enumerate(_best_times(binding, first), first):
        layer, part = plan.owners[call]
        row = rows[layer]
        row.seconds[part] += seconds
        row.operations += _operations(plan.kernels[call][1])
        row.bytes += binding.bytes_moved(call)
    used = [row for row in rows.values() if row.total]
    return Profile(used, len(x), native.peak_gflops(), _copy_rate(), sort)


def _best_times(binding: Binding, first: int) -> list[float]:
    best = np.full(binding.plan.length - first, np.inf)
    end, passes = time.perf_counter() + SECONDS, 0
    while passes < LEAST_PASSES or time.perf_counter() < end:
        for i in range(len(best)):
            began = time.perf_counter()
            binding.run(first + i, first + i + 1)
            best[i] = min(best[i], time.perf_counter() - began)
        passes += 1
    return best.tolist()


def _operations(desc: Any) -> int:
    """Two for each multiply-add of a convolution or matrix product, none for other kernels."""
    if hasattr(desc, "groups"):
        return 2 * desc.n * desc.oh * desc.ow * desc.k * desc.c // desc.groups * desc.r * desc.s
    return 2 * desc.m * desc.n * desc.k if hasattr(desc, "m") else 0


def _copy_rate(floats: int = 1 << 24) -> float:
    """GB/s, read and written, of our copy of a large array on all threads."""
    builder = PlanBuilder()
    calls.copy(builder, floats, builder.external("to"), builder.external("x"))
    plan = builder.finish()
    binding = plan.bind({"x": np.ones(floats, np.float32), "to": np.zeros(floats, np.float32)}, Arena(0))
    best = min(_best_times(binding, 0))
    return 8 * floats / best * 1e-9
