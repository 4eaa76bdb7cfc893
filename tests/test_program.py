"""Programs refuse what cannot run, and are the same bytes wherever they are built."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from spikedeploy import steps as S
from spikedeploy.errors import BadInput, ModelRefused
from spikedeploy.plain import dump_program, load_program
from spikedeploy.program import Output, Program
from spikedeploy.runtime import reference
from spikedeploy.shapes import OUTPUT_SHAPE


def net(weight=None, **changes):
    weight = np.arange(12, dtype=np.float32).reshape(4, 3) if weight is None else weight
    given = {
        "input_shape": (3,),
        "steps": (
            S.Affine("fc", ("input",), weight, np.zeros(4, np.float32)),
            S.Integrator("lif.mem", ("fc",), np.float64(0.5)),
            S.Threshold("lif", ("lif.mem",), np.float32(1)),
        ),
        "outputs": (Output("spk", "lif", "sum"),),
        "origin": {"lif": "StateLeaky"},
        "notes": ("a note",),
    }
    return Program(**(given | changes))


def test_every_kind_has_a_row_in_every_table():
    kinds = set(S.KINDS.values())
    assert set(OUTPUT_SHAPE) == kinds
    assert set(reference.STEP) == kinds


def test_wires_and_states():
    assert dict(net().wires) == {"input": (3,), "fc": (4,), "lif.mem": (4,), "lif": (4,)}
    assert net().states == {"lif.mem": {"u": (4,)}}


def test_parameters_are_copied_and_read_only():
    weight = np.ones((4, 3), np.float32)
    program = net(weight)
    weight[:] = 7
    held = program.step("fc").weight
    assert held.max() == 1
    with pytest.raises(ValueError, match="read-only"):
        held[0, 0] = 2


def test_plain_bytes_round_trip():
    back = load_program(dump_program(net()))
    assert back.digest == net().digest
    assert back.origin == net().origin
    assert back.notes == net().notes
    assert back.step("lif.mem").decay.dtype == np.float64


def test_digest_sees_every_number_and_no_note():
    other = np.arange(12, dtype=np.float32).reshape(4, 3)
    other[3, 2] = np.nextafter(other[3, 2], np.float32(99))
    assert net(other).digest != net().digest
    assert net(notes=()).digest == net().digest
    assert net(outputs=(Output("spk", "lif", "mean"),)).digest != net().digest


def test_digest_is_the_same_under_every_hash_seed():
    code = "import sys; sys.path.insert(0, sys.argv[1]); from test_program import net; print(net().digest)"
    seen = {
        subprocess.run(
            [sys.executable, "-c", code, str(Path(__file__).parent)],
            env=os.environ | {"PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("0", "1", "2")
    }
    assert seen == {net().digest + "\n"}


@pytest.mark.parametrize("data", [b"", b"\x00" * 40, b"\xff" * 40, dump_program(net())[:-4], dump_program(net())[:50]])
def test_other_bytes_are_refused(data):
    with pytest.raises((BadInput, ModelRefused)):
        load_program(data)


TABLE = np.arange(6.0).reshape(3, 2)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"steps": ()}, "model: it has no layers or no output; at least one of each is needed."),
        ({"outputs": ()}, "model: it has no layers or no output"),
        ({"outputs": (Output("y", "gone"),)}, "output 'y': wire 'gone' does not exist"),
        ({"input_shape": (0,)}, r"model: an input of shape \(0,\); every axis needs at least one channel"),
        ({"input_shape": (5,)}, r"layer 0 'fc' \(Affine\): an input of shape \(5,\); its last axis must be 3"),
        ({"steps": (S.Add("y", ("gone",)),)}, "layer 0 'y' .Add.: input 'gone' is not written before it"),
        ({"steps": (S.Add("input", ("input",)),)}, "the name 'input' is taken"),
        ({"steps": (S.Mul("y", ("input",)),)}, "1 inputs; 2 are needed"),
        ({"steps": (S.Delay("y", ("input",), 0),)}, "a delay of 0 steps; at least one is needed"),
        (
            {"steps": (S.Embedding("e", ("input",), TABLE),)},
            r"layer 0 'e' \(Embedding\): it looks up 'input', whose values are real numbers",
        ),
        ({"steps": (S.Nearest("n", ("input",), TABLE[:, 0]), S.Embedding("e", ("n",), TABLE)), "input_kind": "index"}, "looks up 'n'"),
    ],
)
def test_refusals_say_where_what_and_what_is_needed(changes, said):
    with pytest.raises(ModelRefused, match=said):
        net(**changes)


def test_values_are_refused_by_layer_and_index():
    weight = np.ones((4, 3), np.float32)
    weight[2, 1] = np.nan
    with pytest.raises(ModelRefused, match=r"layer 0 'fc' \(Affine\): weight\[2, 1\] is nan; every parameter must be finite"):
        net(weight)
    with pytest.raises(ModelRefused, match=r"a decay of 1.5; every decay must lie in \[0, 1\]"):
        net(steps=(S.Integrator("lif", ("input",), np.array([0.5, 1.5, 0.1])),))
