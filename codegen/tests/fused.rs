//! Kernels as machine code against plain loops in f64.
//!
//! Every run is made twice, whole and with its tiles split at random over calls, each call with its own scratch full of
//! NaN: the bytes must agree. Operands lie on no better boundary than their elements', their padding is NaN, outputs
//! lie between guard bytes.

#![allow(clippy::unwrap_used)]

#[path = "fused/append.rs"]
mod append;
#[path = "fused/attention.rs"]
mod attention;
#[path = "fused/elementwise.rs"]
mod elementwise;
#[path = "fused/gather.rs"]
mod gather;
#[path = "fused/harness.rs"]
mod harness;
#[path = "fused/linear.rs"]
mod linear;
#[path = "fused/linear_apart.rs"]
mod linear_apart;
#[path = "fused/map.rs"]
mod map;
#[path = "fused/matmul.rs"]
mod matmul;
#[path = "fused/micro.rs"]
mod micro;
#[path = "fused/norm.rs"]
mod norm;
#[path = "fused/reduce.rs"]
mod reduce;
#[path = "fused/rope.rs"]
mod rope;
#[path = "fused/slots.rs"]
mod slots;
#[path = "fused/softmax.rs"]
mod softmax;
