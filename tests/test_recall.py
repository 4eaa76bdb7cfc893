"""The associative-recall example: the task is what it says, and a memory learns it in seconds."""

from __future__ import annotations

import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "examples"))

import recall


def test_the_answer_is_the_latest_value_of_the_key() -> None:
    batch = recall.stream(3, 5, torch.Generator().manual_seed(0))
    bits = recall.BITS
    assert batch.x.shape == (45, 3, recall.WIDTH)
    for b in range(3):
        known: dict[tuple[float, ...], list[float]] = {}
        answers = iter(batch.answers[:, b].tolist())
        for step in batch.x[:, b]:
            key = tuple(step[:bits].tolist())
            if step[-1] == 1:
                assert known[key] == next(answers)
            elif any(key):
                known[key] = step[bits : 2 * bits].tolist()


def test_keys_differ_within_an_episode() -> None:
    keys = recall.distinct_keys(50, 6, torch.Generator().manual_seed(0))
    assert all(len({tuple(key) for key in keys[:, b].tolist()}) == 6 for b in range(50))


def test_a_memory_learns_in_seconds() -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        model = recall.build("ours", 0, side=8)
        recall.train(model, recall.mixed(0, 32, (2, 2), (2, 3)), 200, log=lambda line: None)
    finally:
        torch.set_num_threads(threads)
    bits, _ = recall.evaluate(model, recall.episode(500, 2, 3, torch.Generator().manual_seed(9)))
    assert bits > 0.7, "chance is 0.5"


def test_every_model_is_of_one_size() -> None:
    sizes = {name: sum(p.numel() for p in recall.build(name, 0).parameters()) for name in recall.MODELS}
    assert max(sizes.values()) < 1.15 * min(sizes.values()), sizes
