"""The reference loop against torch's own modules: the one place where the specification itself is checked."""

import numpy as np
import pytest
import snntorch
import torch
from torch.nn import functional as F

from spikedeploy import steps as S
from spikedeploy.errors import BadInput
from spikedeploy.program import Output, Program
from spikedeploy.runtime.reference import run

RNG = np.random.default_rng(0)


@pytest.fixture(autouse=True)
def same_numbers() -> None:
    """Every test draws the same numbers, alone or in any company."""
    global RNG
    RNG = np.random.default_rng(0)


def single(step, shape, wire=None, reduce="none", kind="float"):
    return Program(tuple(shape), (step,), (Output("y", wire or step.name, reduce),), kind)


def result(step, x, **kwargs):
    return run(single(step, x.shape[2:], **kwargs), x).outputs["y"]


def random(*shape):
    return RNG.standard_normal(shape)


def test_affine_is_torch_linear():
    w, b, x = random(5, 3), random(5), random(4, 2, 3)
    assert np.allclose(result(S.Affine("a", ("input",), w, b), x), F.linear(*map(torch.tensor, (x, w, b))), atol=1e-14)
    assert np.allclose(result(S.Affine("a", ("input",), w), x), x @ w.T, atol=1e-14)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"stride": (2, 1), "padding": (1, 2)},
        {"dilation": (2, 1), "groups": 2},
        {"stride": (3, 2), "padding": (2, 0), "groups": 4, "dilation": (1, 3)},
    ],
)
def test_conv2d_is_torch_conv2d(options):
    groups = options.get("groups", 1)
    w, b, x = random(8, 4 // groups, 3, 2), random(8), random(3, 2, 4, 9, 11)
    expected = F.conv2d(torch.tensor(x).flatten(0, 1), torch.tensor(w), torch.tensor(b), **options)
    got = result(S.Conv2d("c", ("input",), w, b, **options), x)
    assert got.shape == (3, 2, *expected.shape[1:])
    assert np.allclose(got.reshape(expected.shape), expected, atol=1e-12)


@pytest.mark.parametrize(("kernel", "stride", "padding"), [((2, 2), (2, 2), (0, 0)), ((3, 2), (1, 3), (1, 1))])
def test_sum_pool_is_torch_average_times_count(kernel, stride, padding):
    x = random(3, 1, 2, 7, 8)
    expected = F.avg_pool2d(torch.tensor(x).flatten(0, 1), kernel, stride, padding) * kernel[0] * kernel[1]
    assert np.allclose(result(S.SumPool2d("p", ("input",), kernel, stride, padding), x).reshape(expected.shape), expected, atol=1e-13)


@pytest.mark.parametrize(
    ("name", "function"),
    [
        ("relu", F.relu),
        ("gelu", F.gelu),
        ("gelu_tanh", lambda x: F.gelu(x, approximate="tanh")),
        ("silu", F.silu),
        ("sigmoid", torch.sigmoid),
        ("tanh", torch.tanh),
        ("exp", torch.exp),
    ],
)
def test_activations_are_torchs(name, function):
    x = random(3, 2, 7) * 4
    x[0, 0, 0], x[0, 0, 1] = -60.0, 60.0
    assert np.allclose(result(S.Activation("f", ("input",), name), x), function(torch.tensor(x)), rtol=1e-13, atol=1e-15)


def test_norms_are_torchs():
    x, w, b = random(3, 2, 7), random(7), random(7)
    assert np.allclose(
        result(S.LayerNorm("n", ("input",), w, b), x), F.layer_norm(torch.tensor(x), (7,), torch.tensor(w), torch.tensor(b)), atol=1e-13
    )
    assert np.allclose(result(S.L2Normalize("n", ("input",)), x), F.normalize(torch.tensor(x), dim=-1), atol=1e-14)


def test_embedding_looks_rows_up_and_refuses_others():
    table = random(5, 3)
    step = S.Embedding("e", ("input",), table)
    tokens = np.array([[0, 4], [2, 2]])
    assert np.array_equal(result(step, tokens, kind="index"), table[tokens])
    for bad in ([[5]], [[-1]], [[0.5]]):
        with pytest.raises(BadInput, match="whole numbers from 0 to 4"):
            result(step, np.array(bad), kind="index")


def test_topk_breaks_ties_by_lowest_index():
    x = np.array([[[1.0, -2.0, 2.0, 0.5, 1.0]]])
    assert np.array_equal(result(S.TopK("k", ("input",), 2), x)[0, 0], [0, -2, 2, 0, 0])
    assert np.array_equal(result(S.TopK("k", ("input",), 3), x)[0, 0], [1, -2, 2, 0, 0])


def test_nearest_is_snntorchs_state_quant():
    from snntorch.functional import quant

    levels = np.array([-0.5, 0.0, 0.25, 1.0])
    x = np.concatenate([random(2, 3, 40), np.full((2, 3, 1), 0.125), np.full((2, 3, 1), 9.0)], axis=-1)
    expected = quant.StateQuant.apply(torch.tensor(x), torch.tensor(levels))
    assert np.array_equal(result(S.Nearest("q", ("input",), levels), x), expected)


def test_delay_and_truncated_integrator_are_the_truncated_sum():
    x, d, k = random(9, 2, 3), 0.7, 4
    assert np.array_equal(result(S.Delay("z", ("input",), 2), x), np.concatenate([np.zeros((2, 2, 3)), x[:-2]]))
    program = Program(
        (3,),
        (
            S.Delay("line", ("input",), k),
            S.Scale("old", ("line",), np.array(-(d**k))),
            S.Add("in", ("input", "old")),
            S.Integrator("u", ("in",), np.array(d)),
        ),
        (Output("u", "u"),),
    )
    naive = np.stack([sum(d**j * x[t - j] for j in range(min(k, t + 1))) for t in range(len(x))])
    assert np.allclose(run(program, x).outputs["u"], naive, atol=1e-14)


@pytest.mark.parametrize("reset", ["subtract", "zero"])
@pytest.mark.parametrize("delayed", [True, False])
def test_lif_is_bit_equal_to_snntorch_leaky(reset, delayed):
    x = (RNG.standard_normal((60, 2, 5)) * 0.8).astype(np.float32)
    beta, theta = np.linspace(0.3, 0.99, 5).astype(np.float32), np.linspace(0.5, 1.5, 5).astype(np.float32)
    neuron = snntorch.Leaky(torch.tensor(beta), torch.tensor(theta), reset_mechanism=reset, reset_delay=delayed, graded_spikes_factor=0.75)
    mem, spikes, membranes = neuron.reset_mem(), [], []
    for x_t in torch.tensor(x):
        spk, mem = neuron(x_t, mem)
        spikes.append(spk)
        membranes.append(mem)
    step = S.LIF("l", ("input",), beta, theta, reset, delayed, amplitude=np.float32(0.75))
    got = run(single(step, (5,)), x, dtype=np.float32, record=["l", "l.mem"])
    assert np.array_equal(got.wires["l"], torch.stack(spikes).numpy())
    assert np.array_equal(got.wires["l.mem"], torch.stack(membranes).numpy())
    assert 0 < got.rate("l") < 1


def test_lif_value_reset_is_nirs():
    step = S.LIF("l", ("input",), np.array(0.5), np.array(1.0), "value", False, reset_value=np.array(0.25))
    got = run(single(step, (1,)), np.array([1.5, 0.0, 2.0]).reshape(3, 1, 1), record=["l", "l.mem"])
    assert got.wires["l"].ravel().tolist() == [1, 0, 1]
    assert got.wires["l.mem"].ravel().tolist() == [0.25, 0.125, 0.25]


@pytest.mark.parametrize(("strict", "spikes"), [(True, [0, 1]), (False, [1, 1])])
def test_threshold_on_an_exact_tie(strict, spikes):
    step = S.Threshold("s", ("input",), np.array(1.0), np.array(2.5), strict)
    got = result(step, np.array([1.0, 1.5]).reshape(1, 1, 2))
    assert got.ravel().tolist() == [2.5 * s for s in spikes]


def memory(kind, n_inputs, **options):
    """A memory fed by slices of one wide input: d = 2, n = 3."""
    names = ("v", "k", "alpha", "beta")[:n_inputs]
    edges = np.cumsum([0, 2, 3, 3, 1])
    cuts = tuple(S.Slice(n, ("input",), int(edges[i]), int(edges[i + 1])) for i, n in enumerate(names))
    return Program((int(edges[n_inputs]),), (*cuts, kind("S", names, **options)), (Output("S", "S"),))


def test_matrix_memory_is_the_sum_of_decayed_writes():
    x = RNG.uniform(0.1, 0.9, (7, 2, 8))
    v, k, alpha = x[..., :2], x[..., 2:5], x[..., 5:]
    got = run(memory(S.MatrixMemory, 3), x).outputs["S"]
    for t in range(7):
        naive = sum(v[r][:, :, None] * (k[r] * alpha[r + 1 : t + 1].prod(axis=0))[:, None, :] for r in range(t + 1))
        assert np.allclose(got[t], naive, atol=1e-14)


def test_library_semantics_are_the_librarys_formula():
    x = RNG.uniform(0.05, 0.6, (30, 2, 8))
    v, k, alpha = x[..., :2], x[..., 2:5], x[..., 5:]
    got = run(memory(S.MatrixMemory, 3, semantics="snntorch-1.0.0"), x).outputs["S"]
    p = np.cumprod(alpha, axis=0)
    writes = v[..., :, None] * k[..., None, :] / (p + 1e-8)[..., None, :]
    assert np.allclose(got, np.cumsum(writes, axis=0) * p[..., None, :], rtol=1e-10, atol=1e-15)
    assert abs(got - run(memory(S.MatrixMemory, 3), x).outputs["S"]).max() > 0.01


def test_delta_memory_is_the_matrix_product_form():
    x = RNG.uniform(0.1, 0.9, (6, 1, 9))
    got, state = run(memory(S.DeltaMemory, 4), x).outputs["S"], np.zeros((2, 3))
    for t in range(6):
        v, k, alpha, beta = x[t, 0, :2], x[t, 0, 2:5], x[t, 0, 5:8], x[t, 0, 8]
        state = state @ (np.diag(alpha) @ (np.eye(3) - beta * np.outer(k, k))) + beta * np.outer(v, k)
        assert np.allclose(got[t, 0], state, atol=1e-14)


def test_diagonal_ssm_is_the_complex_recurrence():
    a = 0.9 * np.exp(1j * RNG.uniform(-1, 1, (3, 4)))
    c, d, x = random(3, 4) + 1j * random(3, 4), random(3), random(10, 2, 3)
    got, h = result(S.DiagonalSSM("s", ("input",), a.real, a.imag, c.real, c.imag, d), x), np.zeros((2, 3, 4), complex)
    for t in range(10):
        h = a * h + x[t][..., None]
        assert np.allclose(got[t], 2 * (c * h).sum(-1).real + d * x[t], atol=1e-13)


def test_states_carry_over_and_forcing_changes_only_what_readers_see():
    program = Program(
        (3,),
        (
            S.Integrator("a.mem", ("input",), np.array(0.5)),
            S.Threshold("a", ("a.mem",), np.array(0.5)),
            S.Integrator("b", ("a",), np.array(0.9)),
        ),
        (Output("b", "b"),),
    )
    x = random(8, 2, 3)
    whole, first = run(program, x, record=["a"]), run(program, x[:3])
    rest = run(program, x[3:], states=first.states)
    assert np.array_equal(np.concatenate([first.outputs["b"], rest.outputs["b"]]), whole.outputs["b"])
    forced = run(program, x, record=["a"], forced={"a": np.ones((8, 2, 3))})
    assert np.array_equal(forced.wires["a"], whole.wires["a"])
    assert np.allclose(forced.outputs["b"][1], 1.9)


@pytest.mark.parametrize(("reduce", "expected"), [("none", [1, 3, 2]), ("sum", 6), ("mean", 2), ("last", 2), ("max", 3)])
def test_time_reductions(reduce, expected):
    x = np.array([1.0, 3.0, 2.0]).reshape(3, 1, 1)
    assert np.array_equal(np.ravel(result(S.Add("y", ("input",)), x, reduce=reduce)), np.ravel(expected))


@pytest.mark.parametrize(
    ("x", "said"),
    [
        (np.zeros((0, 1, 3)), r"shape \(0, 1, 3\); \(T, B, 3\) is needed"),
        (np.zeros((2, 3)), r"shape \(2, 3\)"),
        (np.zeros((2, 1, 4)), r"shape \(2, 1, 4\)"),
        (np.full((2, 1, 3), np.nan), "NaN or infinity"),
        (np.array([[["a", "b", "c"]]]), "real numbers are needed"),
    ],
)
def test_bad_input_is_refused_with_what_is_needed(x, said):
    with pytest.raises(BadInput, match=said):
        run(single(S.Add("y", ("input",)), (3,)), x)
