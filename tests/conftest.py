"""Fixtures of every test file, and the largest errors printed at the end of a run."""

import helpers
import numpy as np
import pytest

import fastsoftmax


def pytest_report_header() -> str:
    native = fastsoftmax._native
    return f"fastsoftmax: instruction set {native.isa()} of {', '.join(native.available_isas())}"


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if helpers.WORST:
        terminalreporter.section("largest errors, in units in the last place")
    for (name, dtype, isa), error in sorted(helpers.WORST.items()):
        terminalreporter.write_line(f"{name:17} {dtype:9} {isa:9} {error:.3f}")


@pytest.fixture
def rng() -> np.random.Generator:
    """Random numbers, the same in every run."""
    return np.random.default_rng(20250101)
