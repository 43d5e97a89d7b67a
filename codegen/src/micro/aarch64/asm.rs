//! The few A64 instructions that microkernels need, as words.
//!
//! In: register numbers and immediates. Out: code. Encodings are those of the Arm Architecture Reference Manual (DDI
//! 0487), section C7 for vectors and C6 for the rest; each method has the assembler's spelling. Registers are numbers
//! 0..32: `x` registers for addresses and counts, `v` registers for vectors. Invariant: an immediate that does not fit
//! is a panic here, never another instruction.

/// Code being assembled.
#[derive(Default)]
pub(super) struct Assembler {
    words: Vec<u32>,
}

/// A place to branch back to.
#[derive(Clone, Copy)]
pub(super) struct Label(usize);

/// A branch to a place further on: see [`Assembler::land`].
#[must_use]
pub(super) struct Forward(usize);

/// A register's number, where an encoding has it.
fn at(register: u32, bit: u32) -> u32 {
    assert!(register < 32, "register {register}");
    register << bit
}

/// A 9-bit signed immediate.
fn imm9(value: i32) -> u32 {
    assert!((-256..256).contains(&value), "immediate {value}");
    (value as u32 & 0x1ff) << 12
}

/// An offset: of 9 bits, signed, where that is enough, for some CPUs take longer for the other (`word` but for a bit):
/// 12 bits, unsigned, that count elements of `size` bytes.
fn offset(word: u32, bytes: i32, size: i32) -> u32 {
    if (-256..256).contains(&bytes) {
        return word & !(1 << 24) | imm9(bytes);
    }
    assert!(bytes % size == 0 && (0..1 << 12).contains(&(bytes / size)), "offset {bytes} of {size}");
    word | ((bytes / size) as u32) << 10
}

/// A 7-bit signed offset of a pair of registers of `size` bytes.
fn pair_offset(bytes: i32, size: i32) -> u32 {
    assert!(bytes % size == 0 && (-64..64).contains(&(bytes / size)), "offset {bytes} of {size}");
    ((bytes / size) as u32 & 0x7f) << 15
}

/// Methods of a destination and two sources.
macro_rules! of_two_sources {
    ($($(#[$doc:meta])* $name:ident = $word:literal;)*) => {
        impl Assembler {
            $($(#[$doc])*
            pub(super) fn $name(&mut self, d: u32, n: u32, m: u32) {
                self.put($word | at(m, 16) | at(n, 5) | at(d, 0));
            })*
        }
    };
}

/// Methods of a destination and a source.
macro_rules! of_one_source {
    ($($(#[$doc:meta])* $name:ident = $word:literal;)*) => {
        impl Assembler {
            $($(#[$doc])*
            pub(super) fn $name(&mut self, d: u32, n: u32) {
                self.put($word | at(n, 5) | at(d, 0));
            })*
        }
    };
}

/// Methods of a destination, a source, and one of four elements of another.
macro_rules! of_an_element {
    ($($(#[$doc:meta])* $name:ident = $word:literal;)*) => {
        impl Assembler {
            $($(#[$doc])*
            pub(super) fn $name(&mut self, d: u32, n: u32, (m, element): (u32, u32)) {
                assert!(element < 4, "element {element}");
                self.put($word | (element & 1) << 21 | (element >> 1) << 11 | at(m, 16) | at(n, 5) | at(d, 0));
            })*
        }
    };
}

/// Methods of a register in memory, an address and an offset.
macro_rules! of_an_offset {
    ($($(#[$doc:meta])* $name:ident = $word:literal, $size:literal;)*) => {
        impl Assembler {
            $($(#[$doc])*
            pub(super) fn $name(&mut self, t: u32, n: u32, bytes: i32) {
                self.put(offset($word, bytes, $size) | at(n, 5) | at(t, 0));
            })*
        }
    };
}

of_two_sources! {
    /// `and vd.16b, vn.16b, vm.16b`
    and = 0x4e20_1c00;
    /// `sub vd.16b, vn.16b, vm.16b`
    sub_bytes = 0x6e20_8400;
    /// `add vd.4s, vn.4s, vm.4s`
    add_words = 0x4ea0_8400;
    /// `addp vd.4s, vn.4s, vm.4s`
    add_pairs = 0x4ea0_bc00;
    /// `sdot vd.4s, vn.16b, vm.16b` (FEAT_DotProd)
    sdot = 0x4e80_9400;
    /// `smmla vd.4s, vn.16b, vm.16b` (FEAT_I8MM)
    smmla = 0x4e80_a400;
    /// `bfmmla vd.4s, vn.8h, vm.8h` (FEAT_BF16)
    bfmmla = 0x6e40_ec00;
    /// `smull vd.8h, vn.8b, vm.8b`
    multiply_bytes = 0x0e20_c000;
    /// `smlal vd.8h, vn.8b, vm.8b`
    multiply_add_bytes = 0x0e20_8000;
    /// `smlal2 vd.8h, vn.16b, vm.16b`
    multiply_add_upper_bytes = 0x4e20_8000;
    /// `fmul vd.4s, vn.4s, vm.4s`
    multiply = 0x6e20_dc00;
    /// `fmla vd.4s, vn.4s, vm.4s`
    multiply_add = 0x4e20_cc00;
    /// `fadd vd.4s, vn.4s, vm.4s`
    add_floats = 0x4e20_d400;
    /// `fsub vd.4s, vn.4s, vm.4s`
    subtract_floats = 0x4ea0_d400;
    /// `faddp vd.4s, vn.4s, vm.4s`
    add_float_pairs = 0x6e20_d400;
    /// `zip2 vd.8h, vn.8h, vm.8h`
    zip_upper_halves = 0x4e40_7800;
    /// `zip1 vd.4s, vn.4s, vm.4s`
    zip_lower_words = 0x4e80_3800;
    /// `zip2 vd.4s, vn.4s, vm.4s`
    zip_upper_words = 0x4e80_7800;
    /// `zip1 vd.2d, vn.2d, vm.2d`
    zip_lower = 0x4ec0_3800;
    /// `zip2 vd.2d, vn.2d, vm.2d`
    zip_upper = 0x4ec0_7800;
    /// `ldr dd, [xn, xm]`
    load_d_at = 0xfc60_6800;
}

of_one_source! {
    /// `ushr vd.16b, vn.16b, #4`
    high_nibbles = 0x6f0c_0400;
    /// `scvtf vd.4s, vn.4s`
    convert_to_float = 0x4e21_d800;
    /// `shll vd.4s, vn.4h, #16`: bf16 to f32.
    widen_bf16 = 0x2e61_3800;
    /// `fcvtl vd.4s, vn.4h`: f16 to f32.
    widen_f16 = 0x0e21_7800;
    /// `fcvtl2 vd.4s, vn.8h`
    widen_upper_f16 = 0x4e21_7800;
    /// `sxtl vd.8h, vn.8b`
    widen_bytes = 0x0f08_a400;
    /// `sxtl vd.4s, vn.4h`
    widen_halves = 0x0f10_a400;
    /// `sxtl2 vd.4s, vn.8h`
    widen_upper_halves = 0x4f10_a400;
    /// `saddlp vd.4s, vn.8h`
    pair_halves = 0x4e60_2800;
    /// `sadalp vd.4s, vn.8h`
    add_pair_halves = 0x4e60_6800;
    /// `dup vd.4s, vn.s[0]`
    splat_word = 0x4e04_0400;
    /// `dup vd.2d, vn.d[0]`
    splat_double = 0x4e08_0400;
    /// `dup vd.2d, vn.d[1]`
    splat_upper_double = 0x4e18_0400;
    /// `dup vd.4s, wn`
    splat = 0x4e04_0c00;
    /// `fmov sd, wn`: the other lanes are 0.
    first_lane = 0x1e27_0000;
    /// `ld1 {vd.h}[2], [xn]`
    load_third_half = 0x0d40_5000;
    /// `ld1 {vd.s}[2], [xn]`
    load_third_word = 0x4d40_8000;
}

of_an_element! {
    /// `sdot vd.4s, vn.16b, vm.4b[element]` (FEAT_DotProd)
    sdot_element = 0x4f80_e000;
    /// `fmla vd.4s, vn.4s, vm.s[element]`
    multiply_add_element = 0x4f80_1000;
    /// `fmul vd.4s, vn.4s, vm.s[element]`
    multiply_element = 0x4f80_9000;
}

of_an_offset! {
    /// `ldr qt, [xn, #bytes]`
    load_q = 0x3dc0_0000, 16;
    /// `ldr dt, [xn, #bytes]`
    load_d = 0xfd40_0000, 8;
    /// `ldr st, [xn, #bytes]`
    load_s = 0xbd40_0000, 4;
    /// `ldr ht, [xn, #bytes]`
    load_h = 0x7d40_0000, 2;
    /// `str qt, [xn, #bytes]`
    store_q = 0x3d80_0000, 16;
    /// `str dt, [xn, #bytes]`
    store_d = 0xfd00_0000, 8;
    /// `str st, [xn, #bytes]`
    store_s = 0xbd00_0000, 4;
}

impl Assembler {
    fn put(&mut self, word: u32) {
        self.words.push(word);
    }

    /// The code, little-endian.
    pub(super) fn finish(self) -> Vec<u8> {
        self.words.iter().flat_map(|w| w.to_le_bytes()).collect()
    }

    // ---- addresses and counts ----

    /// `mov xd, #value`, in one instruction or two.
    pub(super) fn mov(&mut self, d: u32, value: u32) {
        self.put(0xd280_0000 | (value & 0xffff) << 5 | at(d, 0)); // movz
        if value > 0xffff {
            self.put(0xf2a0_0000 | (value >> 16) << 5 | at(d, 0)); // movk, lsl #16
        }
    }

    /// `add xd, xn, #value`, in as many instructions as it takes; clobbers nothing else.
    pub(super) fn step(&mut self, d: u32, n: u32, value: i32) {
        assert!((0..1 << 24).contains(&value), "immediate {value}");
        let (low, high) = (value as u32 & 0xfff, value as u32 >> 12);
        let mut n = n;
        if high > 0 {
            self.put(0x9140_0000 | high << 10 | at(n, 5) | at(d, 0)); // lsl #12
            n = d;
        }
        if low > 0 || n != d {
            self.put(0x9100_0000 | low << 10 | at(n, 5) | at(d, 0));
        }
    }

    /// `subs xd, xn, #value`
    pub(super) fn subs(&mut self, d: u32, n: u32, value: u32) {
        assert!(value < 1 << 12, "immediate {value}");
        self.put(0xf100_0000 | value << 10 | at(n, 5) | at(d, 0));
    }

    /// `adds xd, xn, #value`
    pub(super) fn adds(&mut self, d: u32, n: u32, value: u32) {
        assert!(value < 1 << 12, "immediate {value}");
        self.put(0xb100_0000 | value << 10 | at(n, 5) | at(d, 0));
    }

    /// Here.
    pub(super) fn label(&self) -> Label {
        Label(self.words.len())
    }

    fn branch_back(&mut self, to: Label, condition: u32) {
        let back = (self.words.len() - to.0) as u32;
        assert!(back < 1 << 18, "a branch over {back} instructions");
        self.put(0x5400_0000 | (back.wrapping_neg() & 0x7ffff) << 5 | condition);
    }

    /// `b.ne label`
    pub(super) fn branch_if_not_equal(&mut self, to: Label) {
        self.branch_back(to, 1);
    }

    /// `b.ge label`
    pub(super) fn branch_if_not_less(&mut self, to: Label) {
        self.branch_back(to, 10);
    }

    fn branch_on(&mut self, word: u32) -> Forward {
        self.put(word);
        Forward(self.words.len() - 1)
    }

    /// `b.lt`, to where it lands.
    pub(super) fn forward_if_less(&mut self) -> Forward {
        self.branch_on(0x5400_000b)
    }

    /// `cbz xt`, to where it lands.
    pub(super) fn forward_if_zero(&mut self, t: u32) -> Forward {
        self.branch_on(0xb400_0000 | at(t, 0))
    }

    /// Has a branch land here.
    pub(super) fn land(&mut self, Forward(from): Forward) {
        let over = (self.words.len() - from) as u32;
        assert!(over < 1 << 18, "a branch over {over} instructions");
        self.words[from] |= over << 5;
    }

    /// `ret`
    pub(super) fn ret(&mut self) {
        self.put(0xd65f_03c0);
    }

    // ---- memory ----

    /// `ldr st, [xn], #4`
    pub(super) fn load_s_after(&mut self, t: u32, n: u32) {
        self.put(0xbc40_0400 | imm9(4) | at(n, 5) | at(t, 0));
    }

    /// Keeps the caller's vectors v8 to v15 on the stack.
    pub(super) fn keep(&mut self) {
        const SP: u32 = 31;
        self.put(0x6d80_0000 | pair_offset(-64, 8) | at(9, 10) | at(SP, 5) | at(8, 0)); // stp, [sp, #-64]!
        for d in [10, 12, 14] {
            self.put(0x6d00_0000 | pair_offset((d as i32 - 8) * 8, 8) | at(d + 1, 10) | at(SP, 5) | at(d, 0));
        }
    }

    /// Gives them back.
    pub(super) fn give_back(&mut self) {
        const SP: u32 = 31;
        for d in [10, 12, 14] {
            self.put(0x6d40_0000 | pair_offset((d as i32 - 8) * 8, 8) | at(d + 1, 10) | at(SP, 5) | at(d, 0));
        }
        self.put(0x6cc0_0000 | pair_offset(64, 8) | at(9, 10) | at(SP, 5) | at(8, 0)); // ldp, [sp], #64
    }

    // ---- vectors ----

    /// `movi vd.4s, #0`
    pub(super) fn zero(&mut self, d: u32) {
        self.put(0x4f00_0400 | at(d, 0));
    }

    /// `movi vd.16b, #value`
    pub(super) fn splat_bytes(&mut self, d: u32, value: u8) {
        let value = u32::from(value);
        self.put(0x4f00_e400 | (value >> 5) << 16 | (value & 31) << 5 | at(d, 0));
    }

    /// `mov vd.16b, vn.16b`
    pub(super) fn copy(&mut self, d: u32, n: u32) {
        self.put(0x4ea0_1c00 | at(n, 16) | at(n, 5) | at(d, 0));
    }

    /// `faddp vd.4s, vn.4s, vn.4s`, then `faddp sd, vd.2s`: the four lanes' sum.
    pub(super) fn sum_lanes(&mut self, d: u32, n: u32) {
        self.add_float_pairs(d, n, n);
        self.put(0x7e30_d800 | at(d, 5) | at(d, 0));
    }
}
