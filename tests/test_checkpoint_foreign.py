"""Files that others wrote and that are accepted: bare state_dicts, pickled `nn.Sequential`, wrapped models."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import snntorch as snn
import torch
import zoo
from checkpoints import same
from torch import Tensor, nn

import spikedeploy
from spikedeploy import checkpoint
from spikedeploy.errors import BadInput


def factory() -> nn.Module:
    return zoo.plain()[0]


def test_a_bare_state_dict_needs_its_model(tmp_path: Path) -> None:
    torch.save(zoo.learned()[0].state_dict(), tmp_path / "weights.pt")
    with pytest.raises(BadInput, match=r"a bare state_dict of .* tensors; the model that it belongs to is needed"):
        checkpoint.load_model(tmp_path / "weights.pt")
    with pytest.raises(BadInput, match="it made a dict; a torch module is needed"):
        checkpoint.load_model(tmp_path / "weights.pt", "builtins:dict")


def test_a_factory_may_give_an_example_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Found in the working directory, as a console script would not by itself."""
    model, x = zoo.learned()
    torch.save(model.state_dict(), tmp_path / "weights.pt")
    code = f"import sys; sys.path.insert(0, {str(Path(zoo.__file__).parent)!r}); import zoo; make = zoo.learned"
    (tmp_path / "made_here_for_a_test.py").write_text(code)
    monkeypatch.chdir(tmp_path)
    back = checkpoint.load_model("weights.pt", "made_here_for_a_test:make")
    assert spikedeploy.convert(back).digest == spikedeploy.convert(model, x).digest
    assert str(tmp_path) not in sys.path


def test_a_state_dict_fills_the_model_of_the_factory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = zoo.plain()
    with torch.no_grad():
        model.fc1.weight += 1
    torch.save({"model_state_dict": model.state_dict(), "epoch": 3}, tmp_path / "weights.pt")
    module = type(sys)("spikedeploy_test_factory")
    vars(module).update(make=factory, small=lambda: nn.Linear(2, 2))
    monkeypatch.setitem(sys.modules, "spikedeploy_test_factory", module)
    back = checkpoint.load_model(tmp_path / "weights.pt", "spikedeploy_test_factory:make")
    assert same(model, back, x)
    for wrong, text in (
        ("nocolon", "it has no colon"),
        ("spikedeploy_test_factory:other", "it failed (AttributeError"),
        ("spikedeploy_test_factory:small", "do not fit"),
    ):
        with pytest.raises(BadInput) as caught:
            checkpoint.load_model(tmp_path / "weights.pt", wrong)
        assert text in str(caught.value)


def test_a_pickled_sequential_of_known_layers(tmp_path: Path) -> None:
    inner = nn.Sequential(nn.LayerNorm(6), nn.ReLU())
    model = nn.Sequential(
        nn.Linear(4, 6), inner, nn.Dropout(0.3), snn.LinearLeaky(torch.full((3,), 0.8), 6, 3, surrogate_disable=True)
    ).eval()
    x = 3 * torch.randn(5, 2, 4)
    torch.save(model, tmp_path / "model.pt")
    back = checkpoint.load_model(tmp_path / "model.pt")
    assert same(model, back, x)
    assert isinstance(back, nn.Sequential)
    assert spikedeploy.convert(back).digest == spikedeploy.convert(model, x).digest
    with pytest.raises(BadInput):
        spikedeploy.load(tmp_path / "model.pt")


def test_a_pickled_sequential_with_a_neuron_of_ours(tmp_path: Path) -> None:
    neuron = spikedeploy.nn.StateLeaky(0.8, 6, spike_grad=spikedeploy.nn.Surrogate("fast_sigmoid", 10.0), learn_beta=True)
    model, x = nn.Sequential(nn.Linear(4, 6), neuron).eval(), 3 * torch.randn(5, 2, 4)
    torch.save(model, tmp_path / "model.pt")
    back: Any = checkpoint.load_model(tmp_path / "model.pt")
    assert all(torch.equal(one, other) for one, other in zip(model(x), back(x), strict=True))
    assert back[1].spike_grad == neuron.spike_grad


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module."])
def test_the_prefix_of_a_wrapped_model_is_taken_off(prefix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = zoo.plain()
    torch.save({prefix + key: value + 1 for key, value in model.state_dict().items()}, tmp_path / "weights.pt")
    module = type(sys)("spikedeploy_test_factory")
    vars(module).update(make=factory)
    monkeypatch.setitem(sys.modules, "spikedeploy_test_factory", module)
    back = checkpoint.load_model(tmp_path / "weights.pt", "spikedeploy_test_factory:make")
    model.load_state_dict({key: value + 1 for key, value in model.state_dict().items()})
    assert same(model, back, x)


class Returning(nn.Module):
    """A neuron whose spikes and membrane are returned in the way it is given."""

    def __init__(self, result: Callable[[Tensor, Tensor], Any]) -> None:
        super().__init__()
        self.fc, self.lif, self.result = nn.Linear(4, 3), snn.StateLeaky(0.9, 3), result

    def forward(self, x: Tensor) -> Any:
        return self.result(*self.lif(self.fc(x)))


def test_the_results_of_a_dict_keep_their_order(tmp_path: Path) -> None:
    model, x = Returning(lambda spk, mem: {"spk": spk, "mem": mem, "count": spk.sum(0)}).eval(), torch.randn(5, 2, 4)
    spikedeploy.save(model, tmp_path / "model.pt", x)
    back = spikedeploy.load(tmp_path / "model.pt")
    assert list(back(x)) == ["spk", "mem", "count"]
    assert spikedeploy.convert(back).digest == spikedeploy.convert(model, x).digest


def test_lists_and_tuples_come_back_as_such(tmp_path: Path) -> None:
    model, x = Returning(lambda spk, mem: {"all": [spk, (mem, [spk])]}).eval(), torch.randn(5, 2, 4)
    spikedeploy.save(model, tmp_path / "model.pt", x)
    found = spikedeploy.load(tmp_path / "model.pt")(x)["all"]
    assert [type(found), type(found[1]), type(found[1][1])] == [list, tuple, list]
