"""The neuron with hard reset: exact forms against the loop, the surrogate network against its definition, published weights."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from spikedeploy import native
from spikedeploy.errors import BadInput, ModelRefused
from spikedeploy.nn.hard_reset import hard_reset, rollout
from spikedeploy.nn.published import from_published
from spikedeploy.nn.sdn import SurrogateDynamicNetwork
from spikedeploy.nn.spiking_ssm import SpikingLIF, SpikingSSM, TriangleSpike
from spikedeploy.program import Output, Program
from spikedeploy.runtime import reference
from spikedeploy.steps import LIF

KERNELS = [False, True] if native.available() else [False]


def iterated(x: Tensor, tau: float) -> tuple[Tensor, Tensor]:
    """Spikes and membrane with autograd through the loop, the reset detached: the definition of the gradient."""
    u, spikes, membrane = torch.zeros_like(x[0]), [], []
    for current in x.unbind(0):
        u = tau * u + current
        s = TriangleSpike.apply(u - 1)
        spikes.append(s)
        membrane.append(u)
        u = (1 - s.detach()) * u
    return torch.stack(spikes), torch.stack(membrane)


@pytest.mark.parametrize("kernel", KERNELS)
@settings(max_examples=25, deadline=None)
@given(
    steps=st.integers(1, 90),
    lanes=st.integers(1, 9),
    tau=st.sampled_from([0.125, 0.5, 0.9, 0.999]),
    double=st.booleans(),
    seed=st.integers(0, 2**31),
)
def test_exact_forms_give_the_bits_of_the_loop(kernel: bool, steps: int, lanes: int, tau: float, double: bool, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(steps, lanes, 2, generator=generator, dtype=torch.float64 if double else torch.float32)
    spikes, membrane = hard_reset(x, tau, kernel=kernel)
    assert torch.equal(membrane, rollout(x, tau))
    assert torch.equal(spikes, (membrane >= 1).to(x))


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("through", ["spikes", "membrane", "both"])
def test_gradient_is_that_of_the_loop(kernel: bool, through: str) -> None:
    torch.manual_seed(0)
    x = torch.randn(37, 5, 3, dtype=torch.float64, requires_grad=True)
    gs, gm = torch.randn(2, 37, 5, 3, dtype=torch.float64).unbind(0)
    found, wanted = hard_reset(x, 0.125, kernel=kernel), iterated(x, 0.125)

    def pulled(pair: tuple[Tensor, Tensor]) -> Tensor:
        loss = (pair[0] * gs).sum() * (through != "membrane") + (pair[1] * gm).sum() * (through != "spikes")
        return torch.autograd.grad(loss, x)[0]

    torch.testing.assert_close(pulled(found), pulled(wanted), rtol=1e-12, atol=1e-14)


@pytest.mark.skipif(not native.available(), reason="needs the native core")
def test_gradients_of_kernel_and_chunks_are_bit_equal() -> None:
    torch.manual_seed(1)
    x, gs, gm = torch.randn(3, 300, 11)
    x.requires_grad_()
    found = [torch.autograd.grad(hard_reset(x, 0.5, kernel=kernel), x, [gs, gm])[0] for kernel in (True, False)]
    assert torch.equal(*found)


def test_gradcheck_of_the_membrane() -> None:
    torch.manual_seed(2)
    x = torch.randn(12, 3, dtype=torch.float64)
    assert (rollout(x, 0.5) - 1).abs().min() > 1e-3, "a membrane at the threshold has no derivative"
    for kernel in KERNELS:
        assert torch.autograd.gradcheck(lambda v, k=kernel: hard_reset(v, 0.5, kernel=k)[1], x.requires_grad_(), eps=1e-6)


def test_equals_the_reference_neuron_with_ties() -> None:
    """Dyadic currents reach the threshold exactly: `>=` fires there, and mem is the membrane before reset."""
    rng = np.random.default_rng(0)
    x = rng.integers(-8, 9, (200, 4, 3)) / 8
    program = Program(
        (3,), (LIF("lif", ("input",), np.array(0.5), np.array(0.5), "zero", strict=False),), (Output("s", "lif"), Output("u", "lif.mem"))
    )
    run = reference.run(program, x, dtype=np.float32)
    spikes, membrane = SpikingLIF(tau=0.5, threshold=0.5).exact(torch.from_numpy(x.astype(np.float32)))
    assert (run.outputs["u"] == 0.5).any(), "no tie: the test would not see a strict comparison"
    assert np.array_equal(run.outputs["s"], spikes.numpy())
    assert np.array_equal(run.outputs["u"], membrane.numpy())


def test_a_bad_value_spoils_what_comes_after_and_nothing_else() -> None:
    x = torch.randint(0, 9, (153, 2)).double()
    x[20] = float("nan")
    spikes, membrane = hard_reset(x, 0.125, kernel=False)
    assert membrane[19].isfinite().all()
    assert membrane[20:].isnan().all()
    assert not spikes[20:].any()


@pytest.mark.parametrize("kernel", KERNELS)
def test_nothing_reads_the_future(kernel: bool) -> None:
    x = torch.randn(60, 4)
    spoiled = x.clone()
    spoiled[41:] = float("nan")
    assert torch.equal(hard_reset(x, 0.9, kernel=kernel)[1][:41], hard_reset(spoiled, 0.9, kernel=kernel)[1][:41])
    network = SurrogateDynamicNetwork.shipped()
    assert torch.equal(network(x)[:42], network(spoiled)[:42])


# --- the surrogate network ---------------------------------------------------------------------------------------


def test_shipped_network_predicts_the_spikes() -> None:
    torch.manual_seed(3)
    network = SurrogateDynamicNetwork.shipped(0.125)
    assert sum(p.numel() for p in network.parameters()) == 153
    assert not any(p.requires_grad for p in network.parameters())
    for sigma, floor in ((1.0, 0.9997), (5**0.5, 0.9997), (5.0, 0.9997)):
        x = sigma * torch.randn(1024, 1000)
        agree = ((network(x) + x - 1 >= 0) == (rollout(x, 0.125) >= 1)).double().mean()
        assert agree > floor


def test_gradient_of_the_surrogate_is_its_definition() -> None:
    """s = H(SDN(x) + x - 1), the gradient through x only: g * max(0, 1 - |SDN(x) + x - 1|)."""
    torch.manual_seed(4)
    neuron = SpikingLIF(3, learnable_threshold=True, reset="surrogate")
    with torch.no_grad():
        neuron.ln_vth.copy_(torch.tensor([0.3, -0.2, 0.0]))
    x, g = torch.randn(50, 4, 3, requires_grad=True), torch.randn(50, 4, 3)
    spikes = neuron(x)
    g_x, g_ln = torch.autograd.grad(spikes, [x, neuron.ln_vth], g)
    with torch.no_grad():
        vth = neuron.ln_vth.exp()
        away = neuron.sdn(x / vth) + x / vth - 1
        slope = (1 - away.abs()).clamp_min(0)
        assert torch.equal(spikes, (away >= 0).float())
        torch.testing.assert_close(g_x, g * slope / vth)
        torch.testing.assert_close(g_ln, -(g * slope * x / vth).sum((0, 1)))


def test_network_is_its_equation() -> None:
    """The naive sum, at every step, of what the docstring says."""
    torch.manual_seed(5)
    network = SurrogateDynamicNetwork().double()
    x = torch.randn(21, 2, dtype=torch.float64)
    padded = torch.cat([torch.zeros(8, 2, dtype=torch.float64), x])
    for t in range(21):
        h = F.relu(network.conv1.weight[:, 0] @ padded[t : t + 8] + network.conv1.bias[:, None])
        h = F.relu(network.conv2.weight[..., 0] @ h + network.conv2.bias[:, None] + h)
        torch.testing.assert_close(network(x)[t], (network.conv3.weight[..., 0] @ h + network.conv3.bias)[0])


def test_save_and_load(tmp_path: Path) -> None:
    network = SurrogateDynamicNetwork(0.3, fitted=(-2.0, 2.5))
    network.save(tmp_path / "n.npz")
    again = SurrogateDynamicNetwork.load(tmp_path / "n.npz")
    assert all(torch.equal(a, b) for a, b in zip(network.state_dict().values(), again.state_dict().values(), strict=True))
    with pytest.raises(BadInput, match="unreadable"):
        SurrogateDynamicNetwork.load(b"no archive")
    with pytest.raises(BadInput, match=r"none is shipped for tau 0\.77"):
        SurrogateDynamicNetwork.shipped(0.77)


# --- published weights -------------------------------------------------------------------------------------------


class Fitted(nn.Module):
    """The published network as it is fitted: encoder, depthwise convolution, batch norms, decoder."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Conv1d(1, 8, 1, bias=False)
        self.spatial_layers = nn.ModuleList([nn.Sequential(nn.Conv1d(8, 8, 8, padding=8, groups=8), nn.BatchNorm1d(8))])
        self.feature_layers = nn.ModuleList([nn.Sequential(nn.Conv1d(8, 8, 1), nn.BatchNorm1d(8))])
        self.decoder = nn.Conv1d(8, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu(self.spatial_layers[0](self.encoder(x))[..., : x.shape[-1]])
        return self.decoder(F.relu(self.feature_layers[0](h) + h))


class Fused(nn.Module):
    """The published network after fusing; an unused encoder stays in its state_dict."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Conv1d(1, 8, 1, padding=1, bias=False)
        self.spatial_layers = nn.ModuleList([nn.Conv1d(1, 8, 8, padding=8)])
        self.feature_layers = nn.ModuleList([nn.Conv1d(8, 8, 1)])
        self.decoder = nn.Conv1d(8, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu(self.spatial_layers[0](x)[..., : x.shape[-1]])
        return self.decoder(F.relu(self.feature_layers[0](h) + h))


@pytest.mark.parametrize("make", [Fitted, Fused])
def test_published_networks_compute_the_same_here(make: type[nn.Module]) -> None:
    torch.manual_seed(6)
    theirs = make()
    for module in theirs.modules():
        if isinstance(module, nn.BatchNorm1d):
            nn.init.normal_(module.running_mean)
            nn.init.uniform_(module.running_var, 0.5, 2)
            nn.init.normal_(module.weight)
    theirs.eval()
    x = torch.randn(40, 3)
    ours = SurrogateDynamicNetwork.from_published({f"neuron.model.{k}": v for k, v in theirs.state_dict().items()})
    torch.testing.assert_close(ours(x), theirs(x.T[:, None]).squeeze(1).T)


@pytest.mark.parametrize("names", [("conv1", "conv2", "conv3"), ("c1", "c2", "c3"), ("net.0", "net.2", "net.4")])
def test_networks_under_other_names_load(names: tuple[str, str, str]) -> None:
    own = SurrogateDynamicNetwork()
    state = {k.replace(f"conv{i + 1}", name): v for k, v in own.state_dict().items() for i, name in enumerate(names) if f"conv{i + 1}" in k}
    ours = SurrogateDynamicNetwork.from_published(state)
    assert all(torch.equal(ours.state_dict()[f"conv{i}.weight"], own.state_dict()[f"conv{i}.weight"]) for i in (1, 2, 3))


def test_a_network_with_a_missing_or_misshapen_layer_is_refused() -> None:
    state = SurrogateDynamicNetwork().state_dict()
    with pytest.raises(BadInput, match="no layer for conv3"):
        SurrogateDynamicNetwork.from_published({k: v for k, v in state.items() if "conv3" not in k})
    with pytest.raises(BadInput, match=r"conv2\.bias of shape"):
        SurrogateDynamicNetwork.from_published({**state, "conv2.bias": torch.zeros(3)})


def published_state(layers: int = 2, width: int = 6, modes: int = 3, norm: str = "layer") -> OrderedDict[str, Tensor]:
    """A state_dict with the names and shapes of the published code."""
    torch.manual_seed(7)
    state = OrderedDict({"encoder.weight": torch.randn(width, 1), "encoder.bias": torch.randn(width)})
    for i in range(layers):
        at = f"model.s4_layers.{i}"
        state |= {f"{at}.D": torch.randn(1, width), f"{at}.ln_vth": 0.1 * torch.randn(width, 1)}
        state |= {f"{at}.kernel.C": torch.randn(1, width, modes, 2), f"{at}.kernel.log_dt": torch.rand(width) - 4}
        state |= {f"{at}.kernel.log_A_real": torch.zeros(width, modes), f"{at}.kernel.A_imag": 3 * torch.rand(width, modes)}
        state |= {f"{at}.output_linear.0.weight": torch.randn(2 * width, width, 1), f"{at}.output_linear.0.bias": torch.randn(2 * width)}
        state |= {f"model.norms.{i}.weight": torch.rand(width), f"model.norms.{i}.bias": torch.rand(width)}
        if norm == "batch":
            state |= {f"model.norms.{i}.running_mean": torch.randn(width), f"model.norms.{i}.running_var": torch.rand(width) + 0.5}
            state |= {f"model.norms.{i}.num_batches_tracked": torch.tensor(3)}
    return state | {"decoder.0.output_transform.weight": torch.randn(4, width), "decoder.0.output_transform.bias": torch.randn(4)}


def published_forward(state: OrderedDict[str, Tensor], x: Tensor, norm: str, sdn: nn.Module | None) -> Tensor:
    """What the published forward does with them, written from its definition: channels before time, kernels in full."""
    h = (x @ state["encoder.weight"].T + state["encoder.bias"]).permute(1, 2, 0)
    for i in range(2):
        s = {k.split(f"s4_layers.{i}.")[1]: v for k, v in state.items() if f"s4_layers.{i}." in k}
        n = {k.split(f"norms.{i}.")[1]: v for k, v in state.items() if f"norms.{i}." in k}
        if norm == "layer":
            z = F.layer_norm(h.mT, (h.shape[1],), n["weight"], n["bias"]).mT
        else:
            z = F.batch_norm(h, n["running_mean"], n["running_var"], n["weight"], n["bias"])
        steps = h.shape[-1]
        a = -s["kernel.log_A_real"].exp() + 1j * s["kernel.A_imag"]
        dta = a * s["kernel.log_dt"].exp()[:, None]
        c = torch.view_as_complex(s["kernel.C"])[0] * (dta.exp() - 1) / a
        kernel = 2 * torch.einsum("hn,hnl->hl", c, (dta[..., None] * torch.arange(steps)).exp()).real
        y = torch.stack([(kernel[:, : t + 1].flip(-1) * z[..., : t + 1]).sum(-1) for t in range(steps)], -1)
        y = (y + z * s["D"][0][:, None]) / s["ln_vth"].exp()
        flat = y.permute(2, 0, 1)
        spikes = (sdn(flat) + flat - 1 >= 0).float() if sdn else iterated(flat, 0.125)[0]
        h = h + F.glu(F.conv1d(spikes.permute(1, 2, 0), s["output_linear.0.weight"], s["output_linear.0.bias"]), dim=1)
    return h.mean(-1) @ state["decoder.0.output_transform.weight"].T + state["decoder.0.output_transform.bias"]


@pytest.mark.parametrize("norm", ["layer", "batch"])
@pytest.mark.parametrize("surrogate", [False, True])
def test_a_published_model_computes_the_same_here(norm: str, surrogate: bool) -> None:
    state = published_state(norm=norm)
    sdn = SurrogateDynamicNetwork.shipped() if surrogate else None
    model = from_published(state, prenorm=True, sdn=sdn).eval()
    x = torch.randn(30, 3, 1)
    assert (model.blocks[0].neuron.sdn is not None) == surrogate
    torch.testing.assert_close(model(x), published_forward(state, x, norm, sdn), rtol=1e-4, atol=1e-5)


def test_what_cannot_be_loaded_is_said() -> None:
    state = published_state()
    with pytest.raises(BadInput, match="no s4_layers among"):
        from_published({"weight": torch.zeros(1)}, prenorm=True)
    with pytest.raises(BadInput, match=r"layer 1 has no kernel\.C"):
        from_published({k: v for k, v in state.items() if k != "model.s4_layers.1.kernel.C"}, prenorm=True)
    both = torch.randn(2, 6, 3, 2)
    with pytest.raises(ModelRefused, match="bidirectional"):
        from_published({**state, "model.s4_layers.0.kernel.C": both}, prenorm=True)
    with pytest.raises(ModelRefused, match="bidirectional"):
        SpikingSSM(1, 2, bidirectional=True)
    assert isinstance(from_published(state, prenorm=False).blocks[0].norm, nn.Identity)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"tau": 1.0}, r"tau 1\.0; a decay between 0 and 1"),
        ({"threshold": 0.0}, "a positive number"),
        ({"reset": "soft"}, "reset 'soft'"),
        ({"tau": 0.25, "reset": "surrogate", "sdn": SurrogateDynamicNetwork(0.5)}, r"stands for tau 0\.5"),
    ],
)
def test_arguments_out_of_range(arguments: dict[str, object], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        SpikingLIF(3, **arguments)


def test_inputs_that_no_form_takes() -> None:
    with pytest.raises(ValueError, match="at least one step"):
        hard_reset(torch.zeros(0, 3), 0.5)
    with pytest.raises(ValueError, match="floating point"):
        hard_reset(torch.ones(4, 3, dtype=torch.int64), 0.5)
    with pytest.raises(ValueError, match="the kernel takes float32 and float64"):
        hard_reset(torch.ones(4, 3, dtype=torch.bfloat16), 0.5, kernel=True)
    assert hard_reset(torch.ones(4, 3, dtype=torch.bfloat16), 0.5)[0].dtype == torch.bfloat16


def test_a_second_derivative_is_refused() -> None:
    x = torch.randn(5, 3, requires_grad=True)
    (g,) = torch.autograd.grad(hard_reset(x, 0.125)[1].square().sum(), x, create_graph=True)
    with pytest.raises(BadInput, match="first derivative only"):
        g.sum().backward()
