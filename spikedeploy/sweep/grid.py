"""All points of a sweep, over as many processes as joblib is told to use."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
import numpy.typing as npt

from spikedeploy.errors import BadInput, message
from spikedeploy.plain import dump_program
from spikedeploy.program import Program
from spikedeploy.runtime.reference import check_input
from spikedeploy.sweep.point import Point, Trace, evaluate, trace
from spikedeploy.topk import Keep, memories_of, with_topk

Answers = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class Sweep:
    """What `sweep` found: the `full` model, then the `points`, keys outermost.

    labelled  whether accuracy is against labels; otherwise it is agreement with the full model
    """

    program_digest: str
    steps: int
    batch: int
    labelled: bool
    full: Point
    points: tuple[Point, ...]

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {
            "format": "spikedeploy.sweep",
            "version": 1,
            "program_digest": self.program_digest,
            "steps": self.steps,
            "batch": self.batch,
            "accuracy_against": "labels" if self.labelled else "the full model",
            "full": self.full.as_dict(),
            "points": [point.as_dict() for point in self.points],
        }


def sweep(
    program: Program,
    x: npt.ArrayLike,
    labels: npt.ArrayLike | None = None,
    *,
    topk_k: Sequence[Keep] = (1.0,),
    topk_v: Sequence[Keep] = (1.0,),
    jobs: int | None = None,
    progress: Callable[[str], None] = lambda text: None,
) -> Sweep:
    """Run `program` on `x (T, B, *input_shape)` with every setting of `topk_k` combined with every one of `topk_v`.

    labels  `(B,)` class numbers; without them accuracy is agreement with the full model
    jobs    processes, as joblib's `n_jobs` (-1: one per core). None takes what an outer `joblib.parallel_config` says, its backend
            (`"dask"`, `"ray"`) included, else one. The result is the same for every number and every backend.

    Raises `ModelRefused` without a matrix memory; `BadInput` for data, labels or settings that do not fit.
    """
    from joblib import Parallel, delayed

    memories_of(program)
    settings = list(product(topk_k, topk_v))
    programs = [dump_program(with_topk(program, k, v)) for k, v in settings]
    if jobs == 0 or not settings:
        raise BadInput(message("sweep", f"{jobs} jobs, {len(settings)} points", "at least one of each (or -1 jobs: all cores) is needed"))
    given = np.ascontiguousarray(check_input(program, x, np.float32), np.float32)
    progress("running the full model")
    full = trace(program, given)
    truth = full.answers if labels is None else checked_labels(labels, given.shape[1], full)
    whole = evaluate(dump_program(program), None, None, given, full, truth)

    def tasks() -> Iterator[Any]:
        for index, ((k, v), data) in enumerate(zip(settings, programs, strict=True), 1):
            progress(f"point {index} of {len(settings)}")
            yield delayed(evaluate)(data, k, v, given, full, truth)

    points = _run(Parallel(n_jobs=jobs if jobs is None else min(jobs, len(settings))), tasks())
    return Sweep(program.digest, given.shape[0], given.shape[1], labels is not None, whole, points)


def _run(parallel: Any, tasks: Iterator[Any]) -> tuple[Point, ...]:
    try:
        return tuple(parallel(tasks))
    except BrokenProcessPool:
        raise BadInput(
            message("sweep", "a worker process was ended from outside", "every point needs its memory", "Use fewer jobs or less data.")
        ) from None


def checked_labels(labels: npt.ArrayLike, batch: int, full: Trace) -> Answers:
    """`labels (B,)` as whole numbers. Raises `BadInput`."""
    array = np.asarray(labels)
    if full.answers is None:
        raise BadInput(message("labels", "the model's output is one number", "two classes are needed", "Leave the labels out."))
    if array.shape != (batch,) or array.dtype.kind not in "iuf" or not (np.mod(array, 1) == 0).all() or (array < 0).any():
        raise BadInput(message("labels", f"{array.dtype} of shape {array.shape}", f"({batch},) class numbers from 0 are needed"))
    return array.astype(np.int64)
