//! The C header of a function that is no model's: its call has the function's own tensors, under their own names as far
//! as C can say them.

use std::fmt::Write;

use lapidary_runtime::program::{Element, Length, Operand, Role, Signature};

use super::{Parts, Places};
use crate::object::Status;
use crate::object::driver::callable::parameters;
use crate::object::header::{BEGINNING, END, begin};
use crate::object::state::STATE_ALIGN;
use crate::object::weights::{WEIGHT_ALIGN, WeightsFile};
use crate::target::Target;

/// The most columns of a declaration.
const WIDTH: usize = 110;

/// The header's text.
pub(super) fn text(target: &Target, parts: &Parts<'_>, places: &Places, weights: &WeightsFile) -> String {
    let (signature, prefix) = (&parts.image.plan, parts.prefix);
    let upper = prefix.to_ascii_uppercase();
    let (triple, cpu) = (target.isa.triple(), &target.name);
    let named = |text: &str| text.replace("@lower", prefix).replace("@UPPER", &upper);
    let has_weights = !weights.tensors.is_empty();
    let mut out = format!(
        "/* Function `{}`, compiled by Lapidary for {triple}, CPU {cpu}: link {prefix}.o{}.\n",
        signature.name,
        if has_weights { format!(", load {prefix}.weights") } else { String::new() }
    );
    out.push_str(&named(ABOUT));
    out.push_str(&named(if has_weights { WEIGHTS } else { NO_WEIGHTS }));
    out.push_str(THREADS);
    begin(&mut out, target, prefix);
    let rows = signature.has_rows().then_some(("MAX_ROWS", signature.most.rows, "The most rows of a call."));
    let engine = &places.engine;
    let sizes = [
        ("ENGINE_BYTES", engine.bytes, "Bytes of an engine: temporaries, scratch, tables."),
        ("ENGINE_ALIGN", STATE_ALIGN, "Alignment of an engine in bytes."),
        ("SCRATCH_BYTES", engine.scratch_bytes, "Bytes of scratch of each thread of a parallel_for."),
        ("SCRATCH_ALIGN", STATE_ALIGN, "Alignment of a thread's scratch in bytes."),
    ];
    let file = [
        ("WEIGHTS_BYTES", weights.bytes, "Length of the weights file in bytes."),
        (
            "WEIGHTS_ALIGN",
            WEIGHT_ALIGN,
            "Alignment of the weights in memory, in bytes (a mapped file has it).",
        ),
    ];
    for (name, value, about) in rows.into_iter().chain(sizes).chain(file.into_iter().filter(|_| has_weights))
    {
        let suffix = if value > i32::MAX as usize { "ULL" } else { "" };
        let _ = writeln!(out, "/* {about} */\n#define {upper}_{name} {value}{suffix}");
    }
    out.push_str("\n/* What functions return. */\nenum {\n");
    let statuses: Vec<_> =
        Status::ALL.into_iter().filter_map(|s| Some((s, describe(s, signature)?))).collect();
    for (index, (status, (name, about))) in statuses.iter().enumerate() {
        let comma = if index + 1 == statuses.len() { "" } else { "," };
        let _ = writeln!(out, "    {upper}_{name} = {}{comma} /* {about} */", status.code());
    }
    out.push_str("};\n");
    out.push_str(&named(BEGINNING));
    out.push_str(&declaration(signature, prefix));
    out.push_str(END);
    out
}

/// A status' name and meaning; none of one that no function returns.
fn describe(status: Status, signature: &Signature) -> Option<(&'static str, &'static str)> {
    let (has_rows, has_ids) = (signature.has_rows(), !signature.lookups.is_empty());
    let has_weights = signature.weights().next().is_some();
    match status {
        Status::Ok => Some(("OK", "Done.")),
        Status::State => Some(("ERROR_STATE", "The engine is null, misaligned, too small, or not ready.")),
        Status::Weights => has_weights
            .then_some(("ERROR_WEIGHTS", "The weights are null, misaligned, or not those of this object.")),
        Status::Argument => Some(("ERROR_ARGUMENT", "A null pointer; nothing changed.")),
        Status::Context => {
            has_rows.then_some(("ERROR_ROWS", "No rows, or more than MAX_ROWS; nothing changed."))
        }
        Status::Token => {
            has_ids.then_some(("ERROR_ID", "An id that what it picks from lacks; nothing changed."))
        }
        Status::Position => None,
        Status::Cpu => Some(("ERROR_CPU", "This CPU lacks what the code needs; nothing changed.")),
    }
}

/// The call, and what each of its tensors is.
fn declaration(signature: &Signature, prefix: &str) -> String {
    let names = names(signature);
    let inputs = signature.operands.iter().filter(|o| o.role == Role::Input).count();
    let mut out = "\n/* Calls the function: reads inputs and writes outputs, dense, the last axis fastest. \
                   They need no\n \
                   * alignment but that of their elements, and outputs must not overlap anything else.\n"
        .to_string();
    if signature.has_rows() {
        out.push_str(" *   rows: T, the rows of the call\n");
    }
    let mut arguments = vec!["void *engine".to_string()];
    arguments.extend(signature.has_rows().then(|| "uint64_t rows".to_string()));
    for (index, (at, name)) in parameters(signature).zip(&names).enumerate() {
        let operand = &signature.operands[at];
        let is_input = index < inputs;
        let own = if *name == operand.name { String::new() } else { format!(", `{}`", operand.name) };
        let way = if is_input { "in" } else { "out" };
        let _ = writeln!(out, " *   {name}: {way}{own}, {}", describe_type(operand));
        let (ty, constant) = (c_type(operand.element), if is_input { "const " } else { "" });
        arguments.push(format!("{constant}{ty} *{name}"));
    }
    out.push_str(" */\n");
    let start = format!("int32_t {prefix}_call(");
    let indent = " ".repeat(start.len());
    let mut line = start;
    for (index, argument) in arguments.iter().enumerate() {
        let end = if index + 1 == arguments.len() { ");\n" } else { "," };
        if index > 0 && line.len() + argument.len() + 3 > WIDTH {
            let _ = writeln!(out, "{line}");
            line.clone_from(&indent);
        } else if index > 0 {
            line.push(' ');
        }
        line.push_str(argument);
        line.push_str(end);
    }
    out + &line
}

fn describe_type(operand: &Operand) -> String {
    let lengths: Vec<String> = operand.shape.iter().map(Length::to_string).collect();
    let note = match operand.element {
        Element::Bool => ", 0 or 1",
        Element::F16 | Element::BF16 => ", as bits",
        Element::F32 | Element::I32 | Element::Block { .. } => "",
    };
    format!("{} ({}){note}", operand.element, lengths.join(", "))
}

fn c_type(element: Element) -> &'static str {
    match element {
        Element::F32 => "float",
        Element::F16 | Element::BF16 => "uint16_t",
        Element::I32 => "int32_t",
        Element::Bool | Element::Block { .. } => "uint8_t",
    }
}

/// Distinct C identifiers for the tensors that a caller passes, in their order.
fn names(signature: &Signature) -> Vec<String> {
    let mut taken: Vec<String> = ["engine", "rows"].map(String::from).to_vec();
    for at in parameters(signature) {
        let operand = &signature.operands[at];
        let mut name: String =
            operand.name.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '_' }).collect();
        if !name.starts_with(|c: char| c.is_ascii_alphabetic()) {
            name = format!("t{name}");
        }
        if KEYWORDS.contains(&name.as_str()) || taken.contains(&name) {
            let is_input = operand.role == Role::Input;
            name.push_str(if is_input { "_in" } else { "_out" });
        }
        let mut unique = name.clone();
        for n in 2.. {
            if !taken.contains(&unique) {
                break;
            }
            unique = format!("{name}_{n}");
        }
        taken.push(unique);
    }
    taken.split_off(2)
}

/// Words of C and C++ that name no parameter.
const KEYWORDS: [&str; 97] = [
    "alignas",
    "alignof",
    "and",
    "and_eq",
    "asm",
    "auto",
    "bitand",
    "bitor",
    "bool",
    "break",
    "case",
    "catch",
    "char",
    "class",
    "compl",
    "concept",
    "const",
    "const_cast",
    "consteval",
    "constexpr",
    "constinit",
    "continue",
    "co_await",
    "co_return",
    "co_yield",
    "decltype",
    "default",
    "delete",
    "do",
    "double",
    "dynamic_cast",
    "else",
    "enum",
    "explicit",
    "export",
    "extern",
    "false",
    "float",
    "for",
    "friend",
    "goto",
    "if",
    "inline",
    "int",
    "long",
    "mutable",
    "namespace",
    "new",
    "noexcept",
    "not",
    "not_eq",
    "nullptr",
    "operator",
    "or",
    "or_eq",
    "private",
    "protected",
    "public",
    "register",
    "reinterpret_cast",
    "requires",
    "restrict",
    "return",
    "short",
    "signed",
    "sizeof",
    "static",
    "static_assert",
    "static_cast",
    "struct",
    "switch",
    "template",
    "this",
    "thread_local",
    "throw",
    "true",
    "try",
    "typedef",
    "typeid",
    "typename",
    "typeof",
    "typeof_unqual",
    "union",
    "unsigned",
    "using",
    "virtual",
    "void",
    "volatile",
    "wchar_t",
    "while",
    "xor",
    "xor_eq",
    "char8_t",
    "char16_t",
    "char32_t",
    "linux",
    "unix",
];

const ABOUT: &str = " *
 * The code needs nothing else, not even libc. It allocates nothing and writes nothing but engine and outputs.
 *
 * Memory: the caller provides an engine of @UPPER_ENGINE_BYTES bytes, aligned to @UPPER_ENGINE_ALIGN and ALL ZERO
 * before its first @lower_init (as mmap and calloc give it). It holds addresses of itself and must not move.
";

const WEIGHTS: &str = " *
 * Weights: the bytes of the weights file, aligned to @UPPER_WEIGHTS_ALIGN, which are read only and must not move while
 * an engine uses them; many engines may. It is a safetensors file (8 bytes of header length, little-endian; JSON;
 * tensors). Each tensor starts at a multiple of 64 bytes; `_padding.N` fills the gaps.
";

const NO_WEIGHTS: &str = " *
 * There are no weights: null and 0 are passed to @lower_init.
";

const THREADS: &str = " *
 * Threads: an engine is used by one thread at a time; different engines by different threads at once. With a
 * parallel_for the launches that are worth it are spread; results are the same, to the bit, however they are split.
";
