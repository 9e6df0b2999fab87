"""The command `fastsoftmax`, also run by `python -m fastsoftmax`."""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np

import fastsoftmax
from fastsoftmax import _native

FUNCTIONS = [
    *("softmax", "log_softmax", "logsumexp"),
    *("softmax_vjp", "softmax_jvp", "log_softmax_vjp", "log_softmax_jvp"),
    *("softmax_jacobian", "SoftmaxJacobian", "cross_entropy"),
]
DTYPES = ["float16", "bfloat16", "float32", "float64"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit code: 0, or 2 after an error told in one line."""
    options = _parser().parse_args(arguments)
    warnings.formatwarning = lambda message, *_: f"fastsoftmax: warning: {message}\n"
    try:
        options.run(options)
    except KeyboardInterrupt:
        print("fastsoftmax: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # a reader such as head has seen enough
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - nothing is left to say at exit
        return 1
    except (OSError, ValueError, TypeError, ImportError, MemoryError) as error:
        print(f"fastsoftmax: error: {_one_line(error)}", file=sys.stderr)
        return 2
    return 0


def _one_line(error: BaseException) -> str:
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return " ".join(str(error).split())


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="fastsoftmax", description="Softmax of arrays: a demonstration, and files of any size."
    )
    parser.add_argument("--version", action="version", version=fastsoftmax.__version__)
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    demo = commands.add_parser("demo", help="softmax, its Jacobian, and handwritten digits")
    demo.add_argument("--plot", metavar="FILE", type=Path, help="draw them, with matplotlib")
    demo.set_defaults(run=_demo)

    apply = commands.add_parser("apply", help="the function of an array in a .npy file")
    apply.add_argument("source", metavar="IN.npy", type=Path)
    apply.add_argument("target", metavar="OUT.npy", type=Path)
    apply.add_argument(
        "--function",
        choices=FUNCTIONS[:3],
        default="softmax",
        help="default: softmax",
    )
    apply.add_argument("--axis", type=int, default=-1, help="default: the last")
    apply.add_argument("--temperature", type=float, default=1.0, help="divides the array")
    apply.add_argument("--force", action="store_true", help="replace OUT.npy if it exists")
    apply.set_defaults(run=_apply)

    bench = commands.add_parser("bench", help="speed on this machine, beside a copy and the peers")
    add_bench_options(bench)
    bench.set_defaults(run=_bench)

    info = commands.add_parser("info", help="version and instruction sets")
    info.set_defaults(run=_info)
    return parser


def add_bench_options(parser: argparse.ArgumentParser) -> None:
    """What is measured: for this command and for benchmarks/run.py."""
    parser.add_argument("shapes", metavar="ROWSxN", nargs="*", type=_shape, help="8192x1000, ...")
    parser.add_argument("--function", choices=FUNCTIONS, default="softmax", help="default: softmax")
    parser.add_argument("--dtype", choices=DTYPES, default="float32", help="default: float32")
    parser.add_argument("--axis", type=int, choices=[-1, 0, 1], default=-1, help="1: a middle one")
    parser.add_argument("--threads", type=int, default=1, help="default: 1")


def _shape(text: str) -> str:
    rows, _, n = text.partition("x")
    if not (rows.isdecimal() and n.isdecimal() and int(rows) * int(n) > 0):
        raise argparse.ArgumentTypeError(f"'{text}' is not ROWSxN, such as 8192x1000")
    return text


def _bench(options: argparse.Namespace) -> None:
    from fastsoftmax import _bench as bench  # noqa: PLC0415 - what others need not load

    if options.threads < 1:
        raise ValueError("--threads must be at least 1")
    bench.with_threads(options.threads)
    jacobian = options.function == "softmax_jacobian"
    shapes = options.shapes or (bench.SHORT_JACOBIANS if jacobian else bench.SHORT_FORM)
    bench.report(shapes, options.function, options.dtype, options.axis, options.threads, 5)


def _info(_: argparse.Namespace) -> None:
    print(f"fastsoftmax      {fastsoftmax.__version__}")
    print(f"instruction set  {_native.isa()}, of {', '.join(_native.available_isas())}")
    print(f"NumPy            {np.__version__}")


def _demo(options: argparse.Namespace) -> None:
    from fastsoftmax._demo import demo  # noqa: PLC0415 - what others need not load

    demo(options.plot)


def _apply(options: argparse.Namespace) -> None:
    from tqdm import tqdm  # noqa: PLC0415

    from fastsoftmax._apply import apply, work  # noqa: PLC0415

    source, target = options.source, options.target
    if options.function == "logsumexp" and options.temperature != 1:
        raise ValueError("--temperature does not go with --function logsumexp")
    if target.exists() and not options.force:
        raise ValueError(f"{target} exists; --force replaces it")
    if target.is_dir():
        raise ValueError(f"{target} is a directory")
    try:
        elements = work(source, options.axis, options.function)
        columns, lines = shutil.get_terminal_size()  # 80 x 24 where the terminal does not know
        with tqdm(
            total=elements,
            unit="",
            unit_scale=True,
            ncols=columns,
            nrows=lines,
            disable=not sys.stderr.isatty(),
        ) as bar:
            apply(source, target, options.function, options.axis, options.temperature, bar.update)
    except (ValueError, TypeError) as error:
        raise ValueError(f"{source}: {error}") from None


if __name__ == "__main__":
    sys.exit(main())
