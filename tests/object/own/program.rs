//! The C program that calls the objects of a folder.

use std::fmt::Write as _;

use lapidary_runtime::program::{Element, Length, Operand};

use super::Case;

/// The program that calls each object of a folder: `main NAME ROWS`, inputs on stdin, results on stdout.
pub(super) fn program(cases: &[Case]) -> String {
    let mut out = String::from("#include \"main.c\"\n");
    let mut table = String::new();
    for case in cases {
        let (name, upper, signature) = (case.name(), case.name().to_uppercase(), &case.signature);
        let has_weights = signature.weights().next().is_some();
        let size = |o: &Operand| {
            let factors = o.shape.iter().map(|length| match length {
                Length::Fixed(n) => n.to_string(),
                Length::Rows | Length::Keys => "rows".into(),
            });
            let element = if o.element == Element::Bool { 1 } else { o.element.bytes(1) };
            factors.chain([element.to_string()]).collect::<Vec<_>>().join(" * ")
        };
        let ty = |o: &Operand| match o.element {
            Element::F32 => "float",
            Element::I32 => "int32_t",
            Element::Bool => "uint8_t",
            _ => "uint16_t",
        };
        let _ = writeln!(out, "#include \"{name}.h\"\nstatic int run_{name}(uint64_t rows)\n{{");
        let mut arguments = vec!["engine".to_string()];
        arguments.extend(signature.has_rows().then(|| "rows".into()));
        let weights = if has_weights {
            let bytes = format!("{upper}_WEIGHTS_BYTES");
            let _ = writeln!(out, "    void *weights = zeroed({upper}_WEIGHTS_ALIGN, {bytes});");
            let _ = writeln!(out, "    size_t length = load(\"{name}.weights\", weights, {bytes});");
            "weights, length"
        } else {
            "NULL, 0"
        };
        let _ = writeln!(out, "    void *engine = zeroed({upper}_ENGINE_ALIGN, {upper}_ENGINE_BYTES);");
        let scratch = format!("{upper}_SCRATCH_BYTES");
        let _ = writeln!(
            out,
            "    struct parts parts = {{zeroed({upper}_SCRATCH_ALIGN, 2 * {scratch}), {scratch}}};"
        );
        let init = format!("{name}_init(engine, {upper}_ENGINE_BYTES, {weights}, split, &parts)");
        let _ = writeln!(
            out,
            "    CHECK({name}_supported() == 1);\n    CHECK({init} == {upper}_OK);\n    (void)rows;"
        );
        for (at, o) in case.inputs().enumerate() {
            let _ = writeln!(out, "    const {} *in{at} = input({});", ty(o), size(o));
            arguments.push(format!("in{at}"));
        }
        let mut written = String::new();
        for (at, &operand) in signature.returns.iter().enumerate() {
            let o = &signature.operands[operand];
            let _ = writeln!(out, "    {} *out{at} = guarded({});", ty(o), size(o));
            let _ = writeln!(written, "    fwrite(out{at}, 1, {}, stdout);", size(o));
            arguments.push(format!("out{at}"));
        }
        // Twice: nothing is left over from a call.
        for _ in 0..2 {
            let _ = writeln!(out, "    CHECK({name}_call({}) == {upper}_OK);", arguments.join(", "));
        }
        let _ = writeln!(out, "{written}    return 0;\n}}\n");
        let _ = writeln!(
            table,
            "    if (strcmp(argv[1], \"{name}\") == 0)\n        return run_{name}(strtoull(argv[2], NULL, 10));"
        );
    }
    let _ =
        writeln!(out, "int main(int argc, char **argv)\n{{\n    CHECK(argc == 3);\n{table}    return 1;\n}}");
    out
}
