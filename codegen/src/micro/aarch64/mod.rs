//! Microkernels for AArch64 as raw code: what Cranelift's 128-bit IR has no instruction for.

mod asm;
mod dot_int8;

pub(super) use dot_int8::dot_sdot;
