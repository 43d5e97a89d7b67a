//! Functions that are no model's, compiled ahead of time: as objects linked with C programs, and as artifacts, to the
//! bit as the compiler in this process has them; cross-compiled and run under QEMU as near as the reference
//! interpreter says.

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;

use lapidary::call::{Call, Returned, TensorFile, write_tensors};
use lapidary::{Activations, Compile, Options};
use lapidary_codegen::callable::signature;
use lapidary_ir::{Function, text};
use lapidary_runtime::program::{Counts, Element, Operand, Role, Signature, WeightSource};
use lapidary_runtime::{Artifact, Callable};
use tempfile::TempDir;

use crate::toolchain::{have, run};
use program::program;

#[path = "own/program.rs"]
mod program;

/// Rows that code is compiled for: a variant of one row, of few, and of all.
const CHUNK: usize = 48;
/// Rows of calls: each variant's, and some of its own.
const ROWS: [usize; 5] = [1, 3, 17, 40, 48];
/// The most that a result of another architecture may differ by, as a share of the largest.
const TOLERANCE: f64 = 1e-5;

fn sources() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/object/own")
}

fn functions() -> Vec<Function> {
    let graphs = fs::read_to_string(sources().join("graphs.ir")).expect("graphs");
    text::parse_module(&graphs).expect("functions").functions
}

fn options() -> Options {
    Options::new().chunk(CHUNK).threads(2)
}

/// Elements of an operand, as kernels hold them.
fn elements(operand: &Operand, counts: Counts) -> Vec<u8> {
    let bytes = operand.bytes(counts);
    let mixed = |i: usize| (i * 7 + operand.name.len() * 3) % 23;
    let word = |i: usize| match operand.element {
        Element::F32 => (mixed(i) as f32 * 0.13 - 1.3).to_le_bytes(),
        Element::I32 => (mixed(i) as i32 % 9).to_le_bytes(),
        Element::Bool => (-i32::from(i == 0 || mixed(i) % 3 == 0)).to_le_bytes(),
        // Floats of the size of 0.1 whichever two bytes make one.
        Element::BF16 => [0x3e, 0x3d, 0x3e, 0xbd].map(|high| high - (mixed(i) % 2) as u8),
        Element::F16 | Element::Block { .. } => {
            [0x2a, 0x2b, 0x2c, 0x2d].map(|high| high + (mixed(i) % 4) as u8)
        }
    };
    (0..bytes.div_ceil(4)).flat_map(word).take(bytes).collect()
}

/// A function with what it is called on.
struct Case {
    function: Function,
    signature: Signature,
    weights: TensorFile,
    dir: TempDir,
}

impl Case {
    fn new(function: Function) -> Case {
        let signature = signature(&function, Counts { rows: CHUNK, keys: CHUNK }).expect("a signature");
        let dir = tempfile::tempdir().expect("a folder");
        let one = Counts { rows: 1, keys: 1 };
        let weights = tensors(dir.path(), "w", signature.weights().map(|(_, o)| o), one);
        Case { function, signature, weights, dir }
    }

    fn name(&self) -> &str {
        &self.function.name
    }

    fn inputs(&self) -> impl Iterator<Item = &Operand> {
        self.signature.operands.iter().filter(|o| o.role == Role::Input)
    }

    fn file(&self, counts: Counts) -> TensorFile {
        tensors(self.dir.path(), "x", self.inputs(), counts)
    }

    /// What the compiler in this process makes of so many rows, and how far the interpreter is from it.
    fn jit(&self, counts: Counts, options: &Options) -> (Vec<Returned>, f64) {
        let inputs = self.file(counts);
        let call = Call::bind(&self.function, Some(&self.weights), Some(&inputs)).expect("operands");
        let mut compiled = call.compile(options).expect("code");
        let results = call.run(&mut compiled).expect("results");
        let far =
            call.distances(&results).expect("the interpreter's").iter().map(|d| d.share).fold(0.0, f64::max);
        (results, far)
    }

    fn counts(&self) -> impl Iterator<Item = Counts> {
        let rows = if self.signature.has_rows() { &ROWS[..] } else { &ROWS[..1] };
        rows.iter().map(|&rows| Counts { rows, keys: rows })
    }

    fn compile(&self, how: &Compile, options: &Options, output: &Path) {
        how.function(&self.function, Some(&self.weights), options, output).expect("files");
    }
}

/// A file with these operands.
fn tensors<'a>(
    dir: &Path,
    name: &str,
    operands: impl Iterator<Item = &'a Operand>,
    counts: Counts,
) -> TensorFile {
    let path = dir.join(name).with_extension("safetensors");
    let stored = |operand: &Operand| {
        let mut shape = operand.shape_at(counts);
        if let (true, Some(last)) = (operand.element.is_block(), shape.last_mut()) {
            *last = operand.element.bytes(*last);
        }
        let bytes = elements(operand, counts);
        Returned { name: operand.name.clone(), element: operand.element, shape, bytes }
    };
    write_tensors(&path, &operands.map(stored).collect::<Vec<_>>()).expect("written");
    TensorFile::open(&path).expect("a file")
}

/// Bytes as C has them: a truth value is one byte.
fn in_c(element: Element, bytes: &[u8]) -> Vec<u8> {
    match element {
        Element::Bool => bytes.as_chunks::<4>().0.iter().map(|b| u8::from(*b != [0; 4])).collect(),
        _ => bytes.to_vec(),
    }
}

/// Writes an object of each case to a folder, and links a program with them.
fn link(cases: &[Case], how: &dyn Fn() -> Compile, options: &Options, cc: &str, flags: &[&str]) -> TempDir {
    let dir = tempfile::tempdir().expect("a folder");
    for case in cases {
        case.compile(&how(), options, &dir.path().join(case.name()).with_extension("o"));
    }
    fs::write(dir.path().join("program.c"), program(cases)).expect("written");
    let mut command = Command::new(cc);
    command.args(["-std=c11", "-Wall", "-Wextra", "-Werror", "-pedantic", "-O1", "-I"]).arg(sources());
    command.args(flags).arg(dir.path().join("program.c"));
    command.args(cases.iter().map(|case| dir.path().join(case.name()).with_extension("o")));
    run(command.arg("-o").arg(dir.path().join("program")));
    dir
}

/// What a program makes of a call: the bytes of its results, one after the other.
fn called(runner: &[&str], dir: &Path, case: &Case, counts: Counts) -> Vec<u8> {
    let program = dir.join("program");
    let mut command = match runner {
        [first, rest @ ..] => {
            let mut command = Command::new(first);
            command.args(rest).arg(&program);
            command
        }
        [] => Command::new(&program),
    };
    command.current_dir(dir).args([case.name(), &counts.rows.to_string()]);
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("a process");
    let input: Vec<u8> = case.inputs().flat_map(|o| in_c(o.element, &elements(o, counts))).collect();
    child.stdin.take().expect("a pipe").write_all(&input).expect("room");
    let output = child.wait_with_output().expect("an end");
    assert!(output.status.success(), "{} of {} rows: {}", case.name(), counts.rows, output.status);
    output.stdout
}

fn all_in_c(results: &[Returned]) -> Vec<u8> {
    results.iter().flat_map(|r| in_c(r.element, &r.bytes)).collect()
}

fn cases() -> Vec<Case> {
    functions().into_iter().map(Case::new).collect()
}

#[test]
fn objects_of_functions_give_the_bits_of_the_compiler_in_memory() {
    if !have(&["gcc"]) {
        return;
    }
    let cases = cases();
    for activations in [Activations::Auto, Activations::F32] {
        let options = options().activations(activations);
        let dir = link(&cases, &Compile::object, &options, "gcc", &[]);
        for case in &cases {
            for counts in case.counts() {
                let (results, far) = case.jit(counts, &options);
                assert!(activations == Activations::Auto || far <= TOLERANCE, "{}: {far}", case.name());
                let found = called(&[], dir.path(), case, counts);
                assert_eq!(found, all_in_c(&results), "{} of {} rows", case.name(), counts.rows);
            }
        }
    }
}

#[test]
fn artifacts_of_functions_give_the_bits_of_the_compiler_in_memory() {
    for case in cases() {
        let path = case.dir.path().join("function.lap");
        case.compile(&Compile::artifact(), &options(), &path);
        let artifact = Artifact::open(&path).expect("an artifact");
        artifact.verify().expect("whole");
        assert_eq!(artifact.function_name(), Some(case.name()));
        assert!(artifact.program(None).is_err_and(|e| e.to_string().contains("lapidary-run call")));
        for threads in [1, 3] {
            let program = Arc::new(artifact.function(None).expect("a program"));
            let mut callable = Callable::new(program, threads).expect("memory");
            // Most rows first: copies are used again.
            for counts in case.counts().collect::<Vec<_>>().into_iter().rev() {
                let given: Vec<Vec<u8>> = case.inputs().map(|o| elements(o, counts)).collect();
                let mut inputs = given.iter();
                let takes = case.signature.operands.iter().filter(|o| o.role != Role::Output);
                let takes: Vec<&[u8]> = takes
                    .map(|o| match o.role {
                        Role::Weight => artifact.tensor(&o.name).expect("a weight"),
                        _ => inputs.next().expect("an input").as_slice(),
                    })
                    .collect();
                let found = callable.returned(counts, &takes).expect("results");
                let (expected, _) = case.jit(counts, &options());
                for (found, expected) in found.iter().zip(&expected) {
                    assert_eq!(found.bytes, expected.bytes, "{}: {found}", case.name());
                }
            }
        }
    }
}

#[test]
fn objects_of_functions_agree_under_qemu() {
    if !have(&["aarch64-linux-gnu-gcc", "qemu-aarch64"]) {
        return;
    }
    let cases = cases();
    let options = options().activations(Activations::F32);
    let how = || Compile::object().target("aarch64-unknown-linux-gnu");
    let dir = link(&cases, &how, &options, "aarch64-linux-gnu-gcc", &["-static"]);
    for case in &cases {
        for counts in case.counts() {
            let found = called(&["qemu-aarch64"], dir.path(), case, counts);
            let (results, _) = case.jit(counts, &options);
            let mut at = 0;
            for result in &results {
                let expected = in_c(result.element, &result.bytes);
                let found = &found[at..at + expected.len()];
                at += expected.len();
                let near = match result.element {
                    Element::F32 => near(found, &expected),
                    _ => found == expected,
                };
                assert!(near, "{} of {} rows: {result}", case.name(), counts.rows);
            }
            assert_eq!(at, found.len());
        }
    }
}

/// A row has the same bits in a whole panel of x and in what is left of one at the end, on each kind of CPU; products
/// of integers have the same by `sdot` and by `smmla`.
#[test]
fn rows_of_aarch64_do_not_meet() {
    if !have(&["aarch64-linux-gnu-gcc", "qemu-aarch64"]) {
        return;
    }
    let source = |dtype: &str| {
        format!(
            "function {dtype}_rows(%x: f32[T,288] rows, %w: {dtype}[61,288] weight) {{\n    \
             return y=(linear %x (weights %w) store)\n}}\n"
        )
    };
    let module = text::parse_module(&["q8", "q4", "bf16", "f32"].map(source).concat()).expect("functions");
    let cases: Vec<Case> = module.functions.into_iter().map(Case::new).collect();
    let mut before: Vec<Vec<u8>> = vec![];
    for (cpu, qemu) in [("cortex-a72", "cortex-a72"), ("neoverse-n1", "cortex-a76"), ("neoverse-v1", "max")] {
        let how = || Compile::object().target("aarch64-unknown-linux-gnu");
        let dir = link(&cases, &how, &options().cpu(cpu), "aarch64-linux-gnu-gcc", &["-static"]);
        let mut found = vec![];
        for case in &cases {
            let rows = |rows| {
                let counts = Counts { rows, keys: rows };
                called(&["qemu-aarch64", "-cpu", qemu], dir.path(), case, counts)
            };
            let all = rows(CHUNK);
            assert!(all.iter().any(|&b| b != 0), "{} on {cpu}", case.name());
            for few in [33, 36, 39] {
                let some = rows(few);
                assert_eq!(some, all[..some.len()], "{} of {few} rows on {cpu}", case.name());
            }
            found.push(all);
        }
        // q8 and q4 come first.
        assert!(cpu != "neoverse-v1" || found[..2] == before[..2], "`smmla` has other bits than `sdot`");
        before = found;
    }
}

fn near(found: &[u8], expected: &[u8]) -> bool {
    let floats = |bytes: &[u8]| -> Vec<f64> {
        bytes.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b).into()).collect()
    };
    let (found, expected) = (floats(found), floats(expected));
    let most = expected.iter().fold(1.0f64, |m, x| m.max(x.abs()));
    found.len() == expected.len()
        && found.iter().zip(&expected).all(|(a, b)| (a - b).abs() <= TOLERANCE * most)
}

#[test]
fn objects_of_functions_refuse_what_their_headers_say() {
    if !have(&["gcc", "g++"]) {
        return;
    }
    let dir = tempfile::tempdir().expect("a folder");
    for case in cases() {
        let object = dir.path().join(case.name()).with_extension("o");
        case.compile(&Compile::object(), &options(), &object);
        let has_weights = case.signature.weights().next().is_some();
        assert_eq!(object.with_extension("weights").exists(), has_weights, "{}", case.name());
        for (compiler, language, standard) in [("gcc", "c", "-std=c11"), ("g++", "c++", "-std=c++17")] {
            let mut command = Command::new(compiler);
            command.args([
                "-x",
                language,
                standard,
                "-Wall",
                "-Wextra",
                "-Werror",
                "-pedantic",
                "-fsyntax-only",
            ]);
            run(command.arg(object.with_extension("h")));
        }
    }
    let program = dir.path().join("errors");
    let mut command = Command::new("gcc");
    command
        .args(["-std=c11", "-Wall", "-Wextra", "-Werror", "-Wno-unused-function", "-O1", "-I"])
        .arg(dir.path());
    command.arg(sources().join("errors.c")).arg(dir.path().join("pick.o")).arg("-o").arg(&program);
    run(&mut command);
    run(Command::new(program).arg(dir.path().join("pick.weights")));
}

/// The function and the program in the documentation, as they stand there.
#[test]
fn the_documented_function_works() {
    if !have(&["gcc"]) {
        return;
    }
    let docs = fs::read_to_string(sources().join("../../../docs/object.md")).expect("the documentation");
    let block = |fence: &str, within: &str| -> String {
        let blocks = docs.split(fence).skip(1).filter_map(|rest| rest.split("\n```").next());
        let found = blocks.filter(|block| block.contains(within)).last();
        found.expect("a block").into()
    };
    let module = text::parse_module(&block("```text\n", "function mlp")).expect("a function");
    let case = Case::new(module.functions[0].clone());
    let dir = tempfile::tempdir().expect("a folder");
    case.compile(&Compile::object(), &Options::new(), &dir.path().join("mlp.o"));
    let header = fs::read_to_string(dir.path().join("mlp.h")).expect("a header");
    for line in block("```c\n", "int32_t mlp_call(").lines() {
        assert!(header.contains(line.trim_start_matches("/*")), "`{line}` is not in the header:\n{header}");
    }
    fs::write(dir.path().join("main.c"), block("```c\n", "#include \"mlp.h\"")).expect("written");
    let mut command = Command::new("gcc");
    command.args(["-std=c11", "-Wall", "-Wextra", "-Werror", "-pedantic"]).current_dir(dir.path());
    run(command.args(["main.c", "mlp.o", "-o", "main"]));
    let printed = run(Command::new(dir.path().join("main")).current_dir(dir.path()));

    let x: Vec<u8> =
        [1.0f32, 2.0, 3.0, 4.0, 4.0, 3.0, 2.0, 1.0].iter().flat_map(|x| x.to_le_bytes()).collect();
    let x = Returned { name: "x".into(), element: Element::F32, shape: vec![2, 4], bytes: x };
    let path = dir.path().join("x.safetensors");
    write_tensors(&path, &[x]).expect("written");
    let inputs = TensorFile::open(path).expect("a file");
    let call = Call::bind(&case.function, Some(&case.weights), Some(&inputs)).expect("operands");
    let results = call.run(&mut call.compile(&Options::new()).expect("code")).expect("results");
    let numbers = |r: &Returned| -> Vec<f64> {
        let word = |b: &[u8; 4]| match r.element {
            Element::F32 => f32::from_le_bytes(*b).into(),
            _ => i32::from_le_bytes(*b).into(),
        };
        r.bytes.as_chunks::<4>().0.iter().map(word).collect()
    };
    let (y, best) = (numbers(&results[0]), numbers(&results[1]));
    for (row, line) in printed.lines().enumerate() {
        let found: Vec<f64> = line.split([' ', ':']).filter_map(|word| word.parse().ok()).collect();
        let expected: Vec<f64> = y[row * 4..][..4].iter().chain([&best[row]]).copied().collect();
        let near = found.iter().zip(&expected).all(|(a, b)| (a - b).abs() <= 1e-5 * b.abs().max(1.0));
        assert!(near && found.len() == 5, "{line}, expected {expected:?}");
    }
    assert_eq!(printed.lines().count(), 2);
}
