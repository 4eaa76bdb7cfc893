"""`spikedeploy verify`."""

from __future__ import annotations

from typing import Any

import click

from spikedeploy.cli.common import (
    as_json,
    chosen,
    conversion,
    event_dt,
    randomness,
    read_data,
    reading,
    show_rich,
    single_thread,
    topk,
    working,
)


@click.command(
    epilog="Example: spikedeploy verify model.pt model.nir --input test.npy",
    short_help="Hold a model against its artifact, spike by spike.",
)
@click.argument("model_file", metavar="MODEL")
@click.argument("artifact", required=False)
@click.option(
    "--input", "input_file", metavar="FILE", help="Real data as .npy or .npz, dense (T, B, ...) or address events; random by default."
)
@event_dt
@randomness
@conversion
@topk
@reading
@as_json
def command(model_file: str, artifact: str | None, input_file: str | None, event_dt: float | None, as_json: bool, **given: Any) -> int:
    """Hold MODEL (.pt, or a .nir) against ARTIFACT (.nir or .onnx), or against its own iterative form alone.

    The parallel torch model, the reference in float32 and the artifact are each run layer by layer on the float64 reference's
    spikes, and on their own. A spike may differ only where the membrane is within the rounding bound of the threshold.
    With --semantics, --truncation or top-k the reference and the artifact are held to the model so changed, the parallel model to what
    was trained, and it is said by how much they differ.
    Exit code 0: equivalent; 1: not (or not to be decided on this input).
    """
    from spikedeploy.errors import BadInput, message
    from spikedeploy.verify import verify

    single_thread()
    numbers = chosen(**{key: given.pop(key) for key in ("steps", "batch", "seed", "rate")})
    if input_file and numbers:
        raise BadInput(message(f"option --{next(iter(numbers))}", "it is for random input", "--input gives the data", "Leave one out."))
    with working("reading") as progress:
        x = read_data(input_file, event_dt)
        certificate = verify(
            model_file,
            artifact,
            x,
            options=chosen(**given),
            input_source=str(input_file) if input_file else None,
            progress=progress,
            **numbers,
        )
    if as_json:
        print(certificate.to_json())
    else:
        show_rich(certificate)
    return 0 if certificate.passed else 1
