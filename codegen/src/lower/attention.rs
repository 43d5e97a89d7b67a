//! attention
use crate::emit::Emitter;
use crate::kernel::*;
pub(super) fn lower(_e: &mut Emitter<'_>, _k: &Kernel, _scale: f32, _cap: Option<f32>, _window: Option<usize>, _maximum: Maximum) {}
