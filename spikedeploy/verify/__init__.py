"""Verification: the parallel model, the reference and the artifact as read back, held against each other spike by spike.

certificate = verify("model.pt", "model.nir")
print(certificate); certificate.passed; certificate.to_json()
"""

from __future__ import annotations

from spikedeploy.verify.certificate import Certificate, Finding, LayerCheck, OutputCheck
from spikedeploy.verify.parties import Observation, Party, ProgramParty
from spikedeploy.verify.run import require, verify

__all__ = ["Certificate", "Finding", "LayerCheck", "Observation", "OutputCheck", "Party", "ProgramParty", "require", "verify"]
