"""The NIR reader against NIR's equations written out as naive loops, on graphs made by the nir library and by other writers."""

from __future__ import annotations

import contextlib
import io
from pathlib import Path
from typing import Any

import nir
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spikedeploy.errors import BadInput
from spikedeploy.program import Program
from spikedeploy.readers.nir import from_bytes, read
from spikedeploy.runtime.reference import run

DT = 1e-3


def packed(graph: nir.NIRGraph) -> bytes:
    stream = io.BytesIO()
    nir.write(stream, graph)
    return stream.getvalue()


def chain(*nodes: Any) -> bytes:
    return packed(nir.NIRGraph.from_list(*nodes))


def rand(seed: int, *shape: int, low: float = 0.0, high: float = 1.0) -> Any:
    return np.random.default_rng(seed).uniform(low, high, size=shape)


def outputs(program: Program, x: Any) -> Any:
    return run(program, x).outputs["output"]


def gains(tau: Any, how: str) -> tuple[Any, Any]:
    return (1 - DT / tau, DT / tau) if how == "euler" else (np.exp(-DT / tau), 1 - np.exp(-DT / tau))


# --- neurons: one naive loop per kind ------------------------------------------------------------------------------


def loop_li(n: nir.LI, x: Any, how: str) -> Any:
    d, g = gains(n.tau, how)
    v, out = np.zeros(x.shape[1:]), []
    for xt in x:
        v = d * v + g * (n.v_leak + n.r * xt)
        out.append(v)
    return np.stack(out)


def loop_lif(n: nir.LIF, x: Any, how: str) -> Any:
    d, g = gains(n.tau, how)
    v, out = np.zeros(x.shape[1:]), []
    for xt in x:
        v = d * v + g * (n.v_leak + n.r * xt)
        z = v > n.v_threshold
        v = np.where(z, n.v_reset, v)
        out.append(z.astype(float))
    return np.stack(out)


def loop_cuba(n: Any, x: Any, how: str) -> Any:
    ds, gs = gains(n.tau_syn, how)
    dm, gm = gains(n.tau_mem, how)
    i = v = np.zeros(x.shape[1:])
    out = []
    for xt in x:
        i = ds * i + gs * n.w_in * xt
        v = dm * v + gm * (n.v_leak + n.r * i)
        if isinstance(n, nir.CubaLIF):
            z = v > n.v_threshold
            v = np.where(z, n.v_reset, v)
            out.append(z.astype(float))
        else:
            out.append(v)
    return np.stack(out)


def loop_if(n: nir.IF, x: Any, how: str) -> Any:
    v, out = np.zeros(x.shape[1:]), []
    for xt in x:
        v = v + DT * n.r * xt
        z = v > n.v_threshold
        v = np.where(z, n.v_reset, v)
        out.append(z.astype(float))
    return np.stack(out)


def make(kind: str, seed: int, shape: tuple[int, ...]) -> Any:
    tau = rand(seed, *shape, low=2 * DT, high=20 * DT)
    slow = rand(seed + 1, *shape, low=2 * DT, high=20 * DT)
    r, leak, theta = rand(seed + 2, *shape, low=1, high=5), rand(seed + 3, *shape, low=-0.2, high=0.2), rand(seed + 4, *shape, high=0.8)
    reset, w_in = rand(seed + 5, *shape, low=-0.3, high=0.0), rand(seed + 6, *shape, low=1, high=3)
    return {
        "LI": lambda: nir.LI(tau=tau, r=r, v_leak=leak),
        "LIF": lambda: nir.LIF(tau=tau, r=r, v_leak=leak, v_threshold=theta, v_reset=reset),
        "CubaLI": lambda: nir.CubaLI(tau_syn=tau, tau_mem=slow, r=r, v_leak=leak, w_in=w_in),
        "CubaLIF": lambda: nir.CubaLIF(tau_syn=tau, tau_mem=slow, r=r, v_leak=leak, v_threshold=theta, v_reset=reset, w_in=w_in),
        "IF": lambda: nir.IF(r=r / DT, v_threshold=theta, v_reset=reset),
    }[kind]()


LOOPS = {"LI": loop_li, "LIF": loop_lif, "CubaLI": loop_cuba, "CubaLIF": loop_cuba, "IF": loop_if}


@settings(max_examples=40, deadline=None)
@given(
    kind=st.sampled_from(sorted(LOOPS)),
    seed=st.integers(0, 10_000),
    how=st.sampled_from(["euler", "exact"]),
    steps=st.sampled_from([1, 2, 17]),
    shape=st.sampled_from([(1,), (5,), (2, 3, 4)]),
)
def test_every_neuron_follows_its_equation(kind: str, seed: int, how: Any, steps: int, shape: tuple[int, ...]) -> None:
    node = make(kind, seed, shape)
    x = rand(seed + 9, steps, 2, *shape, low=-1, high=2)
    program = from_bytes(chain(node), dt=DT, discretisation=how)
    assert np.allclose(outputs(program, x), LOOPS[kind](node, x, how), rtol=1e-9, atol=1e-12)


def test_a_membrane_that_forgets_is_no_state() -> None:
    tau = np.array([2, 4, 8.0]) * DT
    node = nir.CubaLIF(tau_syn=tau, tau_mem=np.full(3, DT), r=np.ones(3), v_leak=np.zeros(3), v_threshold=np.ones(3), w_in=tau / DT)
    program = from_bytes(chain(node), dt=DT)
    assert [type(step).__name__ for step in program.steps] == ["Integrator", "Threshold"]
    assert [step.name for step in program.steps] == ["cubalif.mem", "cubalif"]
    assert np.array_equal(program.steps[0].decay, [0.5, 0.75, 0.875])


def test_a_synapse_that_forgets_leaves_one_state() -> None:
    node = nir.CubaLIF(
        tau_syn=np.full(2, DT), tau_mem=np.full(2, 4 * DT), r=np.full(2, 4.0), v_leak=np.zeros(2), v_threshold=np.ones(2), w_in=np.ones(2)
    )
    program = from_bytes(chain(node), dt=DT)
    assert [type(step).__name__ for step in program.steps] == ["LIF"]
    assert np.all(program.steps[0].decay == 0.75)


def test_spikes_are_strictly_above_the_threshold() -> None:
    x = np.array([0.999, 1.0, 1.001]).reshape(1, 1, 3)
    assert outputs(from_bytes(chain(nir.Threshold(threshold=np.ones(3)))), x).ravel().tolist() == [0, 0, 1]


# --- the recording that the NIR paper's simulators agree on ---------------------------------------------------------

INPUT_AT = (6, 22, 27, 31, 32, 35, 37, 40, 41, 43, 44, 45, 46, 47, 48, 49, 50, 51, 52, 53, *range(66, 79), 84, 85)
"""Steps (times ten) with an input spike, and below what norse recorded for lif_norse.nir (neuromorphs/NIR, paper/01_lif)."""
FIRED_AT = (460, 510, 700, 750)


def test_the_papers_lif_recording() -> None:
    node = nir.LIF(tau=np.array([2.5e-3]), r=np.ones(1), v_leak=np.zeros(1), v_threshold=np.array([0.1]))
    program = from_bytes(chain(nir.Affine(weight=np.ones((1, 1)), bias=np.zeros(1)), node), dt=1e-4)
    x = np.zeros((1000, 1, 1))
    x[[10 * t for t in INPUT_AT]] = 1
    result = run(program, x, record=["lif.mem"])
    v = result.wires["lif.mem"].ravel()
    assert np.flatnonzero(result.outputs["output"]).tolist() == list(FIRED_AT)
    for step, recorded in ((60, 0.04), (62, 0.036863998), (219, 6.069961e-05), (220, 0.04005827), (450, 0.09984423), (459, 0.06914552)):
        assert abs(v[step] - recorded) < 2e-7, step


# --- maps and wiring --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("padding", [(0, 0), (1, 2), "same", "valid"])
def test_conv_and_pools_are_torchs(padding: Any) -> None:
    import torch

    w, b, x = rand(1, 4, 2, 3, 3), rand(2, 4), rand(3, 2, 3, 2, 8, 9)
    graph = chain(
        nir.Input({"input": np.array([2, 8, 9])}),
        nir.Conv2d((8, 9), w, 1, padding, 1, 1, b),
        nir.AvgPool2d(np.array([2, 2]), np.array([2, 2]), np.array([1, 1])),
        nir.SumPool2d(np.array([2, 2]), np.array([1, 1]), np.array([0, 0])),
    )
    flat = torch.tensor(x).flatten(0, 1)
    y = torch.nn.functional.conv2d(flat, torch.tensor(w), torch.tensor(b), padding=padding)
    y = torch.nn.functional.avg_pool2d(torch.nn.functional.avg_pool2d(y, 2, 2, 1), 2, 1) * 4
    assert np.allclose(outputs(from_bytes(graph), x), y.numpy().reshape(2, 3, *y.shape[1:]), rtol=1e-12)


@pytest.mark.parametrize(("start", "end", "shape"), [(0, -1, (24,)), (1, -1, (2, 12)), (-3, -1, (24,)), (0, 1, (6, 4))])
def test_flatten_counts_axes_without_batch(start: int, end: int, shape: tuple[int, ...]) -> None:
    graph = chain(nir.Input({"input": np.array([2, 3, 4])}), nir.Flatten({"input": np.array([2, 3, 4])}, start, end))
    x = rand(0, 1, 2, 2, 3, 4)
    assert np.array_equal(outputs(from_bytes(graph), x), x.reshape(1, 2, *shape))


def test_flatten_from_a_writer_that_counts_the_batch() -> None:
    nodes = {
        "input": nir.Input({"input": np.array([2, 3, 4])}),
        "flat": nir.Flatten({"input": np.array([2, 3, 4])}, 1, -1),
        "fc": nir.Affine(rand(1, 5, 24), rand(2, 5)),
        "output": nir.Output({"output": np.array([5])}),
    }
    graph = nir.NIRGraph(nodes, [("input", "flat"), ("flat", "fc"), ("fc", "output")], type_check=False)
    program = from_bytes(packed(graph))
    assert program.wires["flat"] == (24,)
    assert any("batch axis" in note for note in program.notes)


def test_edges_that_meet_add() -> None:
    nodes = {
        "input": nir.Input({"input": np.array([3])}),
        "a": nir.Scale(np.array([1.0, 2, 3])),
        "b": nir.Linear(rand(0, 3, 3)),
        "z": nir.Scale(np.ones(3)),
        "output": nir.Output({"output": np.array([3])}),
    }
    edges = [("input", "a"), ("input", "b"), ("a", "z"), ("b", "z"), ("input", "z"), ("z", "output")]
    x = rand(1, 4, 2, 3)
    want = x * [1, 2, 3] + x @ nodes["b"].weight.T + x
    assert np.allclose(outputs(from_bytes(packed(nir.NIRGraph(nodes, edges))), x), want)


def test_nested_graphs_are_opened() -> None:
    inner = nir.NIRGraph.from_list(nir.Affine(rand(0, 4, 3), rand(1, 4)), nir.Threshold(np.full(4, 0.5)))
    nodes = {
        "input": nir.Input({"input": np.array([3])}),
        "block": inner,
        "fc": nir.Linear(rand(2, 2, 4)),
        "output": nir.Output({"output": np.array([2])}),
    }
    graph = nir.NIRGraph(nodes, [("input", "block"), ("block", "fc"), ("fc", "output")], type_check=False)
    program = from_bytes(packed(graph))
    assert [step.name for step in program.steps] == ["block.affine", "block.threshold", "fc"]
    x = rand(3, 5, 2, 3)
    s = (x @ inner.nodes["affine"].weight.T + inner.nodes["affine"].bias > 0.5).astype(float)
    assert np.allclose(outputs(program, x), s @ nodes["fc"].weight.T)


def test_delay_is_a_line() -> None:
    x = rand(0, 6, 2, 3)
    y = outputs(from_bytes(chain(nir.Delay(np.full(3, 2 * DT))), dt=DT), x)
    assert np.array_equal(y[2:], x[:-2])
    assert not y[:2].any()


def test_the_order_of_nodes_carries_nothing() -> None:
    nodes = {
        "z": nir.Input({"input": np.array([3])}),
        "a": nir.Linear(rand(0, 4, 3)),
        "y": nir.Threshold(np.ones(4) * 0.5),
        "b": nir.Output({"output": np.array([4])}),
    }
    edges = [("y", "b"), ("a", "y"), ("z", "a")]
    digests = {
        from_bytes(packed(nir.NIRGraph(dict(order), list(e)))).digest
        for order in (list(nodes.items()), list(nodes.items())[::-1])
        for e in (edges, edges[::-1])
    }
    assert len(digests) == 1


# --- other writers ------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_what_snntorch_writes_runs_as_in_snntorch() -> None:
    import snntorch as snn
    import torch
    from snntorch.export_nir import export_to_nir

    torch.manual_seed(0)
    often = {"init_hidden": True, "reset_delay": False, "reset_mechanism": "zero"}
    net = torch.nn.Sequential(
        torch.nn.Linear(6, 5),
        snn.Leaky(beta=torch.full((5,), 0.9), threshold=torch.ones(5), **often),
        torch.nn.Linear(5, 3),
        snn.Synaptic(alpha=torch.full((3,), 0.5), beta=torch.full((3,), 0.8), threshold=torch.ones(3), output=True, **often),
    )
    with contextlib.redirect_stdout(io.StringIO()):
        graph = export_to_nir(net, torch.randn(1, 6), ignore_dims=[0])
    net[1].reset_mem()
    net[3].reset_mem()
    x = torch.randn(30, 2, 6) * 2
    with torch.no_grad():
        want = torch.stack([net(x[t])[0] for t in range(30)]).numpy()
    got = outputs(from_bytes(packed(graph)), x.numpy())
    assert want.sum() > 10
    assert np.array_equal(got, want)


# --- time -----------------------------------------------------------------------------------------------------------


def test_dt_is_stated_or_assumed_and_said(tmp_path: Path) -> None:
    path = tmp_path / "a.nir"
    path.write_bytes(chain(nir.LI(tau=np.full(2, 1e-2), r=np.ones(2), v_leak=np.zeros(2))))
    assumed, stated = read(path), read(path, dt=5e-3, discretisation="exact")
    assert "0.0001 (assumed" in assumed.notes[0]
    assert "0.005 (stated), discretisation exact (stated)" in stated.notes[0]
    assert np.isclose(stated.step("li").decay, np.exp(-0.5))


@pytest.mark.parametrize(
    ("nodes", "text"),
    [
        ([nir.LI(np.full(2, 1e-5), np.ones(2), np.zeros(2))], "shorter than the time step"),
        ([nir.LI(np.full(2, -1.0), np.ones(2), np.zeros(2))], "above zero"),
        ([nir.LI(np.array([np.nan, 1]), np.ones(2), np.zeros(2))], "not finite"),
        ([nir.Affine(np.ones((2, 3)), np.ones(5))], "a bias of shape (5,); (2,) is needed"),
        ([nir.Delay(np.array([1e-4, 2e-4]))], "one whole number of steps"),
        ([nir.Conv1d(9, np.ones((2, 3, 3)), 1, 0, 1, 1, np.ones(2))], "this kind is not read"),
    ],
)
def test_nodes_that_cannot_be_read_are_named(nodes: list[Any], text: str) -> None:
    with pytest.raises(BadInput) as caught:
        from_bytes(chain(*nodes))
    assert text in str(caught.value)
    assert "node '" in str(caught.value)


def test_a_recurrent_graph_is_refused_by_name() -> None:
    nodes = {
        "input": nir.Input({"input": np.array([2])}),
        "lif": nir.LIF(np.full(2, 1e-2), np.ones(2), np.zeros(2), np.ones(2)),
        "rec": nir.Linear(np.eye(2)),
        "output": nir.Output({"output": np.array([2])}),
    }
    edges = [("input", "lif"), ("lif", "rec"), ("rec", "lif"), ("lif", "output")]
    with pytest.raises(BadInput, match=r"nodes 'lif', 'rec'.*feed themselves"):
        from_bytes(packed(nir.NIRGraph(nodes, edges)))
