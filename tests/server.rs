//! `lapidary serve` on the built-in model, over loopback: the wire, replay under load, kept prefixes, constrained
//! answers, slots, hostile requests, other people's clients, the page in a browser.
//!
//! `LAPIDARY_SOAK_SECONDS=N` lets the soak take so long; what needs tools fails without them where
//! `LAPIDARY_REQUIRE_TOOLS` is set.

#![allow(clippy::unwrap_used)]

#[path = "server/answers.rs"]
mod answers;
#[path = "report/browser.rs"]
#[allow(dead_code)]
mod browser;
#[path = "server/calls.rs"]
mod calls;
#[path = "server/client.rs"]
mod client;
#[path = "server/clients.rs"]
mod clients;
#[path = "server/constrained.rs"]
mod constrained;
#[path = "server/guesses.rs"]
mod guesses;
#[path = "server/hostile.rs"]
mod hostile;
#[path = "server/operations.rs"]
mod operations;
#[path = "server/page.rs"]
mod page;
#[path = "server/prefixes.rs"]
mod prefixes;
#[path = "server/process.rs"]
mod process;
#[path = "server/replay.rs"]
mod replay;
#[path = "server/soak.rs"]
mod soak;
#[allow(dead_code)]
#[path = "object/toolchain.rs"]
mod toolchain;
#[path = "server/wire.rs"]
mod wire;
