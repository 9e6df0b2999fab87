"""How fast: fastsoftmax against a plain copy and every peer that is installed, in this process.

All take turns, so that a busy machine slows them alike; the figures are medians.
"""

from __future__ import annotations

import functools
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np

import fastsoftmax

Array = Any
Call = Callable[[], Any]

SHORT_FORM = ["1x10", "65536x10", "16384x100", "8192x1000", "512x32000", "4x4194304"]
SHORT_JACOBIANS = ["1x3", "4096x10", "1024x100", "64x1000", "2x4096"]
PRODUCTS = ["softmax_vjp", "softmax_jvp", "log_softmax_vjp", "log_softmax_jvp"]
HEADER = """\
| rows x n | our time | x copy | best peer | x best | times of the peers over ours |
|---|---|---|---|---|---|"""


@dataclass
class Case:
    """A function of x along an axis, into out; g is what derivatives multiply, or the targets."""

    function: str
    x: Array
    axis: int
    out: Array
    threads: int
    g: Array | None = None

    @property
    def inputs(self) -> tuple[Array, ...]:
        return (self.x,) if self.g is None else (self.x, self.g)


class Formulas:
    """What is written by hand in NumPy."""

    @staticmethod
    def softmax(x: Array, axis: int, out: Array) -> Array:
        np.subtract(x, x.max(axis=axis, keepdims=True), out=out)
        np.exp(out, out=out)
        return np.divide(out, out.sum(axis=axis, keepdims=True), out=out)

    @staticmethod
    def log_softmax(x: Array, axis: int, out: Array) -> Array:
        np.subtract(x, x.max(axis=axis, keepdims=True), out=out)
        return np.subtract(out, np.log(np.exp(out).sum(axis=axis, keepdims=True)), out=out)

    @staticmethod
    def logsumexp(x: Array, axis: int, out: Array) -> Array:
        m = x.max(axis=axis, keepdims=True)
        return np.add(np.log(np.exp(x - m).sum(axis=axis)), m.squeeze(axis), out=out)

    @staticmethod
    def softmax_vjp(p: Array, g: Array, axis: int, out: Array) -> Array:
        np.subtract(g, (p * g).sum(axis=axis, keepdims=True), out=out)
        return np.multiply(out, p, out=out)

    softmax_jvp = softmax_vjp

    @staticmethod
    def log_softmax_vjp(p: Array, g: Array, axis: int, out: Array) -> Array:
        np.multiply(p, g.sum(axis=axis, keepdims=True), out=out)
        return np.subtract(g, out, out=out)

    @staticmethod
    def log_softmax_jvp(p: Array, t: Array, axis: int, out: Array) -> Array:
        return np.subtract(t, (p * t).sum(axis=axis, keepdims=True), out=out)

    @staticmethod
    def cross_entropy(x: Array, targets: Array, axis: int, out: Array) -> tuple[Any, Array]:
        rows = np.arange(len(x))
        np.subtract(x, x.max(axis=-1, keepdims=True), out=out)
        picked = out[rows, targets]
        np.exp(out, out=out)
        total = out.sum(axis=-1)
        out *= (1 / (len(x) * total))[:, None]
        out[rows, targets] -= 1 / len(x)
        return (np.log(total) - picked).mean(), out

    @staticmethod
    def softmax_jacobian(p: Array, axis: int, out: Array) -> Array:
        np.multiply(p[..., :, None], -p[..., None, :], out=out)
        diagonal = np.einsum("...ii->...i", out)
        diagonal += p
        return out


def ours(case: Case) -> Call:
    if case.function == "SoftmaxJacobian":
        operator = fastsoftmax.SoftmaxJacobian(case.x)
        return lambda: operator @ case.g
    call = getattr(fastsoftmax, case.function)
    if case.function == "cross_entropy":
        return lambda: call(*case.inputs, return_grad=True, out=case.out)
    return lambda: call(*case.inputs, case.axis, out=case.out)


def function(case: Case) -> Call:
    """What the product with the operator is compared with: it allocates its result too."""
    if case.function != "SoftmaxJacobian":
        raise NotImplementedError
    return lambda: fastsoftmax.softmax_jvp(*case.inputs)


def numpy(case: Case) -> Call:
    call = getattr(Formulas, case.function)
    return lambda: call(*case.inputs, case.axis, case.out)


def scipy(case: Case) -> Call:
    from scipy import special

    call = getattr(special, case.function)
    return lambda: call(case.x, axis=case.axis)


def scikit_learn(case: Case) -> Call:
    from sklearn.utils.extmath import softmax

    if case.function != "softmax" or case.axis != -1:
        raise NotImplementedError
    return lambda: softmax(case.x)


def torch(case: Case) -> Call:
    import torch

    def tensor(a: Array) -> Any:
        if a.dtype.name == "bfloat16":
            return torch.from_numpy(a.view(np.int16)).view(torch.bfloat16)
        return torch.from_numpy(a)

    torch.set_num_threads(case.threads)
    x, *g = map(tensor, case.inputs)
    out, axis = tensor(case.out), case.axis
    if case.function == "cross_entropy":
        return lambda: _torch_cross_entropy(x, *g)
    if case.function in ("softmax_vjp", "softmax_jvp"):
        vjp = torch.ops.aten._softmax_backward_data.out
        return lambda: vjp(g[0], x, axis, x.dtype, grad_input=out)
    if case.function == "log_softmax_vjp":  # from the logarithms, which it exponentiates
        log_vjp, logs = torch.ops.aten._log_softmax_backward_data.out, x.log()
        return lambda: log_vjp(g[0], logs, axis, x.dtype, out=out)
    if case.function == "log_softmax_jvp":
        return lambda: torch.sub(g[0], (x * g[0]).sum(axis, keepdim=True), out=out)
    if case.function == "softmax_jacobian":
        return lambda: torch.sub(torch.diag_embed(x), x.unsqueeze(-1) * x.unsqueeze(-2), out=out)
    call = getattr(torch, case.function)
    return lambda: call(x, axis, out=out)


def _torch_cross_entropy(x: Any, targets: Any) -> Any:
    from torch.nn import functional

    x = x.detach().requires_grad_()
    functional.cross_entropy(x, targets).backward()
    return x.grad


def jax(case: Case) -> Call:
    import jax

    jax.config.update("jax_enable_x64", True)
    functions: dict[str, Callable[..., Any]] = {
        "softmax": jax.nn.softmax,
        "log_softmax": jax.nn.log_softmax,
        "logsumexp": jax.scipy.special.logsumexp,
        "softmax_vjp": lambda p, g, axis: p * (g - (p * g).sum(axis, keepdims=True)),
        "softmax_jvp": lambda p, t, axis: p * (t - (p * t).sum(axis, keepdims=True)),
        "log_softmax_vjp": lambda p, g, axis: g - p * g.sum(axis, keepdims=True),
        "log_softmax_jvp": lambda p, t, axis: t - (p * t).sum(axis, keepdims=True),
        "softmax_jacobian": lambda p, axis: (
            p[..., :, None] * (jax.numpy.eye(p.shape[-1], dtype=p.dtype) - p[..., None, :])
        ),
    }
    call = jax.jit(lambda *inputs: functions[case.function](*inputs, axis=case.axis))
    if case.function == "cross_entropy":
        call = jax.jit(jax.value_and_grad(_jax_cross_entropy))
    arrays = [jax.numpy.asarray(a) for a in case.inputs]
    return lambda: jax.block_until_ready(call(*arrays))


def _jax_cross_entropy(x: Any, targets: Any) -> Any:
    import jax

    log_p = jax.nn.log_softmax(x)
    return -jax.numpy.take_along_axis(log_p, targets[:, None], axis=-1).mean()


def onnxruntime(case: Case) -> Call:
    import onnxruntime
    from onnx import TensorProto, helper

    operator = {"softmax": "Softmax", "log_softmax": "LogSoftmax"}[case.function]
    kind = {"float32": TensorProto.FLOAT, "float64": TensorProto.DOUBLE}[case.x.dtype.name]
    graph = helper.make_graph(
        [helper.make_node(operator, ["x"], ["y"], axis=case.axis)],
        "softmax",
        [helper.make_tensor_value_info("x", kind, case.x.shape)],
        [helper.make_tensor_value_info("y", kind, case.x.shape)],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = case.threads
    providers = ["CPUExecutionProvider"]
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=providers)
    binding = session.io_binding()
    binding.bind_ortvalue_input("x", onnxruntime.OrtValue.ortvalue_from_numpy(case.x))
    binding.bind_ortvalue_output("y", onnxruntime.OrtValue.ortvalue_from_numpy(case.out))
    return lambda: session.run_with_iobinding(binding)


PEERS: dict[str, Callable[[Case], Call]] = {
    "softmax_jvp": function,
    "NumPy": numpy,
    "SciPy": scipy,
    "scikit-learn": scikit_learn,
    "torch": torch,
    "JAX": jax,
    "onnxruntime": onnxruntime,
}


def limit(case: Case) -> Call:
    """What memory allows: a copy of x, with as many threads; a sum of it; a fill of the result."""
    if case.function == "logsumexp":
        return lambda: case.x.sum(dtype=case.x.dtype)
    if case.function == "softmax_jacobian":
        return lambda: case.out.fill(0)
    source, target = case.x.reshape(-1), np.empty_like(case.x).reshape(-1)
    if case.threads == 1 or source.size < 2**17:
        return lambda: np.copyto(target, source)
    pool = ThreadPoolExecutor(case.threads)
    step = -(-source.size // case.threads)
    parts = [slice(i, i + step) for i in range(0, source.size, step)]
    return lambda: list(pool.map(lambda part: np.copyto(target[part], source[part]), parts))


def calls(case: Case, peers: Iterable[str] = PEERS) -> dict[str, Call]:
    """The limit, ourselves, and every one of the peers that is installed and can do it."""
    found = {"copy": limit(case), "fastsoftmax": ours(case)}
    for name in peers:
        try:
            call = PEERS[name](case)
            call()
        except Exception:  # not installed, or not for this function, dtype or axis
            continue
        found[name] = call
    return found


def medians(calls: dict[str, Call], rounds: int, pause: float = 0) -> dict[str, float]:
    """Seconds a call, the calls taking turns; short ones are repeated to fill about 2 ms.

    A pause before each lets the threads of the last one, which still spin, go to sleep.
    """
    repeats: dict[str, int] = {}
    times: dict[str, list[float]] = {name: [] for name in calls}
    for name, call in calls.items():
        call()
        start = time.perf_counter()
        call()
        repeats[name] = max(1, int(0.002 / max(time.perf_counter() - start, 1e-7)))
    for _ in range(rounds):
        for name, call in calls.items():
            time.sleep(pause)
            start = time.perf_counter()
            for _ in range(repeats[name]):
                call()
            times[name].append((time.perf_counter() - start) / repeats[name])
    return {name: float(np.median(t)) for name, t in times.items()}


def normals(seed: int, size: int) -> Array:
    """Standard normal numbers; drawing them takes longer than most of what is measured."""
    return _drawn(seed, 2 ** (size - 1).bit_length())[:size]


@functools.lru_cache(4)
def _drawn(seed: int, size: int) -> Array:
    return np.random.default_rng(seed).standard_normal(size, np.float32)


def make_case(shape: str, function: str, dtype: str, axis: int, threads: int) -> Case:
    """`rows x n`, n being the length of the axis: the last, the first, or (axis 1) a middle one."""
    if dtype == "bfloat16":
        import ml_dtypes  # noqa: F401 - registers it with NumPy
    rows, n = map(int, shape.split("x"))
    after = max(k for k in (64, 1) if rows % k == 0)
    size = {-1: (rows, n), 0: (n, rows), 1: (rows // after, n, after)}[axis]
    x = (3 * normals(0, rows * n)).reshape(size).astype(dtype)
    if function == "SoftmaxJacobian" and axis != -1:
        raise ValueError("--function SoftmaxJacobian is measured along the last axis")
    if function in (*PRODUCTS, "SoftmaxJacobian"):
        g = normals(1, rows * n).reshape(size).astype(dtype)
        return Case(function, fastsoftmax.softmax(x, axis), axis, np.empty_like(x), threads, g)
    if function == "cross_entropy":
        if axis != -1:
            raise ValueError("--function cross_entropy is measured along the last axis")
        targets = np.random.default_rng(2).integers(0, n, rows)
        return Case(function, x, axis, np.empty_like(x), threads, targets)
    if function == "softmax_jacobian":
        if axis != -1:
            raise ValueError("--function softmax_jacobian is measured along the last axis")
        return Case(function, fastsoftmax.softmax(x), axis, np.empty((*size, n), x.dtype), threads)
    reduced = tuple(length for i, length in enumerate(size) if i != axis % len(size))
    out = np.empty(reduced if function == "logsumexp" else size, x.dtype)
    return Case(function, x, axis, out, threads)


def measure(
    shapes: list[str], function: str, dtype: str, axis: int, threads: int, rounds: int
) -> Iterator[dict[str, Any]]:
    """Of each shape, its elements and the medians of all contenders."""
    for shape in shapes:
        case = make_case(shape, function, dtype, axis, threads)
        seconds = medians(calls(case), rounds, 0.02 * (threads > 1))
        n = int(shape.split("x")[1])
        yield {"shape": shape, "elements": case.x.size, "n": n, "seconds": seconds}


def title(function: str, dtype: str, axis: int, threads: int, rounds: int) -> str:
    isa = fastsoftmax._native.isa()
    return (
        f"{function} along axis {axis}, {dtype}, {threads} thread{'s' * (threads > 1)}, {isa}, "
        f"NumPy {np.__version__}; medians of {rounds}"
    )


def report(
    shapes: list[str], function: str, dtype: str, axis: int, threads: int, rounds: int
) -> tuple[str, list[dict[str, Any]]]:
    """Prints the table as it grows; returns its title and cells."""
    what = (function, dtype, axis, threads, rounds)
    heading, cells = title(*what), []
    print(f"{heading}\n\n{HEADER}", flush=True)
    for cell in measure(shapes, *what):
        cells.append(cell)
        print(row_of(cell), flush=True)
    return heading, cells


def row_of(cell: dict[str, Any]) -> str:
    """A line of the table."""
    times = dict(cell["seconds"])
    copy, mine = times.pop("copy"), times.pop("fastsoftmax")
    best = min(times, key=lambda name: times[name], default=None)
    others = ", ".join(f"{name} {t / mine:.2f}" for name, t in times.items())
    over = f"{mine / times[best]:.2f}" if best else "-"
    return (
        f"| {cell['shape']} | {in_words(mine)} | {mine / copy:.2f} | {best} | {over} | {others} |"
    )


def in_words(seconds: float) -> str:
    for unit, factor in (("s", 1.0), ("ms", 1e3), ("us", 1e6)):
        if seconds * factor >= 1:
            return f"{seconds * factor:.3g} {unit}"
    return f"{seconds * 1e9:.0f} ns"


def with_threads(threads: int) -> None:
    """Starts this process anew, once, with the number of threads that libraries read at import."""
    if os.environ.get("OMP_NUM_THREADS") != str(threads):
        flags = os.environ.get("XLA_FLAGS", "")
        if threads == 1:
            flags += " --xla_cpu_multi_thread_eigen=false"
        os.environ |= {"OMP_NUM_THREADS": str(threads), "XLA_FLAGS": flags}
        os.execv(sys.executable, [sys.executable, *sys.argv])
    if hasattr(os, "sched_setaffinity"):  # JAX heeds nothing else
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])
