//! rope
use crate::emit::Emitter;
use crate::kernel::*;
pub(super) fn lower(_e: &mut Emitter<'_>, _k: &Kernel) {}
