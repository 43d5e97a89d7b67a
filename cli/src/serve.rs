//! `lapidary serve`: a model behind the API of OpenAI.

use std::sync::Arc;

use anyhow::Result;
use lapidary::Model;
use lapidary_runtime::text::{ChatTemplate, Tokenizer};
use lapidary_server::{Served, Text};

use crate::interrupt;
use crate::model::open;
use crate::options::ModelArgs;
use crate::serving::ServingArgs;

/// Serve a model to clients of OpenAI's API, and a page to chat at.
#[derive(clap::Args)]
#[command(
    after_help = "Examples:\n  lapidary serve\n  lapidary serve -m gemma-2-2b-it --weights q4 --port 8000 \
    --api-key-file keys\n\nThe API is in docs/serving.md and at /openapi.json."
)]
pub(crate) struct Args {
    #[command(flatten)]
    model: ModelArgs,
    #[command(flatten)]
    serving: ServingArgs,
}

/// Serves until a signal.
pub(crate) fn run(args: &Args) -> Result<()> {
    // The server ends by itself when it is told to.
    interrupt::leave_to_others();
    let options = args.model.options()?;
    let (serving, of_model) = (args.serving.clone(), args.model.clone());
    let load = move || {
        let path = of_model.model.as_deref();
        let model = Arc::new(open(path, options)?);
        let engine = model.engine().map_err(crate::options::error)?;
        let speculation = serving.speculation(|draft| crate::model::draft(draft, &model, &of_model))?;
        Ok(Served { name: serving.name(path), engine, speculation, text: Box::new(Of(model)) })
    };
    Ok(lapidary_server::serve(args.serving.options(), Box::new(move || load().map_err(anyhow::Error::into)))?)
}

/// A model's text.
struct Of(Arc<Model>);

impl Text for Of {
    fn tokenizer(&self) -> Option<&Tokenizer> {
        self.0.tokenizer().ok()
    }

    fn chat_template(&self) -> Option<&ChatTemplate> {
        self.0.chat_template().ok()
    }

    fn stop_tokens(&self) -> &[u32] {
        self.0.stop_tokens()
    }
}
