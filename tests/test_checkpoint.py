"""Checkpoints: what is saved comes back bit for bit, and the same model gives the same bytes."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import snntorch as snn
import torch
import zoo
from checkpoints import same
from snntorch import surrogate
from snntorch.functional import quant
from torch import Tensor, nn

import spikedeploy
from spikedeploy.errors import BadInput, ModelRefused
from spikedeploy.probe import flatten


@pytest.mark.parametrize("name", zoo.MODELS)
def test_a_model_comes_back_bit_for_bit(name: str, tmp_path: Path) -> None:
    model, x = zoo.MODELS[name]()
    path = tmp_path / "model.pt"
    spikedeploy.save(model, path, x)
    back = spikedeploy.load(path)
    assert same(model, back, x)
    assert same(model, back, torch.cat([x, x, x])[1:]), "another length"
    assert spikedeploy.convert(back).digest == spikedeploy.convert(model, x).digest
    again = tmp_path / "again.pt"
    spikedeploy.save(back, again, x)
    assert again.read_bytes() == path.read_bytes()


@pytest.mark.parametrize("name", ["plain", "conv", "tokens", "learned"])
def test_parameters_keep_their_names_and_learn(name: str, tmp_path: Path) -> None:
    model, x = zoo.MODELS[name]()
    spikedeploy.save(model, tmp_path / "model.pt", x)
    back = spikedeploy.load(tmp_path / "model.pt")
    theirs, ours = dict(model.named_parameters()), dict(back.named_parameters())
    assert theirs.keys() == ours.keys()
    assert set(back.state_dict()) == set(model.state_dict())
    sum(y.sum() for y in flatten(back(x))).backward()
    sum(y.sum() for y in flatten(model(x))).backward()
    for key, value in theirs.items():
        assert (value.grad is None) == (ours[key].grad is None)
        assert value.grad is None or torch.equal(value.grad, ours[key].grad)


def test_the_file_is_plain_data(tmp_path: Path) -> None:
    model, x = zoo.plain()
    spikedeploy.save(model, tmp_path / "model.pt", x)
    content = torch.load(tmp_path / "model.pt", weights_only=True)
    assert content["format"] == "spikedeploy.checkpoint"
    assert content["version"] == 1
    assert set(content["tensors"]) == set(model.state_dict())
    header = json.loads(content["graph"])
    assert header["layers"]["lif1"]["class"] == "snntorch.StateLeaky"
    assert header["input"] == {"shape": [11, 2, 5], "dtype": "float32"}


def test_the_same_model_gives_the_same_bytes_in_every_process(tmp_path: Path) -> None:
    code = "import sys; sys.path.insert(0, sys.argv[1]); import zoo, spikedeploy; model, x = zoo.tokens(); "
    code += "spikedeploy.save(model, sys.argv[2], x)"
    for seed in ("0", "1"):
        environment = {**os.environ, "PYTHONHASHSEED": seed}
        subprocess.run(
            [sys.executable, "-c", code, str(Path(zoo.__file__).parent), str(tmp_path / f"{seed}.pt")], check=True, env=environment
        )
    assert (tmp_path / "0.pt").read_bytes() == (tmp_path / "1.pt").read_bytes()


SURROGATES: dict[str, Callable[[], Any]] = {
    "atan": lambda: surrogate.atan(3.0),
    "fast_sigmoid": lambda: surrogate.fast_sigmoid(10),
    "sigmoid": lambda: surrogate.sigmoid(5),
    "straight_through": surrogate.straight_through_estimator,
    "triangular": lambda: surrogate.triangular(0.5),
    "spike_rate_escape": lambda: surrogate.spike_rate_escape(1, 20),
    "sparse": lambda: surrogate.SFS(25, 0.5),
}


@pytest.mark.parametrize("name", SURROGATES)
def test_surrogates_are_stored_by_name_and_number(name: str, tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(4, 3), snn.StateLeaky(0.9, 3, spike_grad=SURROGATES[name]()))
    x = torch.randn(5, 2, 4, generator=torch.Generator().manual_seed(0))
    spikedeploy.save(model, tmp_path / "model.pt", x)
    back = spikedeploy.load(tmp_path / "model.pt")
    grads = []
    for m in (model, back):
        y = x.clone().requires_grad_()
        m(y)[0].sum().backward()
        grads.append(y.grad)
    assert torch.equal(*grads)


def test_a_surrogate_of_ones_own_keeps_its_forward(tmp_path: Path) -> None:
    model = nn.Sequential(snn.StateLeaky(0.9, 3, spike_grad=surrogate.custom_surrogate(lambda x, g, s: g)))
    x = 3 * torch.randn(6, 2, 3)
    spikedeploy.save(model, tmp_path / "model.pt", x)
    assert same(model, spikedeploy.load(tmp_path / "model.pt"), x)


def test_quantiser_levels_are_recovered(tmp_path: Path) -> None:
    model = snn.StateLeaky(0.9, 3, state_quant=quant.state_quant(num_bits=3, uniform=False, threshold=0.7), surrogate_disable=True)
    x = torch.randn(6, 2, 3)
    spikedeploy.save(model, tmp_path / "model.pt", x)
    assert same(model, spikedeploy.load(tmp_path / "model.pt"), x)


def test_memory_order_and_sharing_survive(tmp_path: Path) -> None:
    """The bits of a product can depend on the order in memory; a weight used twice stays one parameter."""

    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(6, 6)
            self.fc.weight = nn.Parameter(torch.randn(6, 6).t())
            self.scale = nn.Parameter(torch.tensor(1.5))

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(x) @ self.fc.weight * self.scale

    model, x = Tied(), torch.randn(4, 2, 6)
    spikedeploy.save(model, tmp_path / "model.pt", x)
    back = spikedeploy.load(tmp_path / "model.pt")
    assert same(model, back, x)
    assert back.get_parameter("fc.weight").stride() == (1, 6)
    assert len(list(back.parameters())) == 3


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_precisions(dtype: torch.dtype, tmp_path: Path) -> None:
    model, x = nn.Sequential(nn.Linear(4, 3), nn.Tanh()).to(dtype), torch.randn(5, 2, 4, dtype=dtype)
    spikedeploy.save(model, tmp_path / "model.pt", x)
    assert same(model, spikedeploy.load(tmp_path / "model.pt"), x)


def test_modes_are_left_alone(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Dropout(0.5), nn.BatchNorm1d(3)).train()
    model[2].eval()
    spikedeploy.save(nn.Sequential(model[0], model[1]), tmp_path / "model.pt", torch.zeros(2, 2, 3))
    assert [m.training for m in model] == [True, True, False]


# --- writing -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt(), MemoryError()])
@pytest.mark.parametrize("where", ["fsync", "replace"])
def test_a_failing_write_leaves_the_old_file_and_nothing_else(
    error: BaseException, where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, x = zoo.plain()
    path = tmp_path / "model.pt"
    path.write_bytes(b"old")

    def fail(*_: Any) -> None:
        raise error

    monkeypatch.setattr(*((os, "fsync") if where == "fsync" else (Path, "replace")), fail)
    with pytest.raises(BadInput if isinstance(error, OSError) else type(error)):
        spikedeploy.save(model, path, x)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_refused_model_writes_nothing(tmp_path: Path) -> None:
    with pytest.raises(ModelRefused, match="Hardswish"):
        spikedeploy.save(nn.Sequential(nn.Hardswish()), tmp_path / "model.pt", torch.zeros(2, 2, 3))
    with pytest.raises(BadInput, match="does not exist"):
        spikedeploy.save(nn.Linear(3, 3), tmp_path / "nowhere" / "model.pt", torch.zeros(2, 2, 3))
    assert not list(tmp_path.iterdir())
