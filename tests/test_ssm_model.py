"""S4D and SpikingSSM: the convolution against the recurrence, gradients, and the deployed cell against the parallel model."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

import spikedeploy
from spikedeploy import native
from spikedeploy.errors import ModelRefused
from spikedeploy.nn.s4d import S4D
from spikedeploy.nn.sdn import SurrogateDynamicNetwork
from spikedeploy.nn.spiking_ssm import SpikingSSM, SpikingSSMBlock, TiedDropout
from spikedeploy.nn.ssm_findings import surrogate_findings
from spikedeploy.runtime import reference
from spikedeploy.steps import LIF, DiagonalSSM

FORMS = ["fft", "scan"] if native.available() else ["fft"]


def layer(features: int, states: int, dtype: torch.dtype = torch.float64, form: str = "fft", seed: int = 0) -> S4D:
    torch.manual_seed(seed)
    return S4D(features, states, form=form).to(dtype)  # type: ignore[arg-type]


def naive(m: S4D, x: Tensor) -> np.ndarray:
    """The equations at the top of the module, in NumPy, one step and one mode after the other."""
    a = -np.exp(m.log_A_real.detach().numpy()) + 1j * m.A_imag.detach().numpy()
    bar = np.exp(np.exp(m.log_dt.detach().numpy())[:, None] * a)
    c = m.C.detach().numpy()
    c = (c[..., 0] + 1j * c[..., 1]) * (bar - 1) / a
    h, result = np.zeros((x.shape[1], *a.shape), complex), []
    for current in x.detach().numpy():
        h = bar * h + current[..., None]
        result.append(2 * (c * h).sum(-1).real + m.D.detach().numpy() * current)
    return np.stack(result)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("steps", "batch", "features", "states"), [(1, 1, 1, 2), (63, 2, 5, 6), (64, 3, 67, 4), (200, 1, 33, 64)])
def test_every_form_is_the_recurrence(form: str, steps: int, batch: int, features: int, states: int) -> None:
    m = layer(features, states, form=form)
    x = torch.randn(steps, batch, features, dtype=torch.float64)
    wanted = naive(m, x)
    for found in (m(x), m.rollout(x)):
        np.testing.assert_allclose(found.detach().numpy(), wanted, rtol=0, atol=1e-12 * np.abs(wanted).max())


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1e-4), (torch.float64, 1e-10)])
def test_step_against_convolution_over_16384_steps(form: str, dtype: torch.dtype, bound: float) -> None:
    m = layer(4, 64, dtype, form)
    x = torch.randn(16384, 1, 4, dtype=dtype)
    with torch.no_grad():
        stepped, whole = m.rollout(x), m(x)
    assert (stepped - whole).abs().max() < bound / 10 * stepped.abs().max()


def test_start_is_s4d_lin() -> None:
    m = layer(3, 8)
    assert torch.allclose(-m.log_A_real.exp(), torch.tensor(-0.5, dtype=torch.float64))
    assert torch.allclose(m.A_imag, torch.pi * torch.arange(4, dtype=torch.float64).expand(3, 4))
    assert ((m.log_dt >= np.log(1e-3) - 1e-6) & (m.log_dt <= np.log(1e-1) + 1e-6)).all()
    assert all(p.requires_grad for p in m.parameters())


@pytest.mark.parametrize("form", FORMS)
def test_gradcheck_of_every_parameter(form: str) -> None:
    m = layer(3, 4, form=form)
    x = torch.randn(11, 2, 3, dtype=torch.float64, requires_grad=True)
    names = [name for name, _ in m.named_parameters()]
    values = [p.detach().requires_grad_() for p in m.parameters()]
    unit = torch.tensor([0.5, 1.5, 2.0], dtype=torch.float64, requires_grad=True)

    def run(x: Tensor, unit: Tensor, *parameters: Tensor) -> Tensor:
        return torch.func.functional_call(m, dict(zip(names, parameters, strict=True)), (x, unit))

    assert torch.autograd.gradcheck(run, (x, unit, *values))


@pytest.mark.skipif(not native.available(), reason="needs the native core")
@pytest.mark.parametrize("features", [1, 31, 64, 65])
def test_gradients_of_the_scan_are_those_of_the_convolution(features: int) -> None:
    m = layer(features, 6)
    x = torch.randn(50, 3, features, dtype=torch.float64, requires_grad=True)
    g, found = torch.randn(50, 3, features, dtype=torch.float64), []
    for form in ("fft", "scan"):
        m.form = form
        found.append(torch.autograd.grad(m(x), [x, *m.parameters()], g))
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10 * float(a.abs().max()))


@pytest.mark.skipif(not native.available(), reason="needs the native core")
def test_the_scan_gives_the_same_for_any_number_of_threads() -> None:
    m = layer(70, 8, torch.float32, "scan")
    x, found, threads = torch.randn(40, 5, 70), [], torch.get_num_threads()
    for count in (1, 3):
        torch.set_num_threads(count)
        y = m(x.requires_grad_())
        found.append([y, *torch.autograd.grad(y.square().sum(), [x, *m.parameters()])])
    torch.set_num_threads(threads)
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


@pytest.mark.parametrize("form", FORMS)
def test_the_scan_and_the_convolution_do_not_read_the_future(form: str) -> None:
    m = layer(3, 8, form=form)
    x = torch.randn(30, 2, 3, dtype=torch.float64)
    changed = x.clone()
    changed[17:] = 1e6 if form == "fft" else float("nan")
    torch.testing.assert_close(m(x)[:17], m(changed)[:17], rtol=1e-9, atol=1e-8)


def test_dropout_spares_whole_channels_over_time() -> None:
    torch.manual_seed(0)
    y = TiedDropout(0.5)(torch.ones(7, 4, 50))
    assert torch.equal(y, y[:1].expand(7, 4, 50))
    assert set(y.unique().tolist()) == {0.0, 2.0}


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"norm": "batch", "prenorm": False, "readout": "last"},
        {"norm": "none", "readout": "none", "shared_threshold": True, "learnable_threshold": False, "threshold": 0.5},
        {"reset": "surrogate"},
    ],
)
def test_converted_model_equals_the_parallel_one(options: dict[str, object]) -> None:
    torch.manual_seed(1)
    model = SpikingSSM(2, 3, features=12, states=8, layers=2, **options).double().eval()  # type: ignore[arg-type]
    for block in model.blocks:
        block.neuron.reset, block.neuron.sdn = "exact", None  # the deployed neuron is the true one: compare with it
        if "ln_vth" in block.neuron._parameters:
            torch.nn.init.normal_(block.neuron.ln_vth, 0, 0.2)
    x = torch.randn(80, 3, 2, dtype=torch.float64)
    program = spikedeploy.convert(model, x)
    run = reference.run(program, x.numpy())
    with torch.no_grad():
        wanted = model(x)
    np.testing.assert_allclose(run.outputs["output"], wanted.numpy(), atol=1e-9)
    assert all(0 < run.rate(step.name) < 1 for step in program.spiking), "layers that never or always fire test nothing"


def test_the_surrogate_disappears_and_the_threshold_is_folded() -> None:
    torch.manual_seed(2)
    model = SpikingSSM(1, 2, features=4, states=4, layers=1, reset="surrogate").eval()
    torch.nn.init.normal_(model.blocks[0].neuron.ln_vth)
    program = spikedeploy.convert(model, torch.randn(3, 2, 1))
    (neuron,) = program.spiking
    assert isinstance(neuron, LIF)
    assert (neuron.reset, neuron.strict, float(neuron.decay)) == ("zero", False, 0.125)
    np.testing.assert_allclose(neuron.threshold, model.blocks[0].neuron.ln_vth.exp().detach().numpy())
    (ssm,) = (step for step in program.steps if isinstance(step, DiagonalSSM))
    exact = model.blocks[0].s4d.discretised()
    assert ssm.a_re.dtype == np.float64, "the discretisation must not be rounded before it is exported"
    assert np.array_equal(ssm.a_re + 1j * ssm.a_im, exact.a.detach().numpy())


def test_public_names() -> None:
    from spikedeploy import nn

    for name in ("S4D", "SpikingLIF", "SpikingSSM", "SpikingSSMBlock", "SurrogateDynamicNetwork", "from_published"):
        assert getattr(nn, name).__name__ == name
        assert name in dir(nn)


def test_tokens_run_through_an_embedding() -> None:
    torch.manual_seed(3)
    model = SpikingSSM(None, 3, vocabulary=7, features=8, states=4, layers=1).eval()
    x = torch.randint(0, 7, (20, 2))
    program = spikedeploy.convert(model, x)
    run = reference.run(program, x.numpy(), dtype=np.float32)
    np.testing.assert_allclose(run.outputs["output"], model(x).detach().numpy(), atol=1e-5)


@pytest.mark.parametrize("backend", ["onnxruntime", "onnx.reference"])
def test_deployed_cell_has_no_spike_outside_the_margin(backend: str) -> None:
    """Two layers, H = 64, N = 64: every layer on the spikes of the float64 reference, in the runtime of others."""
    import onnx
    import onnxruntime
    from onnx.reference import ReferenceEvaluator

    from spikedeploy.exporters.onnx_cell import export

    torch.manual_seed(4)
    model = SpikingSSM(1, 10, features=64, states=64, layers=2).eval()
    steps = 150 if backend == "onnxruntime" else 25
    x = np.random.default_rng(0).random((steps, 2, 1), np.float32)
    program = spikedeploy.convert(model, torch.from_numpy(x))
    wanted = reference.run(program, x, record=["blocks.0.neuron", "blocks.0.neuron.mem", "blocks.1.neuron", "blocks.1.neuron.mem"])
    data = export(program, spikes=True)
    if backend == "onnxruntime":
        session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
    else:
        session = ReferenceEvaluator(onnx.load_from_string(data))
    state = {name: np.zeros((2, *shape), np.float32) for name, shape in past_shapes(data).items()}
    names = [output.name for output in onnx.load_from_string(data).graph.output]
    wrong, decided = 0, 0
    for t in range(steps):
        found = dict(zip(names, session.run(None, {"input": x[t], **state}), strict=True))
        state = {name: found[name.replace("past", "present")] for name in state}
        for neuron in ("blocks.0.neuron", "blocks.1.neuron"):
            step = program.step(neuron)
            clear = np.abs(wanted.wires[f"{neuron}.mem"][t] - step.threshold) > 1e-4
            decided += clear.sum()
            wrong += ((found[f"spikes.{neuron}"] != wanted.wires[neuron][t]) & clear).sum()
    assert wrong == 0
    assert decided > 0.999 * steps * 2 * 2 * 64, "the margin must not swallow the test"


def past_shapes(data: bytes) -> dict[str, tuple[int, ...]]:
    import onnx

    inputs = onnx.load_from_string(data).graph.input
    return {i.name: tuple(d.dim_value for d in i.type.tensor_type.shape.dim[1:]) for i in inputs if i.name != "input"}


@pytest.mark.parametrize("compiled", [True, False] if native.available() else [False])
def test_event_driven_engine_runs_it(compiled: bool) -> None:
    from spikedeploy.runtime.events import EventEngine

    torch.manual_seed(8)
    x = np.random.default_rng(2).normal(size=(120, 3, 2)).astype(np.float32)
    program = spikedeploy.convert(SpikingSSM(2, 4, features=20, states=8, layers=2).eval(), torch.from_numpy(x))
    neurons = [step.name for step in program.spiking]
    wanted = reference.run(program, x, record=[*neurons, *(f"{name}.mem" for name in neurons)])
    found = EventEngine(program, batch=3, native=compiled).run(x, record=neurons)
    for step in program.spiking:
        clear = np.abs(wanted.wires[f"{step.name}.mem"] - step.threshold) > 1e-4  # type: ignore[attr-defined]
        assert clear.mean() > 0.999
        assert np.array_equal(found.wires[step.name][clear], wanted.wires[step.name][clear])
    np.testing.assert_allclose(found.outputs["output"], wanted.outputs["output"], atol=1e-5)


def test_nir_refuses_by_name() -> None:
    from spikedeploy.exporters import nir as exporter

    program = spikedeploy.convert(SpikingSSM(1, 2, features=4, states=4, layers=1).eval(), torch.randn(3, 2, 1))
    with pytest.raises(ModelRefused, match=r"blocks\.0\.\w+"):
        exporter.export(program)


def test_findings_tell_conversion_from_surrogate() -> None:
    torch.manual_seed(5)
    network = SurrogateDynamicNetwork.shipped()
    model = SpikingSSM(1, 2, features=16, states=8, layers=2, reset="surrogate", sdn=network).train()
    x = torch.randn(200, 4, 1)
    first, second = surrogate_findings(model, x)
    assert model.training, "looking must not change the model"
    assert (first.layer, second.layer) == ("blocks.0.neuron", "blocks.1.neuron")
    assert first.decisions == 200 * 4 * 16
    assert first.conversion is not None and first.conversion > 0.9999
    assert first.surrogate is not None and 0.995 < first.surrogate <= 1.0
    assert first.outside == 0.0
    network.fitted.copy_(torch.tensor([-0.1, 0.1]))
    network.conv3.bias += 0.3
    (worse, _) = surrogate_findings(model, x)
    assert worse.surrogate is not None and worse.surrogate < 0.95, "a bad surrogate must show"
    assert worse.conversion == first.conversion, "and must not be booked on the conversion"
    assert worse.outside > 0.3
    assert "leave [-0.1, 0.1]" in str(worse)


def test_an_exact_model_has_no_surrogate_to_report() -> None:
    (found,) = surrogate_findings(SpikingSSM(1, 2, features=4, states=4, layers=1), torch.randn(9, 1, 1))
    assert found.surrogate is None and found.fitted is None and found.outside == 0.0


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: S4D(3, 5), "an even number of states"),
        (lambda: S4D(3, 4, form="both"), "'fft' or 'scan'"),
        (lambda: S4D(3, 4)(torch.zeros(2, 2, 4)), r"\(T, B, 3\) with at least one step is needed"),
        (lambda: S4D(3, 4)(torch.zeros(0, 2, 3)), "at least one step"),
        (lambda: SpikingSSMBlock(3, norm="group"), "norm 'group'"),
        (lambda: SpikingSSM(1, 2, readout="sum"), "readout 'sum'"),
        (lambda: TiedDropout(1.0), "a probability below 1"),
    ],
)
def test_arguments_out_of_range(make: object, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        make()  # type: ignore[operator]


def test_verify_passes_a_surrogate_model_and_says_what_the_surrogate_costs() -> None:
    from spikedeploy.verify import verify

    torch.manual_seed(6)
    model = SpikingSSM(1, 3, features=16, states=8, layers=2, reset="surrogate").eval()
    x = np.random.default_rng(1).normal(size=(150, 3, 1)).astype(np.float32)
    certificate = verify(model, x=x)
    assert certificate.passed, str(certificate)
    told = [str(finding.text) for finding in certificate.findings if "surrogate" in finding.text]
    assert len(told) == 3
    assert "moves the output" in told[0]
    assert all("conversion keeps 100" in text for text in told[1:])
    assert all(block.neuron.sdn is not None for block in model.blocks), "looking must not change the model"


def test_save_and_load_give_the_same_model_and_a_frozen_surrogate(tmp_path: Path) -> None:
    torch.manual_seed(7)
    model = SpikingSSM(1, 3, features=6, states=4, layers=1, tau=0.25, reset="surrogate", sdn=SurrogateDynamicNetwork(0.25)).eval()
    x = torch.randn(30, 2, 1)
    spikedeploy.save(model, tmp_path / "m.pt", x)
    again = spikedeploy.load(tmp_path / "m.pt")
    assert torch.equal(again(x), model(x))
    again(x).sum().backward()
    networks = [m for m in again.modules() if isinstance(m, SurrogateDynamicNetwork)]
    assert [n.tau for n in networks] == [0.25]
    assert all(p.grad is None for n in networks for p in n.parameters())
