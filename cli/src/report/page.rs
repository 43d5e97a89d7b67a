//! The page: markup, style and scripts of `page/`, with the data inside.
//!
//! The data is JSON, deflated and in base64; the browser's own `DecompressionStream` opens it. Listings and rewrites
//! come apart from the rest, for they are most of it and the page can be drawn without them.

use std::io::Write;

use anyhow::Result;
use flate2::Compression;
use flate2::write::ZlibEncoder;
use serde_json::{Value, json};

/// What the page shows.
pub(crate) struct Data {
    /// The model's name.
    pub(crate) title: String,
    /// All but listings.
    pub(crate) all: Value,
    /// CLIF and disassembly, by index.
    pub(crate) listings: Vec<String>,
    /// How kernels came about, by index.
    pub(crate) proofs: Vec<Value>,
}

const MARKUP: &str = include_str!("page/page.html");
const STYLE: &str = include_str!("page/style.css");
/// In the order in which they run.
const SCRIPTS: [&str; 7] = [
    include_str!("page/dom.js"),
    include_str!("page/layout.js"),
    include_str!("page/graph.js"),
    include_str!("page/charts.js"),
    include_str!("page/rewrites.js"),
    include_str!("page/panel.js"),
    include_str!("page/main.js"),
];

/// The page as text.
pub(crate) fn html(data: &Data) -> Result<String> {
    let title = data.title.replace('&', "&amp;").replace('<', "&lt;");
    let mut out = MARKUP.to_string();
    // Base64 and JSON strings hold no `</script`: nothing in the data can end the element that it stands in.
    for (mark, text) in [
        ("/*style*/", STYLE.to_string()),
        ("/*scripts*/", SCRIPTS.concat()),
        ("<!--title-->", title),
        ("<!--data-->", packed(&data.all)?),
        ("<!--listings-->", packed(&json!(data.listings))?),
        ("<!--proofs-->", packed(&json!(data.proofs))?),
    ] {
        out = out.replacen(mark, &text, 1);
    }
    Ok(out)
}

/// JSON, deflated (RFC 1950), in base64.
fn packed(value: &Value) -> Result<String> {
    let mut encoder = ZlibEncoder::new(Vec::new(), Compression::best());
    encoder.write_all(value.to_string().as_bytes())?;
    Ok(base64::encode(encoder.finish()?))
}
