"""The command: what it prints, what it writes, and that nothing is left behind when it fails."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import assert_accurate, assert_same_bits, exact
from reference import Array

import fastsoftmax as fsm
from fastsoftmax import _apply
from fastsoftmax.__main__ import main


def apply(*arguments: Any) -> int:
    return main(["apply", *map(str, arguments)])


def save(path: Path, x: Array) -> Path:
    np.save(path, x)
    return path


def test_demo(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["demo"]) == 0
    printed = capsys.readouterr().out
    for line in (
        "output   [[1.16562310e-02 3.16849208e-02 8.61285444e-02 2.34121657e-01 6.36408647e-01]",
        "[-7.41812617e-03 -2.01645576e-02 -5.48129504e-02 -1.48997047e-01  2.31392681e-01]]",
        "mean confidence",
    ):
        assert line in printed
    accuracy = float(printed.split("accuracy")[1].split("%")[0])
    assert accuracy >= 95


def test_demo_draws(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib")
    assert main(["demo", "--plot", str(tmp_path / "plot.png")]) == 0
    assert (tmp_path / "plot.png").read_bytes()[:4] == b"\x89PNG"
    assert main(["demo", "--plot", str(tmp_path / "no" / "plot.png")]) == 2


def test_the_shipped_logits_are_those_of_the_example(tmp_path: Path) -> None:
    pytest.importorskip("sklearn")
    example = Path(__file__).parent.parent / "examples" / "digits.py"
    saved = tmp_path / "digits.npz"
    command = [sys.executable, str(example), "--save", str(saved)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    shipped = Path(fsm.__file__).parent / "data" / "digits.npz"
    with np.load(saved) as new, np.load(shipped) as old:
        assert old["logits"].shape == (600, 10) and old["logits"].dtype == np.float32
        for data in (new, old):
            assert (data["logits"].argmax(axis=1) == data["labels"]).mean() >= 0.95
        assert (new["labels"] == old["labels"]).all() and (new["images"] == old["images"]).all()


def test_info(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info"]) == 0
    printed = capsys.readouterr().out
    for word in (fsm.__version__, fsm._native.isa(), np.__version__):
        assert word in printed


@pytest.mark.parametrize("function", ["softmax", "log_softmax", "logsumexp"])
@pytest.mark.parametrize("dtype", ["f2", "f4", ">f4", "f8", "g", "i4", "?"])
def test_apply(function: str, dtype: str, tmp_path: Path, rng: np.random.Generator) -> None:
    x = (3 * rng.standard_normal((7, 5, 33))).astype(dtype)
    for order in "CF":
        source = save(tmp_path / "x.npy", np.asarray(x, order=order))
        for axis in (-1, 0, 1):
            target = tmp_path / f"{order}{axis}.npy"
            assert apply(source, target, "--function", function, "--axis", axis) == 0
            assert_same_bits(np.load(target), getattr(fsm, function)(x, axis))
    assert not list(tmp_path.glob(".*"))


def test_apply_with_temperature(tmp_path: Path, rng: np.random.Generator) -> None:
    x = rng.standard_normal((7, 33))
    source, target = save(tmp_path / "x.npy", x), tmp_path / "y.npy"
    assert apply(source, target, "--temperature", 0.3) == 0
    assert_same_bits(np.load(target), fsm.softmax(x, temperature=0.3))


SHAPES = [(), (0,), (3, 0), (0, 3), (1,), (1000,), (3, 1000), (1000, 3), (2, 300, 5), (5, 2, 70)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("function", ["softmax", "log_softmax", "logsumexp"])
def test_apply_part_by_part(
    function: str, shape: tuple[int, ...], tmp_path: Path, rng: np.random.Generator,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """With blocks so small that rows are computed in parts, and the bar moves on the way."""
    monkeypatch.setattr(_apply, "BLOCK", 64)
    for dtype in (np.float16, np.float32, np.float64):
        x = (8 * rng.standard_normal(shape)).astype(dtype)
        for order in "CF":
            source = save(tmp_path / "x.npy", np.asarray(x, order=order))
            for axis in range(-1, x.ndim - 1):
                target, steps = tmp_path / "y.npy", []
                _apply.apply(source, target, function, axis, 1.0, steps.append)
                got = np.load(target)
                assert_accurate(function, got, exact(function, x, axis=axis), dtype)
                assert got.flags.f_contiguous or order == "C"
                if x.ndim and x.size:
                    assert sum(steps) == _apply.work(source, axis, function)
                    assert max(steps) <= max(64, x.size // 2) or x.size <= 64


@pytest.mark.parametrize("function", ["softmax", "log_softmax", "logsumexp"])
def test_apply_part_by_part_to_special_values(
    function: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rng: np.random.Generator
) -> None:
    monkeypatch.setattr(_apply, "BLOCK", 64)
    x = rng.standard_normal((100, 6))
    x[70, 0], x[3, 1], x[99, 2], x[3, 2], x[:, 3], x[::2, 4] = (
        np.nan, np.inf, np.inf, np.nan, -np.inf, -np.inf)  # fmt: skip
    source, target = save(tmp_path / "x.npy", x), tmp_path / "y.npy"
    with np.errstate(invalid="ignore"):
        _apply.apply(source, target, function, 0, 1.0, lambda n: None)
        expected = getattr(fsm, function)(x, 0)
    np.testing.assert_allclose(np.load(target), expected, rtol=1e-15)
    if function != "logsumexp":
        with pytest.warns(RuntimeWarning, match="invalid value"):
            _apply.apply(source, target, function, 0, 1.0, lambda n: None)


def test_long_rows_with_temperature(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rng: np.random.Generator
) -> None:
    monkeypatch.setattr(_apply, "BLOCK", 64)
    x = 100 * rng.standard_normal(1000)
    source, target = save(tmp_path / "x.npy", x), tmp_path / "y.npy"
    for name in ("softmax", "log_softmax"):
        for t in (1e-3, 7.3, 1e30):
            _apply.apply(source, target, name, 0, t, lambda n: None)
            assert_accurate(name, np.load(target), exact(name, x, temperature=t), np.float64)
    save(source, x.astype(np.longdouble))
    _apply.apply(source, target, "softmax", 0, 1.0, lambda n: None)
    assert_same_bits(np.load(target), fsm.softmax(x.astype(np.longdouble)))


def broken(path: Path, kind: str) -> Path:
    np.save(path, np.ones((100, 50)))
    if kind == "missing":
        path.unlink()
    elif kind == "truncated":
        path.write_bytes(path.read_bytes()[:5000])
    elif kind == "truncated header":
        path.write_bytes(path.read_bytes()[:40])
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind == "text":
        path.write_text("1 2 3")
    elif kind == "pickle":
        path.write_bytes(b"cos\nsystem\n(S'touch pwned'\ntR.")
    elif kind == "object":
        np.save(path, np.array([None, 1]), allow_pickle=True)
    elif kind == "complex":
        np.save(path, np.ones(3, complex))
    elif kind == "strings":
        np.save(path, np.array(["a"]))
    elif kind == "directory":
        path.unlink()
        path.mkdir()
    elif kind == "npz":
        with open(path, "wb") as file:
            np.savez(file, np.ones(3))
    return path


KINDS = ["missing", "truncated", "truncated header", "empty", "text", "pickle", "object",
         "complex", "strings", "directory", "npz"]  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_inputs_that_are_refused(
    kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, target = broken(tmp_path / "x.npy", kind), tmp_path / "y.npy"
    target.write_bytes(b"before")
    assert apply(source, target, "--force") == 2
    error = capsys.readouterr().err
    assert error.startswith("fastsoftmax: error:") and error.count("\n") == 1, error
    assert "x.npy" in error
    assert target.read_bytes() == b"before"
    assert len(list(tmp_path.iterdir())) == (1 if kind == "missing" else 2)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--axis", "2"], "axis 2 is out of bounds"),
        (["--temperature", "-1"], "temperature"),
        (["--temperature", "nan"], "temperature"),
        (["--function", "logsumexp", "--temperature", "2"], "temperature"),
    ],
)
def test_arguments_that_are_refused(
    arguments: list[str], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, target = save(tmp_path / "x.npy", np.ones((3, 4))), tmp_path / "y.npy"
    assert apply(source, target, *arguments) == 2
    error = capsys.readouterr().err
    assert words in error and error.count("\n") == 1
    assert not target.exists()


def test_existing_files_need_force(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = save(tmp_path / "x.npy", np.ones((3, 4)))
    before = source.read_bytes()
    assert apply(source, source) == 2
    assert "--force" in capsys.readouterr().err
    assert source.read_bytes() == before
    assert apply(source, source, "--force") == 0
    assert (np.load(source) == 0.25).all()
    assert apply(source, tmp_path, "--force") == 2
    assert apply(source, tmp_path / "no" / "y.npy") == 2


def test_files_have_ordinary_permissions(tmp_path: Path) -> None:
    source, target = save(tmp_path / "x.npy", np.ones(3)), tmp_path / "y.npy"
    assert apply(source, target) == 0
    assert target.stat().st_mode == source.stat().st_mode


def limit_files() -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, 2**20))


def run(*arguments: Any, **options: Any) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "fastsoftmax", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, **options)


def test_a_full_disk(tmp_path: Path) -> None:
    """A limit on the size of files stands for one: the same call fails, for the same need."""
    source, target = save(tmp_path / "x.npy", np.ones((1000, 1000))), tmp_path / "y.npy"
    target.write_bytes(b"before")
    done = run("apply", source, target, "--force", preexec_fn=limit_files)
    assert done.returncode == 2, done
    assert done.stderr.startswith(f"fastsoftmax: error: {target}: ")
    assert done.stderr.count("\n") == 1
    assert target.read_bytes() == b"before"
    assert len(list(tmp_path.iterdir())) == 2


def test_an_interrupted_run_leaves_everything_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, target = save(tmp_path / "x.npy", np.ones((300, 100))), tmp_path / "y.npy"
    target.write_bytes(b"before")

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(_apply, "_block", interrupt)
    assert apply(source, target, "--force") == 130
    assert target.read_bytes() == b"before"
    assert len(list(tmp_path.iterdir())) == 2


def on_terminal(command: list[str]) -> str:
    """What a command prints to its standard error when that is a terminal."""
    pty: Callable[[], tuple[int, int]] = pytest.importorskip("pty").openpty
    ours, theirs = pty()
    with subprocess.Popen(command, stderr=theirs, stdout=subprocess.PIPE) as process:
        os.close(theirs)
        shown = b""
        while True:
            try:
                some = os.read(ours, 4096)
            except OSError:
                break
            if not some:
                break
            shown += some
    os.close(ours)
    assert process.returncode == 0, shown
    return shown.decode()


def test_the_bar_is_for_terminals(tmp_path: Path, rng: np.random.Generator) -> None:
    source = save(tmp_path / "x.npy", rng.standard_normal(5_000_000).astype(np.float32))
    target = tmp_path / "y.npy"
    done = run("apply", source, target)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    command = [sys.executable, "-m", "fastsoftmax", "apply", str(source), str(target), "--force"]
    assert "100%" in on_terminal(command)


def test_warnings_take_one_line(tmp_path: Path) -> None:
    source, target = save(tmp_path / "x.npy", np.array([np.inf, 1])), tmp_path / "y.npy"
    done = run("apply", source, target)
    assert done.returncode == 0
    assert done.stderr == "fastsoftmax: warning: invalid value encountered in softmax\n"


def run_bench(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "fastsoftmax", "bench", *arguments]
    return subprocess.run(command, capture_output=True, text=True)


@pytest.mark.parametrize(
    "options",
    [
        ["--function", "log_softmax", "--axis", "1"],
        ["--function", "softmax_vjp", "--dtype", "float64", "--threads", "2"],
        ["--function", "softmax_jacobian"],
        ["--function", "logsumexp", "--dtype", "float16", "--axis", "0"],
    ],
    ids=lambda options: options[1],
)
def test_bench(options: list[str]) -> None:
    done = run_bench("4x5", "64x3", *options)
    assert done.returncode == 0, done.stderr
    title, _, *table = done.stdout.splitlines()
    assert title.startswith(options[1])
    assert [line.split("|")[1].strip() for line in table[2:]] == ["4x5", "64x3"]
    assert all("NumPy" in line for line in table[2:])


@pytest.mark.parametrize("arguments", [["4y5"], ["0x5"], ["4x5", "--threads", "0"]])
def test_bench_refuses(arguments: list[str]) -> None:
    done = run_bench(*arguments)
    assert done.returncode == 2
    assert done.stdout == ""
    assert "error" in done.stderr
