//! `lapidary call`: own graphs on tensors from files.

use std::path::{Path, PathBuf};
use std::process::Command;

use lapidary_runtime::file::safetensors;

use crate::artifact::lapidary_run;
use crate::command::{lapidary, name, run_with};

const MLP: &str = "; LayerNorm, a hidden layer with ReLU, a residual
function mlp(%x: f32[T,6] rows, %g: f32[6] weight, %b: f32[6] weight, %up: bf16[8,6] weight, %down: f32[6,8] weight) {
    d = (sub %x (mean %x 1))
    n = (add (mul (mul d (rsqrt (add (mean (mul d d) 1) 1e-5))) %g) %b)
    h = (relu (matmul n (transpose (cast %up f32) [1,0])))
    return y=(add %x (matmul h (transpose %down [1,0]))), most=(argmax h 1), up=(gt %x 0.0)
}
";

/// A tensor of a file: its name, dtype, shape and bytes.
type Stored<'a> = (&'a str, &'a str, &'a [usize], Vec<u8>);

fn write(path: &Path, tensors: &[Stored<'_>]) {
    let mut header = serde_json::Map::new();
    let mut data = vec![];
    for (name, dtype, shape, bytes) in tensors {
        let at = [data.len(), data.len() + bytes.len()];
        data.extend_from_slice(bytes);
        let entry = serde_json::json!({ "dtype": dtype, "shape": shape, "data_offsets": at });
        header.insert((*name).into(), entry);
    }
    let mut header = serde_json::Value::Object(header).to_string().into_bytes();
    header.resize(header.len().next_multiple_of(8), b' ');
    let whole = [&(header.len() as u64).to_le_bytes()[..], &header, &data].concat();
    std::fs::write(path, whole).unwrap();
}

fn floats(n: usize, step: f32) -> Vec<u8> {
    (0..n).flat_map(|i| (((i * 7 + 3) % 11) as f32 * step - 0.4).to_le_bytes()).collect()
}

/// The upper halves, which are bf16.
fn halves(n: usize, step: f32) -> Vec<u8> {
    floats(n, step).chunks(4).flat_map(|b| [b[2], b[3]]).collect()
}

/// A file of a result: what lies where, and the bytes.
fn read(path: &Path, name: &str) -> (String, Vec<usize>, Vec<u8>) {
    let bytes = std::fs::read(path).unwrap();
    let entries = safetensors::read(path, &bytes).unwrap();
    let entry = entries.into_iter().find(|e| e.name == name).unwrap();
    let data = bytes[entry.bytes.clone()].to_vec();
    (entry.dtype, entry.shape, data)
}

/// The graph, its weights and inputs of so many rows, in a folder.
fn files(dir: &Path, rows: usize) -> [PathBuf; 4] {
    let [ir, w, x, y] = ["mlp.ir", "w.safetensors", "x.safetensors", "y.safetensors"].map(|n| dir.join(n));
    std::fs::write(&ir, MLP).unwrap();
    write(
        &w,
        &[
            ("g", "F32", &[6], floats(6, 0.2)),
            ("b", "F32", &[6], floats(6, 0.1)),
            ("up", "BF16", &[8, 6], halves(48, 0.1)),
            ("down", "F32", &[6, 8], floats(48, 0.05)),
        ],
    );
    write(&x, &[("x", "F32", &[rows, 6], floats(rows * 6, 0.3))]);
    [ir, w, x, y]
}

#[test]
fn a_graph_is_called_on_tensors_of_files() {
    let dir = tempfile::tempdir().unwrap();
    for rows in [1, 3, 40] {
        let [ir, w, x, y] = files(dir.path(), rows);
        let given = ["call", name(&ir), "--weights", name(&w), "--inputs", name(&x), "--activations", "f32"];
        let out = lapidary(&[&given[..], &["-o", name(&y), "--tolerance", "1e-5"]].concat()).ok();
        assert!(out.contains("y: ") && out.contains("from the interpreter's"), "{out}");
        let (dtype, shape, one) = read(&y, "y");
        assert_eq!((dtype.as_str(), &shape[..]), ("F32", &[rows, 6][..]));
        assert_eq!(read(&y, "most").0, "I32");
        let (dtype, _, up) = read(&y, "up");
        let x_bytes = floats(rows * 6, 0.3);
        let positive = x_bytes.as_chunks::<4>().0.iter().map(|b| u8::from(f32::from_le_bytes(*b) > 0.0));
        assert_eq!((dtype.as_str(), up), ("BOOL", positive.collect::<Vec<_>>()));
        // However many threads and whichever rules: the same, to the bit or nearly.
        lapidary(&[&given[..], &["-o", name(&y), "--threads", "1"]].concat()).ok();
        assert_eq!(read(&y, "y").2, one);
        lapidary(&[&given[..], &["-o", name(&y), "--passes", "none", "--tolerance", "1e-5"]].concat()).ok();
    }
}

#[test]
fn operands_that_do_not_fit_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let [ir, w, x, y] = files(dir.path(), 3);
    let call = |w: &Path, x: &Path| {
        lapidary(&["call", name(&ir), "--weights", name(w), "--inputs", name(x), "-o", name(&y)])
    };
    call(&x, &x).fails(&["x.safetensors", "no tensor `g`", "f32[6]"]);
    let bad = dir.path().join("bad.safetensors");
    write(&bad, &[("x", "F32", &[3, 7], floats(21, 0.1))]);
    call(&w, &bad).fails(&["bad.safetensors", "tensor `x`", "expected f32[T,6]", "F32 [3, 7]"]);
    write(&bad, &[("x", "BF16", &[3, 6], halves(18, 0.1))]);
    call(&w, &bad).fails(&["tensor `x`", "expected f32[T,6]", "BF16 [3, 6]"]);
    lapidary(&["call", name(&ir), "--weights", name(&w), "-o", name(&y)]).fails(&["--inputs", "`x`"]);
    let near = ["call", name(&ir), "--weights", name(&w), "--inputs", name(&x), "--tolerance", "0"];
    let far = lapidary(&near);
    assert!(far.code == Some(0) || far.err.contains("from the interpreter's: expected 0e0"), "{}", far.err);
    let refused = lapidary(&[&near[..], &["--context", "9"]].concat());
    assert_eq!(refused.code, Some(2), "{}", refused.err);
}

#[test]
fn ids_are_looked_at_before_code_reads_by_them() {
    let dir = tempfile::tempdir().unwrap();
    let [ir, x, y] = ["take.ir", "x.safetensors", "y.safetensors"].map(|n| dir.path().join(n));
    std::fs::write(
        &ir,
        "function take(%x: f32[3,4] rows, %ids: i32[T] rows) { return y=(take %x %ids 1) }
         function computed(%x: f32[3,4] rows) { return y=(gather %x (reshape (argmax %x 1) [3])) }",
    )
    .unwrap();
    let ids = |ids: &[i64]| {
        let bytes = ids.iter().flat_map(|i| i.to_le_bytes()).collect();
        write(&x, &[("ids", "I64", &[ids.len()], bytes), ("x", "F32", &[3, 4], floats(12, 0.5))]);
    };
    let call = |function: &str| {
        lapidary(&[
            "call",
            name(&ir),
            "--fn",
            function,
            "--inputs",
            name(&x),
            "-o",
            name(&y),
            "--tolerance",
            "0",
        ])
    };
    ids(&[3, 0]);
    call("take").ok();
    assert_eq!(read(&y, "y").1, [3, 2]);
    ids(&[3, 4]);
    call("take").fails(&["`ids`", "0 to 3", "found 4"]);
    ids(&[-1]);
    call("take").fails(&["`ids`", "found -1"]);
    ids(&[1 << 40]);
    call("take").fails(&["`ids`", "1099511627776"]);
    call("computed").fails(&["computed", "gather"]);
    let both = lapidary(&["call", name(&ir), "--inputs", name(&x), "-o", name(&y)]);
    assert_eq!(both.code, Some(2), "{}", both.err);
    assert!(both.err.contains("take, computed"), "{}", both.err);
}

#[test]
fn a_graph_compiled_ahead_is_called_without_a_compiler() {
    let dir = tempfile::tempdir().unwrap();
    let [ir, w, x, y] = files(dir.path(), 40);
    let [lap, again] = ["mlp.lap", "again.safetensors"].map(|n| dir.path().join(n));
    let program = lapidary_run();
    let runner = |args: &[&str]| run_with(Command::new(&program), args, b"");
    let of = ["--weights", name(&w), "--chunk", "64"];
    lapidary(&[&["compile", name(&ir), "-o", name(&lap)], &of[..]].concat()).ok();
    lapidary(&["verify", name(&lap)]).ok();
    lapidary(&[&["call", name(&ir), "--inputs", name(&x), "-o", name(&y)], &of[..]].concat()).ok();
    let out = runner(&["call", name(&lap), "--inputs", name(&x), "-o", name(&again)]);
    assert!(
        out.code == Some(0) && out.err.contains("y f32[40, 6], most i32[40, 1], up bool[40, 6]"),
        "{}",
        out.err
    );
    assert_eq!(std::fs::read(&again).unwrap(), std::fs::read(&y).unwrap());

    let refused = runner(&["call", name(&lap), "-o", name(&again)]);
    assert_eq!(refused.code, Some(2), "{}", refused.err);
    assert!(refused.err.contains("`x`, f32[T,6]"), "{}", refused.err);
    let [_, _, many, _] = files(dir.path(), 65);
    runner(&["call", name(&lap), "--inputs", name(&many), "-o", name(&again)])
        .fails(&["mlp.lap", "65", "1 to 64"]);
    runner(&["call", name(&lap), "--inputs", name(&w), "-o", name(&again)]).fails(&["w.safetensors", "`x`"]);
    // What runs models says what it is.
    lapidary(&["run", "-m", name(&lap), "hello"]).fails(&[
        "mlp.lap",
        "function \"mlp\"",
        "lapidary-run call",
    ]);
    runner(&[name(&lap), "hello"]).fails(&["mlp.lap", "function \"mlp\"", "lapidary-run call"]);
}

#[test]
fn what_cannot_be_compiled_ahead_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let [ir, w, x, _] = files(dir.path(), 3);
    let [lap, object] = ["mlp.lap", "mlp.o"].map(|n| dir.path().join(n));
    let compile = |args: &[&str]| lapidary(&[&["compile", name(&ir), "-o", name(&lap)], args].concat());
    compile(&[]).fails(&["--weights", "`g`, f32[6]"]);
    compile(&["--weights", name(&x)]).fails(&["x.safetensors", "`g`", "f32[6]"]);
    let bad = dir.path().join("bad.safetensors");
    write(&bad, &[("g", "F32", &[7], floats(7, 0.1))]);
    compile(&["--weights", name(&bad)]).fails(&["bad.safetensors", "`g`", "expected f32[6]", "F32 [7]"]);
    write(&bad, &[("g", "BF16", &[6], halves(6, 0.1))]);
    compile(&["--weights", name(&bad)]).fails(&["`g`", "expected f32[6]", "BF16 [6]"]);
    let usage = |args: &[&str], named: &[&str]| {
        let refused = compile(args);
        assert_eq!(refused.code, Some(2), "{args:?}: {}", refused.err);
        named.iter().for_each(|n| assert!(refused.err.contains(n), "{args:?}, {n}: {}", refused.err));
    };
    usage(&["--weights", "q4"], &["--weights q4", "safetensors"]);
    usage(&["--weights", "w.bin"], &["w.bin", "q4", "NAME.safetensors"]);
    usage(&["--weights", name(&w), "--target", "sparc-sun"], &["sparc-sun"]);
    usage(&["--weights", name(&w), "--cpu", "z80"], &["z80"]);
    usage(&["--weights", name(&w), "-m", "model"], &["FILE.ir"]);
    usage(&["--weights", name(&w), "--context", "9"], &["--context"]);
    usage(&["--weights", name(&w), "--head-weights", "q8"], &["--head-weights"]);
    let model = lapidary(&["compile", "--weights", name(&w), "-o", name(&lap)]);
    assert!(model.code == Some(2) && model.err.contains("w.safetensors"), "{}", model.err);

    std::fs::write(
        &ir,
        "function a(%x: f32[T,4] rows) { return y=(neg %x) }
         function keep(%k: f32[2,T,8] rows, %k_cache: f32[2,S,8] cache) { return k_cache=(append %k_cache %k) }
         function computed(%x: f32[3,4] rows) { return y=(gather %x (reshape (argmax %x 1) [3])) }
         function wrong(%x: f32[T,4] rows) { return y=(add %x (reshape %x [T,2,2])) }",
    )
    .unwrap();
    usage(&[], &["mlp.ir", "a, keep, computed, wrong"]);
    for emit in ["artifact", "object"] {
        let output = if emit == "object" { &object } else { &lap };
        let of = |f: &str| lapidary(&["compile", name(&ir), "--emit", emit, "-o", name(output), "--fn", f]);
        of("keep").fails(&["mlp.ir", "`keep`", "`k_cache` is a cache"]);
        of("computed").fails(&["mlp.ir", "`computed`", "gather", "computed ones"]);
        of("wrong").fails(&["mlp.ir", "wrong", "add"]);
        of("none").fails(&["none", "a, keep"]);
        assert!(!output.exists());
        of("a").ok();
        assert!(output.exists());
    }
}

#[test]
fn a_graph_is_measured() {
    let dir = tempfile::tempdir().unwrap();
    let [ir, w, ..] = files(dir.path(), 1);
    let of = ["bench", name(&ir), "--repeat", "1", "--threads", "1"];
    let text = lapidary(&[&of[..], &["--rows", "2,3"]].concat()).ok();
    assert!(text.contains("function mlp") && text.contains("GFLOP/s"), "{text}");
    let given = ["--weights", name(&w), "--kernels", "--json"];
    let shown = lapidary(&[&of[..], &given[..]].concat()).json();
    let results = shown["results"].as_array().unwrap();
    assert_eq!(
        results.iter().map(|r| r["rows"].as_u64()).collect::<Vec<_>>(),
        [Some(1), Some(16), Some(512)]
    );
    for result in results {
        let sum = |field: &str| {
            let kernels = result["kernels"].as_array().unwrap().iter();
            kernels.map(|k| k[field].as_f64().unwrap() * k["ns"].as_f64().unwrap()).sum::<f64>()
        };
        // What the kernels do is what the call does.
        let whole = result["gflops"].as_f64().unwrap() * result["ms"].as_f64().unwrap() * 1e6;
        assert!(whole > 0.0 && (sum("gflops") / whole - 1.0).abs() < 1e-6, "{result}");
        assert_eq!(
            result["kernels"].as_array().unwrap().len() as u64,
            result["kernels_launched"].as_u64().unwrap()
        );
    }
    for (args, named) in
        [(&["--depth", "3"][..], "--depth"), (&["--weights", "q4"], "q4"), (&["--rows", "0"], "0")]
    {
        let refused = lapidary(&[&of[..], args].concat());
        assert!(refused.code == Some(2) && refused.err.contains(named), "{args:?}: {}", refused.err);
    }
}
