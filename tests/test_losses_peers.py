"""What others test their losses with: torch's sample inputs, ONNX's node tests.

torch is not needed: its samples and what it made of them, in float64, are in torch_samples.npz,
which this file writes when it is run as a program, with torch and expecttest installed.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fastsoftmax as fsm

SAMPLES = Path(__file__).with_name("torch_samples.npz")


def torch_samples() -> Iterator[tuple[Any, Any, dict[str, Any]]]:
    """Logits, targets and options of torch's own samples, some more of its options, as tensors."""
    import torch
    from torch.testing._internal.common_methods_invocations import sample_inputs_cross_entropy

    torch.manual_seed(0)
    for smoothing in (0.0, 0.2):
        for s in sample_inputs_cross_entropy(None, "cpu", torch.float64, requires_grad=False):
            yield s.input, s.args[0], {**s.kwargs, "label_smoothing": smoothing}


def write() -> None:
    import torch

    arrays: dict[str, Any] = {}
    for k, (x, targets, options) in enumerate(torch_samples()):
        x.requires_grad_()
        loss = torch.nn.functional.cross_entropy(x, targets, **options)
        loss.sum().backward()
        plain = {name: v for name, v in options.items() if name != "weight"}
        arrays |= {f"{k}x": x.detach(), f"{k}targets": targets, f"{k}options": json.dumps(plain)}
        arrays |= {f"{k}loss": loss.detach(), f"{k}grad": x.grad}
        if "weight" in options:
            arrays[f"{k}weight"] = options["weight"]
    np.savez_compressed(SAMPLES, count=k + 1, version=torch.__version__, **arrays)


def test_torch_samples() -> None:
    with np.load(SAMPLES) as file:
        samples = dict(file)
    assert samples["count"] >= 40
    for k in range(samples["count"]):
        x, targets, options = (samples[f"{k}{name}"] for name in ("x", "targets", "options"))
        arguments = json.loads(str(options)) | {"weight": samples.get(f"{k}weight")}
        loss, grad = fsm.cross_entropy(x, targets, 1, return_grad=True, **arguments)
        np.testing.assert_allclose(loss, samples[f"{k}loss"], rtol=1e-12)
        np.testing.assert_allclose(grad, samples[f"{k}grad"], rtol=1e-10, atol=1e-13)
        single = fsm.cross_entropy(x.astype(np.float32), targets, 1, **arguments)
        np.testing.assert_allclose(single, samples[f"{k}loss"], rtol=1e-5)


@cache
def onnx_cases() -> dict[str, Any]:
    loader = pytest.importorskip("onnx.backend.test.loader")
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        cases = loader.load_model_tests(kind="node")
    starts = ("test_sce_", "test_nllloss_", "test_softmax_", "test_logsoftmax_")
    return {c.name: c for c in cases if c.name.startswith(starts) and "expanded" not in c.name}


def run_node(node: Any, inputs: list[Any]) -> list[Any]:
    """The operator by our functions."""
    options = {a.name: a.s.decode() if a.type == 3 else a.i for a in node.attribute}
    if node.op_type in ("Softmax", "LogSoftmax"):
        function = fsm.softmax if node.op_type == "Softmax" else fsm.log_softmax
        return [function(inputs[0], options.get("axis", -1))]
    x, targets, *weight = inputs
    arguments = {"weight": weight[0] if weight else None}
    if "ignore_index" in options:
        arguments["ignore_index"] = options["ignore_index"]
    reduction = options.get("reduction", "mean")
    if node.op_type == "SoftmaxCrossEntropyLoss":
        loss = fsm.cross_entropy(x, targets, 1, reduction=reduction, **arguments)
        return [loss, fsm.log_softmax(x, 1)][: len(node.output)]
    # of logarithms that need not be of probabilities: less what the loss adds to normalise them
    counts = targets != options.get("ignore_index")
    w = np.ones(x.shape[1]) if arguments["weight"] is None else arguments["weight"]
    w = np.where(counts, w[np.where(counts, targets, 0)], 0)
    loss = fsm.cross_entropy(x, targets, 1, reduction="none", **arguments)
    loss = loss - w * fsm.logsumexp(x, 1)
    mean = loss.sum() / w.sum()
    return [{"none": loss, "sum": loss.sum(), "mean": mean}[reduction]]


def test_onnx_nodes() -> None:
    cases = onnx_cases()
    kinds = [case.model.graph.node[0].op_type for case in cases.values()]
    assert kinds.count("SoftmaxCrossEntropyLoss") >= 34
    assert kinds.count("NegativeLogLikelihoodLoss") >= 18
    assert kinds.count("Softmax") >= 7 and kinds.count("LogSoftmax") >= 7
    for name, case in cases.items():
        for inputs, outputs in case.data_sets:
            found = run_node(case.model.graph.node[0], inputs)
            assert len(found) == len(outputs)
            for got, expected in zip(found, outputs, strict=True):
                assert np.shape(got) == np.shape(expected), name
                np.testing.assert_allclose(got, expected, case.rtol, case.atol, err_msg=name)


if __name__ == "__main__":
    write()
