"""The conformance kit for strategies and precision policies in Python: what their own tests call.

def test_it_conforms():
    shardwright.testkit.strategy("acme/rows", Rows())
"""

from __future__ import annotations

from typing import Any

from . import _native


def strategy(name: str, instance: Any) -> str:
    """Runs the conformance suite: models of every awkward shape on every awkward world, each plan validated, small ones loaded and compared.

    Returns what was gone through.

    Raises:
        PlanError: a violation, with the rule and the smallest case that breaks it.
    """
    return _native.check_strategy(name, instance)


def precision(name: str, instance: Any) -> None:
    """Runs the conformance suite for a precision policy. Raises `PlanError` as `strategy` does."""
    _native.check_policy(name, instance)
