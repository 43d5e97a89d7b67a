//! General registers and flags: moves, address sums, counters and jumps.

use iced_x86::{Instruction, Mnemonic, OpKind, Register};

use super::{Cpu, Fault, Next};

/// The flags that jumps look at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Flags {
    pub(super) carry: bool,
    pub(super) zero: bool,
    pub(super) sign: bool,
    pub(super) overflow: bool,
}

impl Flags {
    pub(super) const NONE: Flags = Flags { carry: false, zero: false, sign: false, overflow: false };
}

/// A general register's number.
pub(super) fn number(register: Register) -> usize {
    let first = if register.is_gpr32() { Register::EAX } else { Register::RAX };
    register as usize - first as usize
}

/// The low bits that a register or operand has.
fn low(value: u64, bytes: usize) -> u64 {
    if bytes == 8 { value } else { value & ((1 << (8 * bytes)) - 1) }
}

fn is_negative(value: u64, bytes: usize) -> bool {
    value >> (8 * bytes - 1) & 1 == 1
}

impl Cpu {
    /// Bytes of an operand; none of what is no general register of 4 or 8 bytes, memory or constant.
    fn scalar_bytes(i: &Instruction, operand: u32) -> Option<usize> {
        match i.op_kind(operand) {
            OpKind::Register => {
                let register = i.op_register(operand);
                match register {
                    r if r.is_gpr64() => Some(8),
                    r if r.is_gpr32() => Some(4),
                    _ => None,
                }
            }
            OpKind::Memory => Some(i.memory_size().size()),
            _ => Some(8),
        }
    }

    /// An operand's value, extended by zeros; constants as the instruction extends them.
    fn scalar(&self, i: &Instruction, operand: u32) -> Result<u64, Fault> {
        let bytes = Self::scalar_bytes(i, operand).ok_or(Fault::Unknown(*i))?;
        match i.op_kind(operand) {
            OpKind::Register => Ok(low(self.general[number(i.op_register(operand))], bytes)),
            OpKind::Memory => {
                let mut word = [0; 8];
                let into = word.get_mut(..bytes).ok_or(Fault::Unknown(*i))?;
                self.read(i, self.address(i), into)?;
                Ok(u64::from_le_bytes(word))
            }
            _ => i.try_immediate(operand).map_err(|_| Fault::Unknown(*i)),
        }
    }

    /// Sets the first operand; a register of 4 bytes is extended by zeros.
    fn set_scalar(&mut self, i: &Instruction, value: u64) -> Result<(), Fault> {
        let bytes = Self::scalar_bytes(i, 0).ok_or(Fault::Unknown(*i))?;
        match i.op_kind(0) {
            OpKind::Memory => {
                let word = value.to_le_bytes();
                self.write(i, self.address(i), word.get(..bytes).ok_or(Fault::Unknown(*i))?)
            }
            _ => {
                self.general[number(i.op_register(0))] = low(value, bytes);
                Ok(())
            }
        }
    }

    /// The low dword or quadword of a general register or memory, for a vector instruction.
    pub(super) fn scalar_source(&self, i: &Instruction, operand: u32) -> Result<u64, Fault> {
        self.scalar(i, operand)
    }

    /// Zero and sign of a result.
    fn look_at(&mut self, value: u64, bytes: usize) {
        self.flags.zero = value == 0;
        self.flags.sign = is_negative(value, bytes);
    }

    /// A sum or difference of the first two operands, its flags set; carry apart where `counts`.
    fn sum(
        &mut self,
        i: &Instruction,
        (a, b): (u64, u64),
        subtract: bool,
        counts: bool,
    ) -> Result<u64, Fault> {
        let bytes = Self::scalar_bytes(i, 0).ok_or(Fault::Unknown(*i))?;
        let b = low(b, bytes);
        let value = low(if subtract { a.wrapping_sub(b) } else { a.wrapping_add(b) }, bytes);
        let [na, nb, nv] = [a, b, value].map(|v| is_negative(v, bytes));
        self.look_at(value, bytes);
        self.flags.overflow = if subtract { na != nb && nv != na } else { na == nb && nv != na };
        if !counts {
            self.flags.carry = if subtract { a < b } else { value < a };
        }
        Ok(value)
    }

    /// One instruction on general registers; none if it is no such.
    pub(super) fn scalar_step(&mut self, i: &Instruction) -> Result<Option<Next>, Fault> {
        use Mnemonic as M;
        let Flags { carry, zero, sign, overflow } = self.flags;
        let jump = match i.mnemonic() {
            M::Jmp => Some(true),
            M::Je => Some(zero),
            M::Jne => Some(!zero),
            M::Jl => Some(sign != overflow),
            M::Jge => Some(sign == overflow),
            M::Jle => Some(zero || sign != overflow),
            M::Jg => Some(!zero && sign == overflow),
            M::Jb => Some(carry),
            M::Jae => Some(!carry),
            M::Jbe => Some(carry || zero),
            M::Ja => Some(!carry && !zero),
            M::Js => Some(sign),
            M::Jns => Some(!sign),
            _ => None,
        };
        if i.mnemonic() == M::Jmp && i.op_kind(0) == OpKind::Register {
            return Ok(Some(Next::Jump(self.scalar(i, 0)?)));
        }
        if let Some(taken) = jump {
            if !matches!(i.op_kind(0), OpKind::NearBranch64) {
                return Err(Fault::Unknown(*i));
            }
            return Ok(Some(if taken { Next::Jump(i.near_branch_target()) } else { Next::Here }));
        }
        match i.mnemonic() {
            M::Ret => return Ok(Some(Next::Return)),
            M::Nop | M::Endbr64 | M::Prefetcht0 | M::Prefetcht1 | M::Prefetcht2 | M::Prefetchnta => {}
            M::Mov | M::Movzx => {
                let value = self.scalar(i, 1)?;
                self.set_scalar(i, value)?;
            }
            M::Lea => self.set_scalar(i, self.address(i))?,
            M::Xchg if i.op_kind(1) == OpKind::Register => {
                let (a, b) = (self.scalar(i, 0)?, self.scalar(i, 1)?);
                self.set_scalar(i, b)?;
                self.general[number(i.op_register(1))] = a;
            }
            M::Push if i.op_kind(0) == OpKind::Register => {
                let (value, top) = (self.scalar(i, 0)?, self.general[number(Register::RSP)].wrapping_sub(8));
                self.write(i, top, &value.to_le_bytes())?;
                self.general[number(Register::RSP)] = top;
            }
            M::Pop if i.op_kind(0) == OpKind::Register => {
                let (mut word, top) = ([0; 8], self.general[number(Register::RSP)]);
                self.read(i, top, &mut word)?;
                self.general[number(Register::RSP)] = top.wrapping_add(8);
                self.set_scalar(i, u64::from_le_bytes(word))?;
            }
            M::Add | M::Sub | M::Cmp | M::Inc | M::Dec => {
                let counts = matches!(i.mnemonic(), M::Inc | M::Dec);
                let subtract = matches!(i.mnemonic(), M::Sub | M::Cmp | M::Dec);
                let b = if counts { 1 } else { self.scalar(i, 1)? };
                let value = self.sum(i, (self.scalar(i, 0)?, b), subtract, counts)?;
                if i.mnemonic() != M::Cmp {
                    self.set_scalar(i, value)?;
                }
            }
            // Its flags are not looked at by any code.
            M::Imul if i.op_count() == 3 => {
                let product = self.scalar(i, 1)?.wrapping_mul(self.scalar(i, 2)?);
                self.set_scalar(i, product)?;
            }
            M::Test | M::And | M::Or | M::Xor => {
                let bytes = Self::scalar_bytes(i, 0).ok_or(Fault::Unknown(*i))?;
                let (a, b) = (self.scalar(i, 0)?, self.scalar(i, 1)?);
                let value = low(
                    match i.mnemonic() {
                        M::Or => a | b,
                        M::Xor => a ^ b,
                        _ => a & b,
                    },
                    bytes,
                );
                self.flags = Flags::NONE;
                self.look_at(value, bytes);
                if i.mnemonic() != M::Test {
                    self.set_scalar(i, value)?;
                }
            }
            M::Shl | M::Shr => {
                let bytes = Self::scalar_bytes(i, 0).ok_or(Fault::Unknown(*i))?;
                let (value, count) = (self.scalar(i, 0)?, self.scalar(i, 1)? as u32 % (8 * bytes as u32));
                if count > 0 {
                    let left = i.mnemonic() == M::Shl;
                    let shifted = low(if left { value << count } else { value >> count }, bytes);
                    let last = if left { 8 * bytes as u32 - count } else { count - 1 };
                    self.look_at(shifted, bytes);
                    self.flags.carry = value >> last & 1 == 1;
                    // Defined of shifts by 1 alone.
                    let top = is_negative(shifted, bytes);
                    self.flags.overflow =
                        if left { top != self.flags.carry } else { is_negative(value, bytes) };
                    self.set_scalar(i, shifted)?;
                }
            }
            M::Kunpckdq => {
                let low = |operand| self.masks[mask(i.op_register(operand))] & u64::from(u32::MAX);
                self.masks[mask(i.op_register(0))] = low(1) << 32 | low(2);
            }
            M::Kmovb | M::Kmovw | M::Kmovd | M::Kmovq if i.op_register(0).is_k() => {
                let bytes = match i.mnemonic() {
                    M::Kmovb => 1,
                    M::Kmovw => 2,
                    M::Kmovd => 4,
                    _ => 8,
                };
                let value = match i.op_kind(1) {
                    OpKind::Register if i.op_register(1).is_k() => self.masks[mask(i.op_register(1))],
                    _ => self.scalar(i, 1)?,
                };
                self.masks[mask(i.op_register(0))] = low(value, bytes);
            }
            _ => return Ok(None),
        }
        Ok(Some(Next::Here))
    }
}

/// A mask register's number.
pub(super) fn mask(register: Register) -> usize {
    register as usize - Register::K0 as usize
}
