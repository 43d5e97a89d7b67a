//! The relocatable file: sections, symbols and relocations, through the `object` crate.
//!
//! In: an image's code and the driver. Out: the bytes of an ELF file for the target's architecture. Invariants: `.text`
//! is the image, byte for byte, then the driver; `.rodata` is the driver's tables; public symbols start with the
//! prefix; there is no undefined symbol.

use cranelift_codegen::binemit::Reloc;
use lapidary_runtime::program::{CODE_ALIGN, Image};
use object::write::{Object, Relocation, StandardSection, Symbol, SymbolSection};
use object::{
    Architecture, BinaryFormat, Endianness, FileFlags, RelocationFlags, SectionKind, SymbolFlags, SymbolKind,
    SymbolScope, elf,
};

use super::driver::{Driver, Referent};
use super::refuse;
use super::state::STATE_ALIGN;
use crate::Error;
use crate::target::Target;

/// Writes the file.
///
/// # Errors
/// [`Error::Object`] for an architecture or a relocation that is not served.
pub fn write<P>(target: &Target, prefix: &str, image: &Image<P>, driver: &Driver) -> Result<Vec<u8>, Error> {
    let architecture = match target.isa.triple().architecture.to_string().as_str() {
        "x86_64" => Architecture::X86_64,
        "aarch64" => Architecture::Aarch64,
        "riscv64" => Architecture::Riscv64,
        other => return Err(refuse(format!("objects for {other} are not served"))),
    };
    let mut file = Object::new(BinaryFormat::Elf, architecture, Endianness::Little);
    if architecture == Architecture::Riscv64 {
        // Linkers refuse files whose conventions differ: ours passes floats, had it any, in registers.
        let e_flags = elf::EF_RISCV_FLOAT_ABI_DOUBLE | elf::EF_RISCV_RVC;
        file.flags = FileFlags::Elf { os_abi: elf::ELFOSABI_NONE, abi_version: 0, e_flags };
    }
    let text = file.section_id(StandardSection::Text);
    let tables = file.section_id(StandardSection::ReadOnlyData);
    let align = CODE_ALIGN as u64;
    file.append_section_data(text, &image.code, align);
    file.append_section_data(tables, &driver.tables, STATE_ALIGN as u64);
    // A linker takes a file without this section as one that wants an executable stack.
    file.add_section(vec![], b".note.GNU-stack".to_vec(), SectionKind::Other);
    let symbol = |name: String, value: u64, size: u64, scope| Symbol {
        name: name.into_bytes(),
        value,
        size,
        kind: SymbolKind::Text,
        scope,
        weak: false,
        section: SymbolSection::Section(text),
        flags: SymbolFlags::None,
    };
    for s in &image.symbols {
        let name = format!("{prefix}.{}", s.name);
        file.add_symbol(symbol(name, s.offset, s.bytes, SymbolScope::Compilation));
    }
    let mut starts = vec![];
    for function in &driver.functions {
        let at = file.append_section_data(text, &function.code, align);
        starts.push(at);
        let (name, scope) = if function.public {
            (format!("{prefix}_{}", function.name), SymbolScope::Dynamic)
        } else {
            (format!("{prefix}.{}", function.name), SymbolScope::Compilation)
        };
        file.add_symbol(symbol(name, at, function.code.len() as u64, scope));
    }
    let (in_text, in_tables) = (file.section_symbol(text), file.section_symbol(tables));
    for (function, &start) in driver.functions.iter().zip(&starts) {
        for reference in &function.references {
            let (symbol, at) = match reference.to {
                Referent::Kernel(at) => (in_text, u64::from(at)),
                Referent::Function(index) => (in_text, starts[index as usize]),
                Referent::Table(at) => (in_tables, u64::from(at)),
                // Linkers look for the other half by a symbol of its own.
                Referent::Instruction(at) => {
                    let label = Symbol {
                        kind: SymbolKind::Label,
                        ..symbol(".L0".into(), start + u64::from(at), 0, SymbolScope::Compilation)
                    };
                    (file.add_symbol(label), 0)
                }
            };
            let r_type = match (architecture, reference.kind) {
                (Architecture::X86_64, Reloc::X86PCRel4 | Reloc::X86CallPCRel4) => elf::R_X86_64_PC32,
                (Architecture::Aarch64, Reloc::Arm64Call) => elf::R_AARCH64_CALL26,
                (Architecture::Aarch64, Reloc::Aarch64AdrPrelPgHi21) => elf::R_AARCH64_ADR_PREL_PG_HI21,
                (Architecture::Aarch64, Reloc::Aarch64AddAbsLo12Nc) => elf::R_AARCH64_ADD_ABS_LO12_NC,
                (Architecture::Riscv64, Reloc::RiscvCallPlt) => elf::R_RISCV_CALL_PLT,
                (Architecture::Riscv64, Reloc::RiscvPCRelHi20) => elf::R_RISCV_PCREL_HI20,
                (Architecture::Riscv64, Reloc::RiscvPCRelLo12I) => elf::R_RISCV_PCREL_LO12_I,
                (_, other) => return Err(refuse(format!("a relocation of kind {other}"))),
            };
            let relocation = Relocation {
                offset: start + u64::from(reference.at),
                symbol,
                addend: at as i64 + reference.addend,
                flags: RelocationFlags::Elf { r_type },
            };
            file.add_relocation(text, relocation).map_err(refuse)?;
        }
    }
    file.write().map_err(refuse)
}
