//! An OpenAI-compatible server around one engine, which steps everything that is asked of it together.
//!
//! In: what loads a model ([`Served`]), and [`Options`]. Out: answers over HTTP, until a signal asks for the end. One
//! thread has the engine (`scheduler`); another one has the connections (`http`), which never waits for the engine.
//! A request's tokens and log-probabilities are a function of the request, whoever else is served.
//!
//! | module | what it knows |
//! |---|---|
//! | `http` | connections, endpoints, streams |
//! | `wire` | requests and answers as JSON |
//! | `parameters`, `prompt` | requests to parameters and to tokens |
//! | `scheduler` | who is stepped when; kept prefixes; slots |
//! | `guide` | constrained answers |
//! | `metrics`, `log` | what is told of it |

mod error;
mod guide;
mod http;
mod keys;
mod log;
mod memory;
mod metrics;
mod model;
mod options;
mod parameters;
mod pieces;
mod prompt;
mod scheduler;
mod server;
mod tools;
mod wire;

pub use error::Error;
pub use model::{Served, Text};
pub use options::Options;
pub use server::{Load, serve};
