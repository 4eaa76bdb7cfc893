"""What cannot be deployed is refused by name, with what was found, what is needed and what to do."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import snntorch as snn
import torch
import torch.nn.functional as F
from lowered import Net
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

import spikedeploy
from spikedeploy.errors import BadInput, ModelRefused, SpikedeployError

X = torch.randn(7, 2, 5, generator=torch.Generator().manual_seed(0))


def lif(channels: int = 5, **options: Any) -> nn.Module:
    return snn.StateLeaky(options.pop("beta", 0.9), channels, **options)


def after(function: Callable[[Tensor], Tensor]) -> nn.Module:
    """A neuron behind a function of the input."""
    return Net(lambda m, x: m.lif(function(x))[0], lif=lif())


def refused(model: nn.Module, x: Any = X, kind: type[SpikedeployError] = ModelRefused) -> str:
    with pytest.raises(kind) as caught:
        spikedeploy.convert(model.eval(), x)
    return str(caught.value)


MIXING: dict[str, tuple[nn.Module, str]] = {
    "lstm": (Net(lambda m, x: m.rnn(x)[0], rnn=nn.LSTM(5, 5)), "layer 0 'rnn' (LSTM)"),
    "bidirectional": (nn.Sequential(nn.GRU(5, 4, bidirectional=True)), "layer 0 '0' (GRU)"),
    "attention": (Net(lambda m, x: m.attend(x, x, x)[0], attend=nn.MultiheadAttention(5, 1)), "layer 0 'attend' (MultiheadAttention)"),
    "conv1d": (Net(lambda m, x: m.c(x.permute(1, 2, 0)).permute(2, 0, 1), c=nn.Conv1d(5, 5, 3, padding=1)), "layer 0 'c' (Conv1d)"),
    "cumsum": (after(lambda x: x.cumsum(0)), "operation 'cumsum'"),
    "difference": (after(lambda x: x[1:] - x[:-1]), "takes steps slice(1, None, None)"),
    "flip": (after(lambda x: torch.flip(x, [0])), "operation 'flip'"),
    "roll": (after(lambda x: torch.roll(x, 1, 0)), "operation 'roll'"),
    "softmax over time": (after(lambda x: torch.softmax(x, 0)), "softmax over the time axis"),
    "first step": (Net(lambda m, x: m.lif(x)[0][0], lif=lif()), "takes steps 0"),
    "linear over time": (Net(lambda m, x: m.fc(x.permute(1, 2, 0)), fc=nn.Linear(3, 3)), "is time"),
}


@pytest.mark.parametrize("name", MIXING)
def test_whatever_mixes_time_is_refused_by_name(name: str) -> None:
    model, where = MIXING[name]
    text = refused(model)
    assert where in text
    assert "mixes time steps" in text


INSIDE: dict[str, nn.Module] = {
    "minus the mean": after(lambda x: x - x.mean(0)),
    "minus the mean, kept": after(lambda x: x - x.mean(0, keepdim=True)),
    "neuron after mean": Net(lambda m, x: m.b(m.a(x)[1].mean(0, keepdim=True))[0], a=lif(), b=lif()),
    "relu after mean": Net(lambda m, x: F.relu(m.a(x)[0].mean(0)), a=lif()),
}


@pytest.mark.parametrize("name", INSIDE)
def test_a_time_reduction_inside_the_network_is_refused(name: str) -> None:
    assert "already reduced over time (mean); a time reduction is supported only as the last operation" in refused(INSIDE[name])


OTHERS: dict[str, tuple[nn.Module, str]] = {
    "unknown layer": (
        nn.Sequential(nn.Linear(5, 5), nn.Hardswish()),
        "layer 1 '1' (Hardswish): Hardswish cannot be deployed; supported layers: ",
    ),
    "other neuron": (Net(lambda m, x: m.n(x)[0], n=snn.Synaptic(0.9, 0.8)), "Use StateLeaky, LinearLeaky or Leaky."),
    "one-step neuron": (Net(lambda m, x: m.n(x)[0], n=snn.Leaky(0.9)), "Use spikedeploy.nn.Leaky"),
    "max pooling": (Net(lambda m, x: m.p(x), p=nn.MaxPool2d(2)), "Use nn.AvgPool2d"),
    "batch mean": (after(lambda x: x - x.mean(1, keepdim=True)), "it mixes samples (axis 1 of its input (T, B, 5) is the batch)"),
    "batch norm over samples": (Net(lambda m, x: m.n(x), n=nn.BatchNorm1d(2)), "it mixes samples"),
    "exchanged": (Net(lambda m, x: m.n(x.transpose(0, 1))[0], n=lif()), "time first, then batch: (T, B, C) is needed"),
    "torn apart": (after(lambda x: x.reshape(x.shape[1], x.shape[0], 5)), "may be merged (time first) and parted again"),
    "divided by T": (after(lambda x: x / x.shape[0]), "computes with the number of steps or samples"),
    "divided by 2T": (after(lambda x: x / (2 * x.shape[0])), "computes with the number of steps or samples"),
    "differs by step": (after(lambda x: x * torch.arange(7.0).view(7, 1, 1)), "fails on the example input"),
    "tuple passed on": (Net(lambda m, x: m.fc(m.n(x)), n=lif(), fc=nn.Linear(5, 5)), "its input is a tuple"),
    "softmax of scores": (
        Net(lambda m, x: F.log_softmax(m.n(x)[0].sum(0), -1), n=lif()),
        "apply the softmax to the deployed model's output",
    ),
    "control flow": (Net(lambda m, x: x if x.sum() > 0 else -x), "its forward cannot be traced"),
    "a constant": (Net(lambda m, x: m.fc.weight, fc=nn.Linear(5, 5)), "a tensor computed from the input is needed"),
    "kept time axis": (Net(lambda m, x: (x + 1).mean(0, keepdim=True)), "Reduce with keepdim=False."),
    "where the maximum is": (Net(lambda m, x: torch.max(x + 1, 0)[1]), "it takes the position of the maximum"),
    "attention by hand": (Net(lambda m, x: x @ x.transpose(1, 2)), "a product of computed values"),
    "comparison": (after(lambda x: x * (x > 0)), "operation 'gt' (gt): gt cannot be deployed"),
    "weight norm": (nn.Sequential(weight_norm(nn.Linear(5, 5))), "Call torch.nn.utils.parametrize.remove_parametrizations first."),
    "rounding": (after(lambda x: x.long().float()), "it rounds to torch.int64"),
    "half": (after(lambda x: x.to(torch.float16).float()), "it rounds to torch.float16"),
    "empty": (nn.Sequential(), "it has no layers or no output; at least one of each is needed"),
    "sigmoid spikes": (
        nn.Sequential(lif(spike_grad=lambda u: torch.sigmoid(5 * u))),
        "a neuron that fires 1 above zero and else 0 is needed",
    ),
    "own quantiser": (nn.Sequential(lif(state_quant=torch.round)), "its state_quant is a function of your own"),
}


@pytest.mark.parametrize("name", OTHERS)
def test_other_refusals_say_what_to_do(name: str) -> None:
    model, part = OTHERS[name]
    if name == "differs by step":
        with pytest.raises(SpikedeployError):
            spikedeploy.convert(model.eval(), X)
        return
    assert part in refused(model)


def test_a_nan_weight_is_named() -> None:
    layer = nn.Linear(5, 5)
    layer.weight.data[1, 2] = float("nan")
    text = refused(nn.Sequential(layer, lif()))
    assert text.startswith("layer 0 '0' (Linear): weight[1, 2] is nan; every parameter must be finite. The checkpoint was probably saved")


def test_a_nan_beta_is_named() -> None:
    neuron = snn.StateLeaky(torch.full((20,), 0.9), 20)
    neuron.tau[17] = float("nan")
    text = refused(nn.Sequential(nn.Linear(5, 20), neuron))
    assert text.startswith("layer 1 '1' (StateLeaky): beta[17] is NaN; every beta must lie in (0, 1). The checkpoint was probably saved")


@pytest.mark.parametrize("beta", [1.5, -0.5, 1.0, 0.0, float("inf")])
@pytest.mark.parametrize("make", [lambda b: snn.StateLeaky(b, 5), lambda b: snn.LinearLeaky(b, 5, 5), lambda b: spikedeploy_leaky(b)])
def test_beta_outside_the_unit_interval(make: Callable[[float], nn.Module], beta: float) -> None:
    assert "every beta must lie in (0, 1)" in refused(nn.Sequential(make(beta)))


def spikedeploy_leaky(beta: float) -> nn.Module:
    from spikedeploy.nn import Leaky

    return Leaky(beta)


@pytest.mark.filterwarnings("ignore:Initializing zero-element")
def test_zero_channels() -> None:
    assert "every axis needs at least one channel" in refused(nn.Sequential(nn.Linear(5, 0), nn.Linear(0, 3)))


@pytest.mark.parametrize(
    "x", [torch.zeros(0, 2, 5), torch.zeros(3, 0, 5), torch.zeros(5), None, "x", torch.zeros(3, 2, 5, dtype=torch.bool)]
)
def test_examples_that_are_none(x: Any) -> None:
    assert refused(nn.Sequential(nn.Linear(5, 5), lif()), x, BadInput).startswith("example_input: ")


def test_an_example_of_another_width_says_where_and_what_was_given() -> None:
    text = refused(nn.Sequential(nn.Linear(6, 5), lif()), X, BadInput)
    assert "layer '0' (Linear): it fails on the example input of shape (7, 2, 5)" in text
    assert text.endswith("an input whose last axis is 6 is needed.")


def test_numpy_and_float64_examples_are_taken() -> None:
    model = nn.Sequential(nn.Linear(5, 5), lif())
    assert spikedeploy.convert(model, np.zeros((3, 2, 5))).digest == spikedeploy.convert(model, X).digest


def in_place(m: Any, x: Tensor) -> Tensor:
    h = m.fc(x)
    g = h
    h += x
    return m.lif(h + g)[0]


def test_a_change_in_place_that_another_reader_sees_is_refused() -> None:
    assert "changes a tensor in place" in refused(Net(in_place, fc=nn.Linear(5, 5), lif=lif()))
    assert "changes a tensor in place that is also read elsewhere" in refused(Net(lambda m, x: m.r(x) + x, r=nn.ReLU(inplace=True)))


def test_a_forward_that_depends_on_chance_is_refused() -> None:
    model = Net(lambda m, x: m.lif(F.dropout(x, 0.5, training=True))[0], lif=lif())
    assert "does not do the same each time" in refused(model)


def test_a_neuron_without_reset_that_looks_sideways_is_refused() -> None:
    with pytest.warns(UserWarning, match="Inhibition"):
        layer = snn.Leaky(0.9, inhibition=True, init_hidden=True)
    from spikedeploy.nn import OverTime

    assert "inhibition=True" in refused(OverTime(layer))


@pytest.mark.parametrize("model", [3, None, nn.Linear, "model.pt"])
def test_what_is_no_model_is_refused(model: Any) -> None:
    with pytest.raises(BadInput, match=r"^model: a .*; a torch\.nn\.Module is needed"):
        spikedeploy.convert(model, X)


def test_an_example_of_another_dtype_is_not_blamed_on_its_width() -> None:
    text = refused(nn.Sequential(nn.Linear(5, 5)), X.long(), BadInput)
    assert "same dtype" in text and "last axis" not in text


def test_options_of_convert_are_checked() -> None:
    with pytest.raises(BadInput, match="semantics"):
        spikedeploy.convert(nn.Linear(5, 5), X, semantics="exact")  # type: ignore[arg-type]
