"""Functions of the tensor language from Python, held against numpy and the reference interpreter."""

import pathlib
import subprocess
import sys

import numpy as np
import pytest

import lapidary
from lapidary import ir
from lapidary.ops import python_name

HERE = pathlib.Path(__file__).resolve().parent


def mlp():
    b = ir.Builder("mlp")
    x = b.rows("x", ["T", 8])
    w, bias = b.weight("w", [16, 8]), b.weight("bias", [16])
    h = ir.relu(x @ w.mT + bias)
    b.output("y", h / h.sum(axis=-1) - 0.5)
    b.output("most", h.argmax())
    return b.function()


def weights(seed=0):
    random = np.random.default_rng(seed)
    return {"w": random.standard_normal((16, 8), np.float32), "bias": random.standard_normal(16, np.float32)}


def expected(x, w):
    h = np.maximum(x @ w["w"].T + w["bias"], 0)
    return h / h.sum(-1, keepdims=True) - 0.5, h.argmax(-1, keepdims=True)


def test_built_printed_parsed_interpreted_compiled():
    f = mlp()
    assert [i[0] for i in f.inputs] == ["x", "w", "bias"] and f.inputs[0] == ("x", "f32", ("T", 8), "rows")
    again = ir.parse(str(f))
    assert str(again) == str(f)
    w = weights()
    compiled = again.compile(w, threads=2)
    for rows in (1, 3, 70):
        x = np.random.default_rng(rows).standard_normal((rows, 8), np.float32)
        y, most = expected(x, w)
        of_interpreter = f.interpret(w, x=x)
        np.testing.assert_allclose(of_interpreter["y"], y, atol=1e-5)
        np.testing.assert_array_equal(of_interpreter["most"], most)
        results = compiled(x)
        np.testing.assert_allclose(results[0], y, atol=1e-5)
        np.testing.assert_array_equal(results[1], most)
        assert results[1].dtype == np.int32


def test_every_operator_is_a_function():
    for name, _, operands in ir.operators():
        function = getattr(ir, python_name(name))
        assert function.__doc__ and operands
    b = ir.Builder()
    x = b.rows("x", ["T", 4])
    assert ir.where(x < 0, x, 2).shape == ("T", 4)
    assert ir.not_(ir.and_(x > 1, x <= 2) | (x == 0)).dtype == "bool"
    assert ir.sum(x, [0, 1]).shape == (1, 1)
    assert (2 - x**2).shape == abs(-x).shape == (x + np.float32(1)).shape
    assert x[:, 1:3].shape == ("T", 2) and x[-1:].shape == (1, 4)
    assert x.reshape("T", 2, 2).transpose(0, 2, 1).mT.shape == ("T", 2, 2)


def test_stubs_are_the_tables():
    stubs = HERE.parent / "tools" / "stubs.py"
    made = subprocess.run(
        [sys.executable, "-c", f"import runpy; print(runpy.run_path({str(stubs)!r})['stubs'](), end='')"],
        capture_output=True, text=True, check=True,
    )
    assert (HERE.parent / "lapidary" / "ops.pyi").read_text() == made.stdout, f"run {stubs}"


def address(array):
    return array.__array_interface__["data"][0]


def test_arrays_are_not_copied():
    # An input that is returned as it lies tells where the kernels read: they copy from there to `out` alone.
    f = ir.parse("function f(%x: f32[T,4] rows, %w: f32[4] weight) { return y=(add %x %w) }")
    w = np.arange(4, dtype=np.float32)
    compiled = f.compile({"w": w}, threads=1)
    x, out = np.ones((3, 4), np.float32), np.empty((3, 4), np.float32)
    places = compiled._compiled.addresses([x], [out])
    assert places == [address(x), address(w), address(out)]
    before = address(out)
    assert compiled(x, out=out) is out and address(out) == before
    np.testing.assert_array_equal(out, x + w)
    # A weight that is changed in place is seen: it was never copied.
    w[:] = 10
    np.testing.assert_array_equal(compiled(x), x + 10)
    # What is not dense is copied, and right.
    wide = np.arange(24, dtype=np.float32).reshape(3, 8)
    np.testing.assert_array_equal(compiled(wide[:, ::2]), wide[:, ::2] + 10)


def test_other_types():
    f = ir.parse(
        "function f(%ids: i32[T] rows, %on: bool[T] rows, %t: f32[5,2] weight, %h: bf16[2] weight) {"
        " return y=(add (gather %t %ids) (cast %h f32)), on=(not %on) }"
    )
    table = np.arange(10, dtype=np.float32).reshape(5, 2)
    halves = (np.array([1.0, 2.0], np.float32).view(np.uint32) >> 16).astype(np.uint16)
    compiled = f.compile({"t": table, "h": halves})
    y, on = compiled(np.array([4, 0]), np.array([True, False]))
    np.testing.assert_array_equal(y, table[[4, 0]] + [1, 2])
    assert on.dtype == bool and on.tolist() == [False, True]
    with pytest.raises(lapidary.Error, match="`ids`: expected ids of 0 to 4, found 5, by v0 = .gather"):
        compiled(np.array([5]), np.array([True]))
    with pytest.raises(lapidary.UsageError, match="32 bits do not hold"):
        compiled(np.array([2**40]), np.array([True]))


def test_caches_are_written_in_place():
    f = ir.parse(
        "function f(%x: f32[2,T,4] rows, %c: f32[2,S,4] cache) { return c=(append %c %x), y=(neg %x) }"
    )
    cache, x = np.zeros((2, 5, 4), np.float32), np.ones((2, 2, 4), np.float32)
    returned, y = f.compile()(x, cache)
    assert returned is cache
    np.testing.assert_array_equal(cache[:, 3:], x)
    np.testing.assert_array_equal(cache[:, :3], 0)
    np.testing.assert_array_equal(y, -x)


def test_errors_name_place_and_node(tmp_path):
    unknown = r"^bad\.ir: line 2, column 15: unknown operator `tann`; did you mean `tanh`"
    with pytest.raises(lapidary.Error, match=unknown):
        ir.parse("function f(%x: f32[T] rows) {\n    return y=(tann %x)\n}", "bad.ir")
    path = tmp_path / "types.ir"
    path.write_text("function f(%x: f32[T] rows) { return y=(mul %x 2) }")
    with pytest.raises(lapidary.Error, match=r"types\.ir: function `f`: v0 = \(mul %x 2\): expected two of f32"):
        ir.load(path)
    b = ir.Builder("g")
    x, w = b.rows("x", ["T", 4]), b.weight("w", [3, 2])
    ill_typed = r"function `g`: v0 = \(matmul %x %w\): expected .* found f32\[T,4\] x f32\[3,2\]"
    with pytest.raises(lapidary.Error, match=ill_typed):
        x @ w
    # What failed is forgotten.
    b.output("y", x + 1)
    f = b.function()
    with pytest.raises(lapidary.UsageError, match=r"function `g`: no weight `w`: expected f32\[3,2\]"):
        f.compile()
    with pytest.raises(lapidary.Error, match=r"tensor `w`: expected f32\[3,2\], found F32 \[2, 2\]"):
        f.compile({"w": np.zeros((2, 2), np.float32)})
    compiled = f.compile({"w": np.zeros((3, 2), np.float32)})
    with pytest.raises(lapidary.UsageError, match="tensor `x`: expected f32.*found format `d`.*float32"):
        compiled(np.zeros((2, 4)))
    with pytest.raises(lapidary.Error, match=r"tensor `x`: expected f32\[T,4\], found F32 \[2, 5\]"):
        compiled(np.zeros((2, 5), np.float32))
    with pytest.raises(lapidary.UsageError, match="takes x: found 2 arrays"):
        compiled(np.zeros((2, 4), np.float32), np.zeros(1, np.float32))
    with pytest.raises(lapidary.UsageError, match="overlap"):
        both = np.zeros((2, 4), np.float32)
        compiled(both, out=both)
    with pytest.raises(lapidary.UsageError, match="no input `z`"):
        f.interpret(z=1)
    with pytest.raises(lapidary.UsageError, match="one builder"):
        b.op("add", x, ir.Builder().rows("x", [1]))


RULES = """
rule double reassociating "x + x = 2 x" {
    (add ?x ?x)
    => (mul ?x 2.0)
    if ?x: f32[..]
}
"""

BAD = RULES.replace("2.0)", "3.0)")


def test_rules_are_checked_explained_and_change_the_plan(tmp_path):
    f = ir.parse("function f(%x: f32[T,64] rows) { return y=(exp (add %x %x)) }")
    path = tmp_path / "mine.rules"
    path.write_text(RULES)
    rules = ir.Rules(path)
    assert rules.names == ["double"] and "rule double" in str(rules)
    assert [c["verdict"].split(",")[0] for c in rules.check(cases=20)] == ["sound"]
    wrong = ir.Rules(BAD).check(cases=20)[0]
    assert wrong["verdict"] == "UNSOUND" and "function" in wrong["counterexample"]
    x = np.linspace(-1, 1, 128, dtype=np.float32).reshape(2, 64)
    plain, own = f.compile(passes="none"), f.compile(rules=path, only="double")
    assert "double" not in plain.report(2)["rules"] and own.report(2)["rules"]["double"] >= 1
    np.testing.assert_allclose(own(x), np.exp(2 * x), rtol=1e-6)
    np.testing.assert_allclose(plain(x), np.exp(2 * x), rtol=1e-6)
    assert "fired once" in f.why_not("double", rules=rules)
    other = ir.parse("function f(%x: f32[T] rows) { return y=(neg %x) }")
    assert "did not fire" in other.why_not("double", rules=rules)
    assert "exp" in f.explain(rules=rules)
    with pytest.raises(lapidary.UsageError, match=r"mine\.rules: line 4, column 9: unknown operator `mull`.*\n.*\n"):
        path.write_text(RULES.replace("=> (mul", "=> (mull"))
        ir.Rules(path)
    with pytest.raises(lapidary.UsageError, match="unknown rule `halve`"):
        f.compile(disable="halve")
    with pytest.raises(lapidary.UsageError, match="unknown rule `halve`"):
        f.why_not("halve")


def test_plans_change_and_results_do_not():
    f = ir.parse((HERE / "norm.ir").read_text(), "norm.ir")
    random = np.random.default_rng(0)
    w = {"w": random.standard_normal(64, np.float32), "p": random.standard_normal((32, 64), np.float32)}
    x = random.standard_normal((5, 64), np.float32)
    fused, plain = f.compile(w), f.compile(w, passes="none")
    assert len(fused.report(5)["kernels"]) < len(plain.report(5)["kernels"])
    np.testing.assert_allclose(fused(x), plain(x), rtol=1e-4, atol=1e-4)
    for rule in fused.report(5)["rules"]:
        np.testing.assert_allclose(f.compile(w, disable=[rule])(x), plain(x), rtol=1e-4, atol=1e-4)
