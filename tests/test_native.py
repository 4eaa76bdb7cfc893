"""The native core: threads change no bit, one OpenMP is mapped, and everything runs without it."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest
import torch

from spikedeploy import native
from spikedeploy.nn import AssociativeLeaky, DeltaRuleLeaky, Leaky, StateLeaky

built = pytest.mark.skipif(not native.available(), reason="needs the native core")


def run(code: str, **environment: str) -> str:
    result = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | environment, capture_output=True, text=True, timeout=120, check=False
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


@built
@pytest.mark.parametrize(
    "layer", [StateLeaky(torch.rand(33), 33, learn_beta=True, learn_threshold=True), Leaky(0.9, learn_beta=True, learn_threshold=True)]
)
def test_threads_change_no_bit(layer):
    x, weights = torch.randn(300, 5, 33), torch.randn(300, 5, 33)
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            y = x.clone().requires_grad_()
            spk, mem = layer(y)
            loss = (spk * weights).sum() + mem.square().sum()
            results.append([spk, mem, *torch.autograd.grad(loss, [y, *layer.parameters()])])
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@built
@pytest.mark.parametrize("first", ["import torch", "from spikedeploy import native; native.core()"])
def test_one_openmp_is_mapped(first):
    code = f"""{first}
import torch
from spikedeploy.nn import Leaky
from spikedeploy import native
native.core()
torch.set_num_threads(2)
Leaky(0.9)(torch.randn(100, 8, 64))
torch.randn(1000, 1000) + 1
print(len({{line.split()[-1] for line in open('/proc/self/maps') if 'gomp' in line or 'iomp' in line}}))"""
    assert run(code).strip() == "1"


@built
@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_a_forked_process_goes_on_with_threads():
    """A fork copies one thread; OpenMP in the child must not wait for the others. Twice: the parent's come back, and part again."""
    code = """import os, signal, torch
import numpy as np
from spikedeploy import steps as S
from spikedeploy.nn import Leaky
from spikedeploy.program import Output, Program
from spikedeploy.runtime import EventEngine
torch.set_num_threads(3)
layer, x = Leaky(0.9), torch.randn(200, 16, 64, requires_grad=True)
spikes = (np.random.default_rng(0).random((30, 4, 300)) < 0.2).astype(np.float32)
weight = np.random.default_rng(1).normal(size=(600, 300))
program = Program((300,), (S.Affine("y", ("input",), weight=weight, bias=None),), (Output("y", "y"),))
engine = EventEngine(program, 4, threads=3)
def work():
    spk = layer(x)[0]
    (gradient,) = torch.autograd.grad(spk.sum(), x)
    return spk.detach().numpy().tobytes(), gradient.numpy().tobytes(), engine.run(spikes).outputs["y"].tobytes()
expected = work()
for _ in range(2):
    child = os.fork()
    if not child:
        signal.alarm(20)
        os._exit(work() != expected)
    assert os.waitpid(child, 0)[1] == 0
    assert work() == expected
print("done")"""
    assert run(code).strip() == "done"


def test_the_switch_turns_it_off():
    code = """import torch
from spikedeploy import native
from spikedeploy.errors import BadInput
from spikedeploy.nn import Leaky, StateLeaky, leaky_scan
print(native.available(), native.why_not())
x = torch.randn(30, 2, 4)
assert torch.equal(Leaky(0.9)(x)[1], leaky_scan(x, 0.9, reset='subtract', method='iterative')[1])
assert torch.equal(StateLeaky(0.9, 4)(x)[1], StateLeaky(0.9, 4, method='prefix')(x)[1])
try:
    leaky_scan(x, 0.9, method='native')
except BadInput as error:
    print(error)"""
    lines = run(code, SPIKEDEPLOY_NATIVE="0").splitlines()
    assert lines[0] == "False switched off by SPIKEDEPLOY_NATIVE=0"
    assert "switched off by SPIKEDEPLOY_NATIVE=0; the compiled core and a CPU tensor are needed" in lines[1]


LEVELS = """import hashlib, torch
import numpy as np
from spikedeploy import native, steps as S
from spikedeploy.nn import AssociativeLeaky, DeltaRuleLeaky, Leaky, StateLeaky
from spikedeploy.program import Output, Program
from spikedeploy.runtime import EventEngine
torch.manual_seed(0)
digest, rng = hashlib.sha256(), np.random.default_rng(0)
layers = [StateLeaky(0.9, 37), *(Leaky(0.9, reset_mechanism=r) for r in ("none", "subtract", "zero")), Leaky(0.9, reset_delay=False)]
for layer in layers:
    x = torch.randn(50, 3, 37, requires_grad=True)
    spk, mem = layer(x)
    (gradient,) = torch.autograd.grad((spk + mem).sum(), x)
    for y in (spk, mem, gradient):
        digest.update(y.detach().numpy().tobytes())
for family in (AssociativeLeaky, DeltaRuleLeaky):
    digest.update(family(7, 5, 9)(torch.randn(40, 2, 7)).detach().numpy().tobytes())
width = 300
maps = [S.Affine("y", ("input",), weight=rng.normal(size=(width, 70)) / 4, bias=rng.normal(size=width) / 9)]
for reset, after in (("subtract", "a"), ("zero", "b")):
    maps.append(S.LIF(after, (maps[-1].name,), decay=np.array(0.9), threshold=np.array(1.0), reset=reset))
    maps.append(S.Affine(f"{after}y", (after,), weight=rng.normal(size=(width, width)) / 4, bias=None))
image = [S.Conv2d("c", ("input",), weight=rng.normal(size=(11, 2, 3, 3)), bias=None, stride=(2, 1))]
image.append(S.LIF("d", ("c",), decay=np.array(0.9), threshold=np.array(1.0), reset="subtract"))
programs = (Program((70,), tuple(maps), (Output("y", maps[-1].name),)), Program((2, 9, 20), tuple(image), (Output("d", "d"),)))
for program in programs:
    for weights in ("float32", "int8"):
        spikes = (rng.random((40, 2, *program.input_shape)) < 0.2).astype(np.float32)
        result = EventEngine(program, 2, weights=weights).run(spikes)
        digest.update(next(iter(result.outputs.values())).tobytes())
print(native.name(), digest.hexdigest())"""


@built
def test_every_level_gives_the_same_bits():
    found = dict(run(LEVELS, SPIKEDEPLOY_NATIVE=level).split() for level in ("1", "v3", "v0"))
    assert len(set(found.values())) == 1
    assert "_core" in found


STALE = """
import sys, types
from spikedeploy import native
best = native.name()
native._load.cache_clear()
sys.modules[f"spikedeploy.native.{best}"] = types.SimpleNamespace(lib=types.SimpleNamespace(sd_version=lambda: 1))
print(best, native.name(), native.passed_over())"""


@built
def test_a_core_of_an_older_version_is_passed_over_with_words():
    best, used, *words = run(STALE).split(maxsplit=2)
    if best == "_core":
        return  # none below it
    assert used < best
    assert words == [f"{best} has version 1, version {native.VERSION} is needed; reinstall spikedeploy\n"]
    assert run("from spikedeploy import native; print(native.passed_over())") == "\n"


def test_importing_the_package_imports_no_torch():
    assert run("import sys, spikedeploy, spikedeploy.nn, spikedeploy.native; print('torch' in sys.modules)").strip() == "False"


@built
def test_denormals_outside_are_left_alone():
    Leaky(0.9)(torch.zeros(100, 2, 3))
    StateLeaky(0.9, 3)(torch.zeros(100, 2, 3))
    AssociativeLeaky(3, 2, 2)(torch.zeros(100, 2, 3))
    assert (torch.full((4,), 1e-40) * 1).count_nonzero() == 4


@built
@pytest.mark.parametrize("family", [AssociativeLeaky, DeltaRuleLeaky])
def test_a_memory_that_fades_in_silence_ends_at_zero(family):
    """And does not stay the smallest denormal number for good, at twice the time per step."""
    torch.manual_seed(0)
    layer, x = family(3, 2, 4, method="native"), torch.zeros(3000, 2, 3)
    x[:10] = torch.randn(10, 2, 3)
    with torch.no_grad():
        layer.to_v.bias.zero_()
        layer.to_alpha.bias.fill_(1.0)
    _, last = layer(x, return_state=True)
    assert last.abs().max() < sys.float_info.min
    assert not last.count_nonzero() or platform.machine() not in ("x86_64", "AMD64")
