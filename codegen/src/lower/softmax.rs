//! softmax
use crate::emit::Emitter;
use crate::kernel::*;
pub(super) fn lower_mask(_e: &mut Emitter<'_>, _k: &Kernel, _window: Option<usize>) {}
pub(super) fn lower(_e: &mut Emitter<'_>, _k: &Kernel, _ranged: bool, _window: Option<usize>, _maximum: Maximum) {}
