"""What the documentation shows is what happens."""

from __future__ import annotations

import doctest
import inspect
import runpy
from pathlib import Path
from typing import Any

import pytest

import fastsoftmax as fsm

ROOT = Path(__file__).parent.parent


def run(test: doctest.DocTest) -> None:
    result = doctest.DocTestRunner().run(test)
    assert result.attempted > 0 and result.failed == 0


@pytest.mark.parametrize("name", fsm.__all__)
def test_examples_of_docstrings(name: str) -> None:
    thing = getattr(fsm, name)
    (test,) = doctest.DocTestFinder(recurse=False).find(thing, name)
    run(test)


@pytest.mark.parametrize("page", ["README.md", "docs/derivatives.md", "docs/losses.md"])
def test_examples_of_pages(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    run(doctest.DocTestParser().get_doctest(text.replace("```", ""), {}, page, None, 0))


def test_example_of_multinomial_regression() -> None:
    example = runpy.run_path(str(ROOT / "examples" / "multinomial.py"))
    found = example["fit"](problem := example["digits"](), "trust-ncg", problem.hessian_product)
    assert found["largest"] <= example["TOLERANCE"] and found["iterations"] < 50
    assert found["loss"] == pytest.approx(0.0886583848, abs=1e-9)


@pytest.mark.parametrize("library", ["lightgbm", "xgboost"])
def test_example_of_boosting(library: str) -> None:
    pytest.importorskip(library)
    example = runpy.run_path(str(ROOT / "examples" / "boosting.py"))
    scores = example["scores"](example[f"by_{library}"])
    accuracy, loss = scores["fastsoftmax"]
    assert accuracy >= 0.94
    assert accuracy == pytest.approx(scores["built in"][0], abs=0.005)
    assert loss == pytest.approx(scores["built in"][1], rel=0.02)


@pytest.mark.parametrize("name", [n for n in fsm.__all__ if n.islower()])
def test_docstrings_name_every_parameter(name: str) -> None:
    function: Any = getattr(fsm, name)
    parameters = function.__doc__.split("Parameters")[1].split("Returns")[0]
    for parameter in inspect.signature(function).parameters:
        assert parameter in parameters


def test_signatures() -> None:
    expected = {
        "softmax": "(x, axis=-1, *, where=None, temperature=1.0, out=None, dtype=None)",
        "log_softmax": "(x, axis=-1, *, where=None, temperature=1.0, out=None, dtype=None)",
        "logsumexp": "(x, axis=-1, *, where=None, keepdims=False, out=None, dtype=None)",
        "softmax_vjp": "(p, g, axis=-1, *, out=None)",
        "softmax_jvp": "(p, t, axis=-1, *, out=None)",
        "softmax_vjp_derivative": "(p, g, t, axis=-1, *, out=None)",
        "softmax_jacobian": "(p, axis=-1, *, out=None)",
        "log_softmax_vjp": "(p, g, axis=-1, *, out=None)",
        "log_softmax_jvp": "(p, t, axis=-1, *, out=None)",
        "log_softmax_jacobian": "(p, axis=-1, *, out=None)",
        "cross_entropy": "(logits, targets, axis=-1, *, weight=None, ignore_index=None, "
        "label_smoothing=0.0, z_loss=0.0, where=None, reduction='mean', return_grad=False, "
        "out=None)",
        "cross_entropy_hvp": "(logits, targets, v, axis=-1, *, weight=None, ignore_index=None, "
        "label_smoothing=0.0, z_loss=0.0, where=None, reduction='mean', out=None)",
        "cross_entropy_hessian_diagonal": "(logits, targets, axis=-1, *, weight=None, "
        "ignore_index=None, label_smoothing=0.0, z_loss=0.0, where=None, reduction='mean', "
        "out=None)",
        "linear_cross_entropy": "(hidden, weight, targets, *, bias=None, class_weight=None, "
        "ignore_index=None, label_smoothing=0.0, z_loss=0.0, reduction='mean', "
        "return_grad=False, out=None)",
        "perplexity": "(logits, targets, axis=-1, *, weight=None, ignore_index=None, where=None)",
        "entropy": "(logits, axis=-1, *, where=None)",
        "kl_divergence": "(logits, targets, axis=-1, *, where=None)",
    }
    for name, text in expected.items():
        signature = inspect.signature(getattr(fsm, name))
        plain = [
            p.replace(annotation=inspect.Parameter.empty) for p in signature.parameters.values()
        ]
        assert str(inspect.Signature(plain)) == text


@pytest.mark.parametrize("name", ["derivatives", "losses"])
def test_errors_are_as_shown(name: str) -> None:
    script = runpy.run_path(str(ROOT / "benchmarks" / "accuracy.py"))
    contenders = {name: script["CONTENDERS"][name] for name in ("fastsoftmax", "NumPy")}
    page = (ROOT / "docs" / f"{name}.md").read_text(encoding="utf-8")
    for what, title in script["PAGES"][name].items():
        assert f"**{title}**" in page
        errors = script["measure"](what, contenders)
        assert max(errors["fastsoftmax"]) < 3e-7
        assert max(errors["NumPy"]) > 0.5  # else it would measure nothing
