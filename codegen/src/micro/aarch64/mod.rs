//! Microkernels for AArch64 as raw code: what Cranelift's 128-bit IR has no instruction for, and loops that keep more
//! in registers than it does.

mod asm;
mod attention;
mod dot;
mod dot_int8;
mod float;
mod tile;
mod tile_bf16;
mod tile_int8;

pub(super) use attention::{COLUMNS, mix, scores};
pub(super) use dot::dot_f32;
pub(super) use dot_int8::{dot_sdot, dot_smull};
pub(super) use tile::tile_f32;
pub(super) use tile_bf16::tile_bfmmla;
pub(super) use tile_int8::{hold_pairs, hold_signed, tile_sdot, tile_smmla};
