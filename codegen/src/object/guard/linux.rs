//! The guard where only the system can be asked, on AArch64 and RISC-V: AT_HWCAP and AT_HWCAP2 of `/proc/self/auxv`;
//! for what has no bit there, `riscv_hwprobe`.
//!
//! In: the bits that must be 1. Out: code. User space can ask these CPUs nothing that an old one, or an old system,
//! would not answer by a trap; the auxiliary vector has been there as long as Linux has run on them. Where the file
//! cannot be opened, or the system does not know the call, nothing is known, and the code is let run. Invariants:
//! instructions of every CPU of the architecture; registers of arguments are as they were.

use super::Ending;

/// What `/proc/self/auxv` must say.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Needs {
    /// Bits of AT_HWCAP.
    pub(super) hwcap: u32,
    /// Bits of AT_HWCAP2.
    pub(super) hwcap2: u32,
    /// Bits of `RISCV_HWPROBE_KEY_IMA_EXT_0`.
    pub(super) hwprobe: u64,
    /// The least bytes of a vector register of RISC-V; vectors are among the bits then.
    pub(super) vector_bytes: u32,
}

const PATH: &[u8; 16] = b"/proc/self/auxv\0";
/// Types of entries (Linux' `include/uapi/linux/auxvec.h`); the last has type 0.
const AT_HWCAP: u32 = 16;
const AT_HWCAP2: u32 = 26;
/// An entry: two words.
const ENTRY_BYTES: u32 = 16;
/// Numbers of calls (Linux' `include/uapi/asm-generic/unistd.h`, which both architectures share).
const OPENAT: u32 = 56;
const CLOSE: u32 = 57;
const READ: u32 = 63;
/// RISC-V's alone (`Documentation/arch/riscv/hwprobe.rst`), and what it is asked.
const HWPROBE: u32 = 258;
const KEY_IMA_EXT_0: i32 = 4;
/// `openat`'s folder for a path from the root: `AT_FDCWD`, -100. Nothing looks at it.
const AT_FDCWD: i32 = -100;
/// `O_RDONLY | O_CLOEXEC`: its upper 20 bits.
const CLOEXEC_HIGH: u32 = 0x80;
/// Words on the stack: six arguments, an entry.
const FRAME_BYTES: u32 = 64;
const ENTRY_AT: u32 = 48;

/// Word, label, and what puts the distance in bytes into the word.
type Branch = (usize, usize, fn(i32) -> u32);

/// Code of 32-bit words with branches forward and back, to labels that are numbers.
#[derive(Default)]
struct Words {
    words: Vec<u32>,
    /// Where each label is.
    labels: Vec<Option<usize>>,
    branches: Vec<Branch>,
}

impl Words {
    fn label(&mut self) -> usize {
        self.labels.push(None);
        self.labels.len() - 1
    }

    fn place(&mut self, label: usize) {
        self.labels[label] = Some(self.words.len());
    }

    fn put(&mut self, word: u32) {
        self.words.push(word);
    }

    fn branch(&mut self, word: u32, to: usize, distance: fn(i32) -> u32) {
        self.branches.push((self.words.len(), to, distance));
        self.words.push(word);
    }

    fn finish(mut self) -> Vec<u8> {
        for (at, label, distance) in self.branches {
            let to = self.labels[label].unwrap_or_else(|| unreachable!("label {label} is placed"));
            self.words[at] |= distance((to as i32 - at as i32) * 4);
        }
        self.words.iter().flat_map(|word| word.to_le_bytes()).collect()
    }

    fn path(&mut self) {
        for word in PATH.as_chunks().0 {
            self.put(u32::from_le_bytes(*word));
        }
    }
}

/// A64 (Arm Architecture Reference Manual, DDI 0487, C6).
pub(super) mod aarch64 {
    use super::*;

    /// `b.cond`, `cbz` and `adr` of words: 19 bits.
    fn imm19(bytes: i32) -> u32 {
        (bytes as u32 >> 2 & 0x7_ffff) << 5
    }

    /// `tbnz`: 14 bits.
    fn imm14(bytes: i32) -> u32 {
        (bytes as u32 >> 2 & 0x3fff) << 5
    }

    /// `b`: 26 bits.
    fn imm26(bytes: i32) -> u32 {
        bytes as u32 >> 2 & 0x3ff_ffff
    }

    /// `movz xd, #value`
    fn movz(d: u32, value: u32) -> u32 {
        assert!(value < 1 << 16, "immediate {value}");
        0xd280_0000 | value << 5 | d
    }

    /// Assembles the guard. x9 to x13 are nobody's.
    pub(in super::super) fn assemble(needs: Needs, ending: Ending) -> Vec<u8> {
        let mut a = Words::default();
        let (enough, lacks, close, again, path, behind) =
            (a.label(), a.label(), a.label(), a.label(), a.label(), a.label());
        let system = |a: &mut Words, number| {
            a.put(movz(8, number));
            a.put(0xd400_0001); // svc #0
        };
        a.put(0xa9bc_07e0); // stp x0, x1, [sp, #-64]!
        a.put(0xa901_0fe2); // stp x2, x3, [sp, #16]
        a.put(0xa902_17e4); // stp x4, x5, [sp, #32]
        a.put(0x9280_0000 | (!AT_FDCWD as u32) << 5); // movn x0, #99
        a.branch(0x1000_0001, path, imm19); // adr x1, path
        a.put(0xd2a0_0002 | (CLOEXEC_HIGH >> 4) << 5); // movz x2, #8, lsl #16
        a.put(movz(3, 0));
        system(&mut a, OPENAT);
        a.branch(0xb7f8_0000, enough, imm14); // tbnz x0, #63, enough
        a.put(0xaa00_03e9); // mov x9, x0
        a.put(movz(10, 0));
        a.put(movz(11, 0));
        a.place(again);
        a.put(0xaa09_03e0); // mov x0, x9
        a.put(0x9100_03e1 | ENTRY_AT << 10); // add x1, sp, #48
        a.put(movz(2, ENTRY_BYTES));
        system(&mut a, READ);
        a.put(0xf100_001f | ENTRY_BYTES << 10); // cmp x0, #16
        a.branch(0x5400_0001, close, imm19); // b.ne close
        a.put(0xa943_37ec); // ldp x12, x13, [sp, #48]
        a.branch(0xb400_000c, close, imm19); // cbz x12, close
        a.put(0xf100_019f | AT_HWCAP << 10); // cmp x12, #16
        a.put(0x9a8a_01aa); // csel x10, x13, x10, eq
        a.put(0xf100_019f | AT_HWCAP2 << 10); // cmp x12, #26
        a.put(0x9a8b_01ab); // csel x11, x13, x11, eq
        a.branch(0x1400_0000, again, imm26); // b again
        a.place(close);
        a.put(0xaa09_03e0); // mov x0, x9
        system(&mut a, CLOSE);
        a.branch(0xb400_000a, enough, imm19); // cbz x10, enough
        for (bits, from) in [(needs.hwcap, 10), (needs.hwcap2, 11)] {
            a.put(movz(12, bits & 0xffff));
            a.put(0xf2a0_000c | (bits >> 16) << 5); // movk x12, #high, lsl #16
            a.put(0xea20_019f | from << 16); // bics xzr, x12, xfrom
            a.branch(0x5400_0001, lacks, imm19); // b.ne lacks
        }
        let leave = |a: &mut Words| {
            a.put(0xa942_17e4); // ldp x4, x5, [sp, #32]
            a.put(0xa941_0fe2); // ldp x2, x3, [sp, #16]
            a.put(0xa8c4_07e0); // ldp x0, x1, [sp], #64
        };
        const RET: u32 = 0xd65f_03c0;
        a.place(enough);
        leave(&mut a);
        match ending {
            Ending::Answer => {
                a.put(movz(0, 1));
                a.put(RET);
            }
            Ending::Continue(_) => a.branch(0x1400_0000, behind, imm26),
        }
        a.place(lacks);
        leave(&mut a);
        a.put(movz(0, ending.refusal()));
        a.put(RET);
        a.place(path);
        a.path();
        a.place(behind);
        a.finish()
    }
}

/// RV64I (The RISC-V Instruction Set Manual, volume 1).
pub(super) mod riscv64 {
    use super::*;

    const ZERO: u32 = 0;
    const SP: u32 = 2;
    const T0: u32 = 5;
    const T1: u32 = 6;
    const T2: u32 = 7;
    const A0: u32 = 10;
    const A1: u32 = 11;
    const A2: u32 = 12;
    const A3: u32 = 13;
    const A4: u32 = 14;
    const A7: u32 = 17;
    const T3: u32 = 28;
    const T4: u32 = 29;
    const T5: u32 = 30;
    const T6: u32 = 31;

    /// Branches on a condition.
    fn b_type(bytes: i32) -> u32 {
        let b = bytes as u32;
        (b >> 12 & 1) << 31 | (b >> 5 & 0x3f) << 25 | (b >> 1 & 0xf) << 8 | (b >> 11 & 1) << 7
    }

    /// `jal`.
    fn j_type(bytes: i32) -> u32 {
        let b = bytes as u32;
        (b >> 20 & 1) << 31 | (b >> 1 & 0x3ff) << 21 | (b >> 11 & 1) << 20 | (b >> 12 & 0xff) << 12
    }

    /// `addi` and `ld`, one word behind the `auipc` whose address they complete.
    fn low_of_previous(bytes: i32) -> u32 {
        let from_previous = bytes + 4;
        assert!((0..2048).contains(&from_previous), "it is {from_previous} bytes away");
        (from_previous as u32) << 20
    }

    /// `auipc rd, 0`
    fn auipc(d: u32) -> u32 {
        d << 7 | 0x17
    }

    /// `csrr rd, vlenb`: bytes of a vector register.
    fn vlenb(d: u32) -> u32 {
        0xc22 << 20 | 2 << 12 | d << 7 | 0x73
    }

    /// `addi rd, rs, value`; from x0, `li`.
    fn addi(d: u32, s: u32, value: i32) -> u32 {
        assert!((-2048..2048).contains(&value), "immediate {value}");
        (value as u32) << 20 | s << 15 | d << 7 | 0x13
    }

    /// `lui rd, high`
    fn lui(d: u32, high: u32) -> u32 {
        high << 12 | d << 7 | 0x37
    }

    /// `and rd, rs, rt`
    fn and(d: u32, s: u32, t: u32) -> u32 {
        t << 20 | s << 15 | 7 << 12 | d << 7 | 0x33
    }

    /// `ld rd, at(rs)`
    fn ld(d: u32, at: u32, s: u32) -> u32 {
        at << 20 | s << 15 | 3 << 12 | d << 7 | 0x03
    }

    /// `sd rs, at(sp)`
    fn sd(s: u32, at: u32) -> u32 {
        (at >> 5) << 25 | s << 20 | SP << 15 | 3 << 12 | (at & 31) << 7 | 0x23
    }

    /// `beq`
    fn beq(s: u32, t: u32) -> u32 {
        t << 20 | s << 15 | 0x63
    }

    /// `bne`
    fn bne(s: u32, t: u32) -> u32 {
        beq(s, t) | 1 << 12
    }

    /// `blt`
    fn blt(s: u32, t: u32) -> u32 {
        beq(s, t) | 4 << 12
    }

    /// `j`
    const J: u32 = 0x6f;
    const ECALL: u32 = 0x73;
    /// `jalr x0, 0(ra)`
    const RET: u32 = 0x8067;

    /// Assembles the guard. Temporaries are nobody's.
    pub(in super::super) fn assemble(needs: Needs, ending: Ending) -> Vec<u8> {
        let mut a = Words::default();
        let (enough, lacks, close, again, path, behind) =
            (a.label(), a.label(), a.label(), a.label(), a.label(), a.label());
        let (second, other, asked, bits) = (a.label(), a.label(), a.label(), a.label());
        let system = |a: &mut Words, number: u32| {
            a.put(addi(A7, ZERO, number as i32));
            a.put(ECALL);
        };
        a.put(addi(SP, SP, -(FRAME_BYTES as i32)));
        for argument in 0..6 {
            a.put(sd(A0 + argument, 8 * argument));
        }
        a.put(addi(A0, ZERO, AT_FDCWD));
        a.put(auipc(A1));
        a.branch(addi(A1, A1, 0), path, low_of_previous);
        a.put(lui(A2, CLOEXEC_HIGH));
        a.put(addi(A3, ZERO, 0));
        system(&mut a, OPENAT);
        a.branch(blt(A0, ZERO), asked, b_type);
        a.put(addi(T0, A0, 0));
        a.put(addi(T1, ZERO, 0));
        a.put(addi(T2, ZERO, 0));
        a.put(addi(T5, ZERO, AT_HWCAP as i32));
        a.put(addi(T6, ZERO, AT_HWCAP2 as i32));
        a.place(again);
        a.put(addi(A0, T0, 0));
        a.put(addi(A1, SP, ENTRY_AT as i32));
        a.put(addi(A2, ZERO, ENTRY_BYTES as i32));
        system(&mut a, READ);
        // What is read is as long as AT_HWCAP's number is high.
        const { assert!(ENTRY_BYTES == AT_HWCAP) };
        a.branch(bne(A0, T5), close, b_type);
        a.put(ld(T3, ENTRY_AT, SP));
        a.put(ld(T4, ENTRY_AT + 8, SP));
        a.branch(beq(T3, ZERO), close, b_type);
        a.branch(bne(T3, T5), second, b_type);
        a.put(addi(T1, T4, 0));
        a.place(second);
        a.branch(bne(T3, T6), other, b_type);
        a.put(addi(T2, T4, 0));
        a.place(other);
        a.branch(J, again, j_type);
        a.place(close);
        a.put(addi(A0, T0, 0));
        system(&mut a, CLOSE);
        a.branch(beq(T1, ZERO), asked, b_type);
        for (bits, from) in [(needs.hwcap, T1), (needs.hwcap2, T2)] {
            let low = (bits << 20) as i32 >> 20;
            a.put(lui(T3, bits.wrapping_sub(low as u32) >> 12));
            a.put(addi(T3, T3, low));
            a.put(and(T4, T3, from));
            a.branch(bne(T3, T4), lacks, b_type);
        }
        if needs.vector_bytes != 0 {
            a.put(vlenb(T3));
            a.put(addi(T4, ZERO, needs.vector_bytes as i32));
            a.branch(blt(T3, T4), lacks, b_type);
        }
        a.place(asked);
        if needs.hwprobe != 0 {
            a.put(addi(T3, ZERO, KEY_IMA_EXT_0));
            a.put(sd(T3, ENTRY_AT));
            a.put(addi(A0, SP, ENTRY_AT as i32));
            a.put(addi(A1, ZERO, 1));
            for argument in [A2, A3, A4] {
                a.put(addi(argument, ZERO, 0));
            }
            system(&mut a, HWPROBE);
            a.branch(bne(A0, ZERO), enough, b_type);
            a.put(auipc(T3));
            a.branch(ld(T3, 0, T3), bits, low_of_previous);
            a.put(ld(T4, ENTRY_AT + 8, SP));
            a.put(and(T4, T3, T4));
            a.branch(bne(T3, T4), lacks, b_type);
        }
        let leave = |a: &mut Words| {
            for argument in 0..6 {
                a.put(ld(A0 + argument, 8 * argument, SP));
            }
            a.put(addi(SP, SP, FRAME_BYTES as i32));
        };
        a.place(enough);
        leave(&mut a);
        match ending {
            Ending::Answer => {
                a.put(addi(A0, ZERO, 1));
                a.put(RET);
            }
            Ending::Continue(_) => a.branch(J, behind, j_type),
        }
        a.place(lacks);
        leave(&mut a);
        a.put(addi(A0, ZERO, ending.refusal() as i32));
        a.put(RET);
        if a.words.len() % 2 == 1 {
            a.put(addi(ZERO, ZERO, 0));
        }
        a.place(path);
        a.path();
        a.place(bits);
        a.put(needs.hwprobe as u32);
        a.put((needs.hwprobe >> 32) as u32);
        a.place(behind);
        a.finish()
    }
}
