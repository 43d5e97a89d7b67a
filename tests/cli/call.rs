//! `lapidary call`: own graphs on tensors from files.

use std::path::{Path, PathBuf};

use lapidary_runtime::file::safetensors;

use crate::command::{lapidary, name};

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
