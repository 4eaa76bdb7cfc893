"""Who will read the graph: one row per profile. A profile says which node kinds its reader has and how that reader cuts time.

`u_t = d u_{t-1} + x_t ; s_t = 1[u_t > theta]` has no reset, and few readers have both of NIR's nodes for it (LI, Threshold).
CubaLIF is the node that nearly all have, and it computes the same when the leak sits in the synapse (`tau_syn = dt/(1-d)`) and the
membrane forgets everything in every step (`tau_mem = dt`): the reset then acts on a state that is about to be discarded.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

Form = Literal["li-threshold", "cuba", "lif", "sinabs", "rockpool"]
Discretisation = Literal["euler", "exact", "sinabs", "rockpool", "nengo"]
FanIn = Literal["sum", "relay", "relay-or-sum", "line"]

MAPS = frozenset({"Affine", "Conv2d", "Flatten"})
ALL = MAPS | {"AvgPool2d", "SumPool2d", "Scale", "Delay", "LI", "I", "Threshold", "CubaLIF", "LIF"}


@dataclass(frozen=True, slots=True)
class Profile:
    """One row.

    dt               default time step, in `units`
    form             the nodes of a neuron without reset: `li-threshold`, `cuba`, or `lif` (with a reset that the model has not)
    nodes            node kinds that the reader has
    fan_in           `sum`: the reader adds where edges meet; `relay`: it does not, so skipped spikes are carried by relay neurons;
                     `relay-or-sum`: relays where they are possible, for readers of both kinds; `line`: everything between two
                     layers of neurons becomes one matrix, skips or not
    one_threshold    the reader takes one threshold per layer: weights are divided by theta, and the threshold becomes 1
    one_decay        the reader takes one decay per node: neurons are grouped by decay and put back in place
    padded_pool      the reader honours the padding of pools
    mean_pool        a mean over windows is written as AvgPool2d; else as SumPool2d, which more readers have, with 1/area in the weights
    many_outputs     the reader can have more than one Output node
    channels_last    the reader flattens (H, W, C), NIR (C, H, W): a flatten that would mix them is refused
    input_range      largest |input| that the form allows (its threshold is lifted above anything a membrane can then reach); 0: any
    membrane_steps   time constant, in steps, of a membrane that is to forget everything
    no_reset_value   the reader pins a nir library (1.0.4) that does not know `v_reset`; zero is its meaning when it is left out
    fixed_dt         the reader knows no other time step
    exact            the graph computes what the program computes
    """

    name: str
    description: str
    dt: float
    form: Form = "cuba"
    nodes: frozenset[str] = ALL
    fan_in: FanIn = "sum"
    one_threshold: bool = False
    one_decay: bool = False
    padded_pool: bool = True
    mean_pool: bool = False
    many_outputs: bool = False
    channels_last: bool = False
    input_range: float = 0.0
    membrane_steps: float = 1.0
    no_reset_value: bool = False
    fixed_dt: bool = False
    discretisation: Discretisation = "euler"
    units: str = "s"
    exact: bool = True


_ROWS = (
    Profile(
        "generic",
        "CubaLIF with a membrane of one step and one threshold per layer: what most readers run",
        1e-4,
        one_threshold=True,
        many_outputs=True,
        fan_in="relay-or-sum",
    ),
    Profile(
        "spec",
        "LI -> Threshold, what NIR's equations say without any reset",
        1e-4,
        form="li-threshold",
        mean_pool=True,
        many_outputs=True,
    ),
    Profile(
        "spyx",
        "LI -> Threshold, for spyx.nir.from_nir(graph, x, dt=...); inputs and maps channels-last there",
        1e-4,
        form="li-threshold",
        nodes=MAPS | {"LI", "Threshold", "SumPool2d"},
        fan_in="relay",
        padded_pool=False,
        channels_last=True,
    ),
    Profile(
        "norse",
        "CubaLIF, for norse.torch.from_nir(graph, dt=...)",
        1e-3,
        nodes=MAPS | {"CubaLIF", "SumPool2d"},
        fan_in="relay",
        padded_pool=False,
    ),
    Profile(
        "snntorch",
        "CubaLIF, for snntorch.import_nir.import_from_nir(graph); its time step is always 1e-4",
        1e-4,
        nodes=MAPS | {"CubaLIF", "AvgPool2d"},
        one_threshold=True,
        mean_pool=True,
        fixed_dt=True,
    ),
    Profile(
        "spikingjelly",
        "CubaLIF with one decay per node, for import_from_nir(graph, dt=..., dtype=torch.float64)",
        1e-4,
        nodes=MAPS | {"CubaLIF", "AvgPool2d"},
        one_threshold=True,
        one_decay=True,
        mean_pool=True,
    ),
    Profile(
        "sinabs",
        "LI -> Affine -> LIF whose threshold no membrane reaches twice, for sinabs.nir.from_nir(graph, batch_size=...); time in steps",
        1.0,
        form="sinabs",
        nodes=frozenset({"Affine", "LI", "LIF", "Flatten"}),
        fan_in="line",
        discretisation="sinabs",
        units="steps",
        no_reset_value=True,
        input_range=4.0,
        fixed_dt=True,
    ),
    Profile(
        "rockpool",
        "CubaLIF with exponential decays and lifted threshold, for rockpool.nn.modules.torch.nir.from_nir(graph)",
        1e-3,
        form="rockpool",
        nodes=frozenset({"Affine", "CubaLIF"}),
        fan_in="line",
        discretisation="rockpool",
        input_range=4.0,
    ),
    Profile(
        "lava",
        "CubaLIF: du = dt/tau_syn = 1-d and dv = dt/tau_mem = 1, for importers into lava's LIF process",
        1e-4,
        nodes=MAPS | {"CubaLIF", "SumPool2d"},
        fan_in="relay",
        one_threshold=True,
    ),
    Profile(
        "nengo",
        "CubaLIF with one decay per node and a membrane of a twentieth of a step, which nengo cuts exactly",
        1e-3,
        nodes=frozenset({"Affine", "CubaLIF"}),
        fan_in="line",
        one_threshold=True,
        one_decay=True,
        membrane_steps=1 / 20,
        discretisation="nengo",
    ),
    Profile(
        "lif",
        "Affine -> LIF with the same decay: a DIFFERENT model, whose neurons reset when they fire",
        1e-4,
        form="lif",
        exact=False,
    ),
)

PROFILES: Mapping[str, Profile] = {row.name: row for row in _ROWS}
"""Profile name -> row; `generic` is the default."""
