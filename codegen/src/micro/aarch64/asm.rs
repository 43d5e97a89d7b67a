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

impl Assembler {
    fn put(&mut self, word: u32) {
        self.words.push(word);
    }

    /// The code, little-endian.
    pub(super) fn finish(self) -> Vec<u8> {
        self.words.iter().flat_map(|w| w.to_le_bytes()).collect()
    }

    // ---- addresses and counts ----

    /// `mov xd, #value`, in two instructions.
    pub(super) fn mov(&mut self, d: u32, value: u32) {
        self.put(0xd280_0000 | (value & 0xffff) << 5 | at(d, 0)); // movz
        self.put(0xf2a0_0000 | (value >> 16) << 5 | at(d, 0)); // movk, lsl #16
    }

    /// `add xd, xn, xm`
    pub(super) fn add(&mut self, d: u32, n: u32, m: u32) {
        self.put(0x8b00_0000 | at(m, 16) | at(n, 5) | at(d, 0));
    }

    /// `subs xd, xn, #value`
    pub(super) fn subs(&mut self, d: u32, n: u32, value: u32) {
        assert!(value < 1 << 12, "immediate {value}");
        self.put(0xf100_0000 | value << 10 | at(n, 5) | at(d, 0));
    }

    /// Here.
    pub(super) fn label(&self) -> Label {
        Label(self.words.len())
    }

    /// `b.ne label`
    pub(super) fn branch_if_not_equal(&mut self, to: Label) {
        let back = (self.words.len() - to.0) as u32;
        assert!(back < 1 << 18, "a branch over {back} instructions");
        self.put(0x5400_0001 | (back.wrapping_neg() & 0x7ffff) << 5);
    }

    /// `ret`
    pub(super) fn ret(&mut self) {
        self.put(0xd65f_03c0);
    }

    // ---- memory ----

    /// `ldp qt, qu, [xn], #32`
    pub(super) fn load_pair(&mut self, t: u32, u: u32, n: u32) {
        self.put(0xacc0_0000 | 2 << 15 | at(u, 10) | at(n, 5) | at(t, 0));
    }

    /// `ldr qt, [xn], #16`
    pub(super) fn load_q(&mut self, t: u32, n: u32) {
        self.put(0x3cc0_0400 | imm9(16) | at(n, 5) | at(t, 0));
    }

    /// `ldr st, [xn], #4`
    pub(super) fn load_s(&mut self, t: u32, n: u32) {
        self.put(0xbc40_0400 | imm9(4) | at(n, 5) | at(t, 0));
    }

    /// `ldr ht, [xn], #2`
    pub(super) fn load_h(&mut self, t: u32, n: u32) {
        self.put(0x7c40_0400 | imm9(2) | at(n, 5) | at(t, 0));
    }

    /// `str st, [xn, #bytes]`
    pub(super) fn store_s(&mut self, t: u32, n: u32, bytes: u32) {
        assert!(bytes.is_multiple_of(4) && bytes / 4 < 1 << 12, "offset {bytes}");
        self.put(0xbd00_0000 | (bytes / 4) << 10 | at(n, 5) | at(t, 0));
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

    /// `and vd.16b, vn.16b, vm.16b`
    pub(super) fn and(&mut self, d: u32, n: u32, m: u32) {
        self.put(0x4e20_1c00 | at(m, 16) | at(n, 5) | at(d, 0));
    }

    /// `ushr vd.16b, vn.16b, #4`
    pub(super) fn high_nibbles(&mut self, d: u32, n: u32) {
        self.put(0x6f00_0400 | (16 - 4) << 16 | at(n, 5) | at(d, 0));
    }

    /// `sub vd.16b, vn.16b, vm.16b`
    pub(super) fn sub_bytes(&mut self, d: u32, n: u32, m: u32) {
        self.put(0x6e20_8400 | at(m, 16) | at(n, 5) | at(d, 0));
    }

    /// `sdot vd.4s, vn.16b, vm.16b` (FEAT_DotProd)
    pub(super) fn sdot(&mut self, d: u32, n: u32, m: u32) {
        self.put(0x4e80_9400 | at(m, 16) | at(n, 5) | at(d, 0));
    }

    /// `scvtf vd.4s, vn.4s`
    pub(super) fn convert_to_float(&mut self, d: u32, n: u32) {
        self.put(0x4e21_d800 | at(n, 5) | at(d, 0));
    }

    /// `shll vd.4s, vn.4h, #16`: bf16 to f32.
    pub(super) fn widen_bf16(&mut self, d: u32, n: u32) {
        self.put(0x2e61_3800 | at(n, 5) | at(d, 0));
    }

    /// `fmul sd, sn, sm`
    pub(super) fn multiply_s(&mut self, d: u32, n: u32, m: u32) {
        self.put(0x1e20_0800 | at(m, 16) | at(n, 5) | at(d, 0));
    }

    /// `fmla vd.4s, vn.4s, vm.s[0]`
    pub(super) fn multiply_add(&mut self, d: u32, n: u32, m: u32) {
        self.put(0x4f80_1000 | at(m, 16) | at(n, 5) | at(d, 0));
    }

    /// `faddp vd.4s, vn.4s, vn.4s`, then `faddp sd, vd.2s`: the four lanes' sum.
    pub(super) fn sum_lanes(&mut self, d: u32, n: u32) {
        self.put(0x6e20_d400 | at(n, 16) | at(n, 5) | at(d, 0));
        self.put(0x7e30_d800 | at(d, 5) | at(d, 0));
    }
}
