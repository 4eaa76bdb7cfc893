"""Fit the surrogate dynamic network to the LIF neuron with hard reset: `python examples/fit_sdn.py --tau 0.125 --out sdn.npz`.

The neuron is u' = tau*u + I, s = 1[u' >= 1], u = u'*(1-s); the network predicts tau*u_{t-1} from the last eight currents.

What counts is the share of spikes that agree, so that is the loss. The current I_t is independent of the past, hence given the past the
chance that the two spikes differ is exactly

    | P(I_t >= 1 - network(past)) - P(I_t >= 1 - tau*u_{t-1}) |  =  | Phi((1 - network)/sigma) - Phi((1 - tau*u)/sigma) |

which has a useful gradient and gives weight where the threshold is near. The start is not random: with phi(v) = v below 1 and 0 above,
tau*u_{t-1} = tau*phi(x_{t-1} + tau*phi(x_{t-2} + ...)), and three relu make one phi with a narrow ramp in the place of the jump:
phi(v) = 1 - relu(1-v) - (relu(v-1) - relu(v-1-ramp))/ramp. Two such levels fit into the network; Adam finds what the rest can do.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from spikedeploy.nn.sdn import SurrogateDynamicNetwork

KERNEL, CHANNELS = 8, 8
SIGMAS = (0.5, 1.0, 5**0.5, 5.0)
MEMORY = 64  # currents before the eight that the network sees: they matter where tau is large


def remembered(currents: Tensor, tau: float) -> Tensor:
    """tau*u after the last of `currents (n, steps)`, oldest first; the naive loop."""
    u = torch.zeros(currents.shape[0], dtype=currents.dtype)
    for x in currents.unbind(1):
        u = tau * u + x
        u = torch.where(u >= 1, 0.0, u)
    return tau * u


def started(tau: float, ramp: float) -> dict[str, Tensor]:
    """Weights that hold two levels of phi, and the third approximately."""
    one = torch.eye(KERNEL, dtype=torch.float64)
    x1, x2, x3 = one[-1], one[-2], one[-3]
    v2 = x2 + 0.55 * tau * x3  # the slope that a linear term can give to phi(x3)
    w1 = torch.stack([x1, -x1, -v2, v2, v2, -x3, x3, x3])
    b1 = torch.tensor([0, 0, 1, -1, -1 - ramp, 1, -1, -1 - ramp], dtype=torch.float64)
    v1 = torch.tensor([1, -1, -tau, -tau / ramp, tau / ramp, 0, 0, 0], dtype=torch.float64)
    mix = 0.05 * torch.randn(CHANNELS, CHANNELS, dtype=torch.float64)
    mix[:3] = torch.stack([-v1, v1, v1])
    b2 = torch.tensor([1 - tau, tau - 1, tau - 1 - ramp, *[0.1] * 5], dtype=torch.float64)
    w3 = torch.tensor([-tau, -tau / ramp, tau / ramp, *[0] * 5], dtype=torch.float64)
    return {
        "conv1.weight": w1[:, None],
        "conv1.bias": b1,
        "conv2.weight": (mix - one)[..., None],
        "conv2.bias": b2,
        "conv3.weight": w3[None, :, None],
        "conv3.bias": torch.tensor([tau], dtype=torch.float64),
    }


def predict(p: dict[str, Tensor], past: Tensor) -> Tensor:
    """The network on histories `(n, 8)`; the same numbers as the convolution, one row per step."""
    h = F.relu(past @ p["conv1.weight"][:, 0].T + p["conv1.bias"])
    h = F.relu(h @ p["conv2.weight"][..., 0].T + p["conv2.bias"] + h)
    return h @ p["conv3.weight"][0, :, 0] + p["conv3.bias"]


def disagreement(p: dict[str, Tensor], past: Tensor, sigma: float, truth: Tensor) -> Tensor:
    """The chance, per history, that network and neuron decide differently on the next current from N(0, sigma)."""
    scale = sigma * math.sqrt(2)
    return 0.5 * (torch.erf((1 - predict(p, past)) / scale) - torch.erf((1 - truth) / scale)).abs()


def histories(count: int, sigma: float, tau: float) -> tuple[Tensor, Tensor]:
    """Past currents `(count, 8)` and tau*u; one in 64 begins with the sequence, so that its oldest entries are zero."""
    memory = min(MEMORY, max(0, math.ceil(math.log(1e-6) / math.log(tau)) - KERNEL))
    x = sigma * torch.randn(count, memory + KERNEL, dtype=torch.float64)
    begun = count // 64
    age = torch.randint(0, KERNEL, (begun, 1))
    x[:begun] *= torch.arange(memory + KERNEL) >= memory + KERNEL - age
    return x[:, memory:], remembered(x, tau)


def fit(tau: float, steps: int, batch: int, seed: int, ramp: float, rate: float) -> tuple[dict[str, Tensor], list[dict[str, float]]]:
    """Adam with a cosine schedule on the disagreement, a mixture of current scales in every step."""
    torch.manual_seed(seed)
    p = {name: value.clone().requires_grad_() for name, value in started(tau, ramp).items()}
    optimiser = torch.optim.Adam(p.values(), lr=rate, betas=(0.9, 0.99))
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, rate, total_steps=steps, pct_start=0.05)
    log: list[dict[str, float]] = []
    begin = time.perf_counter()
    for step in range(steps):
        losses = []
        for sigma in SIGMAS:
            past, truth = histories(batch // len(SIGMAS), sigma, tau)
            losses.append(disagreement(p, past, sigma, truth).mean())
        loss = torch.stack(losses).sum()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
        if step % 500 == 0 or step == steps - 1:
            row = {"step": step, "seconds": round(time.perf_counter() - begin, 1)}
            row |= {f"disagree_sigma_{s:.3g}": float(f"{float(v.detach()):.4g}") for s, v in zip(SIGMAS, losses, strict=True)}
            log.append(row)
            print(json.dumps(row), flush=True)
    return {name: value.detach() for name, value in p.items()}, log


def agreement(network: SurrogateDynamicNetwork, sigma: float, sequences: int, length: int = 1024, block: int = 500) -> float:
    """The measured share of equal spikes on N(0, sigma) currents, neuron and network both in float32, as in training."""
    tau, equal = network.tau, 0
    for start in range(0, sequences, block):
        x = sigma * torch.randn(length, min(block, sequences - start))
        u, spikes = torch.zeros(x.shape[1]), []
        for current in x.unbind(0):
            u = tau * u + current
            spikes.append(u >= 1)
            u = torch.where(spikes[-1], 0.0, u)
        equal += int(((network(x) + x - 1 >= 0) == torch.stack(spikes)).sum())
    return equal / (sequences * length)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tau", type=float, default=0.125, help="decay of the membrane, between 0 and 1")
    parser.add_argument("--out", type=Path, default=Path("sdn.npz"), help="weights; the log goes beside it as .log.json")
    parser.add_argument("--steps", type=int, default=20000)
    parser.add_argument("--batch", type=int, default=16384)
    parser.add_argument("--ramp", type=float, default=0.02, help="width of the ramp that stands for the jump, at the start")
    parser.add_argument("--rate", type=float, default=1e-4, help="peak learning rate of Adam")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--sequences", type=int, default=50000, help="sequences of 1,024 steps to measure the agreement on")
    args = parser.parse_args()
    if not 0 < args.tau < 1:
        parser.error(f"--tau {args.tau}: a decay between 0 and 1 is needed")
    weights, log = fit(args.tau, args.steps, args.batch, args.seed, args.ramp, args.rate)
    limit = 5 * max(SIGMAS)
    network = SurrogateDynamicNetwork(args.tau, fitted=(-limit, limit))
    network.load_state_dict({**network.state_dict(), **{name: value.float() for name, value in weights.items()}})
    network.save(args.out)
    torch.manual_seed(args.seed + 1)
    measured = {f"{sigma:.4g}": agreement(network, sigma, args.sequences) for sigma in (1.0, 5**0.5, 5.0)}
    result = {
        "arguments": {k: str(v.name) if isinstance(v, Path) else v for k, v in vars(args).items()},
        "spike_agreement_by_sigma": measured,
    }
    rows = ",\n".join(json.dumps(row) for row in log)
    args.out.with_suffix(".log.json").write_text(json.dumps(result, indent=1)[:-2] + f',\n "log": [\n{rows}\n]}}\n')
    print(json.dumps(result))


if __name__ == "__main__":
    main()
