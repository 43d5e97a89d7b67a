//! Models: opened, and text from them, piece by piece.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use lapidary::ir::{DType, Dim, TensorType};
use lapidary::{Generate, Message, SamplerOptions, Session};
use pyo3::prelude::*;
use pyo3::types::PyDict;

use crate::array::Array;
use crate::error::{failure, of, usage};
use crate::options::options;

/// A model, opened.
#[pyclass(frozen, module = "lapidary._lapidary")]
pub(crate) struct Model {
    model: Arc<lapidary::Model>,
}

/// Text under way: an iterator over its pieces.
#[pyclass(frozen, module = "lapidary._lapidary")]
pub(crate) struct Generation {
    generation: Mutex<lapidary::Generation<'static>>,
}

#[pymethods]
impl Model {
    /// Opens the model at a path, or of a name; the built-in one if there is none.
    #[staticmethod]
    fn open(py: Python<'_>, path: Option<PathBuf>, given: &Bound<'_, PyDict>) -> PyResult<Model> {
        let options = options(given)?;
        let open = || match path {
            Some(path) => lapidary::Model::open(path, options),
            None => lapidary::Model::built_in(options),
        };
        let model = py.detach(open);
        py.check_signals()?;
        Ok(Model { model: Arc::new(model.map_err(of)?) })
    }

    #[getter]
    fn path(&self) -> &Path {
        self.model.path()
    }

    #[getter]
    fn context(&self) -> usize {
        self.model.context()
    }

    #[getter]
    fn vocab_size(&self) -> usize {
        self.model.config().vocab_size
    }

    #[getter]
    fn stop_tokens(&self) -> Vec<u32> {
        self.model.stop_tokens().to_vec()
    }

    #[getter]
    fn is_instruction_tuned(&self) -> bool {
        self.model.is_instruction_tuned()
    }

    fn encode(&self, text: &str) -> PyResult<Vec<u32>> {
        self.model.encode(text).map_err(of)
    }

    fn decode(&self, tokens: Vec<u32>) -> PyResult<String> {
        let (tokenizer, size) = (self.model.tokenizer().map_err(of)?, self.vocab_size());
        if let Some(id) = tokens.iter().find(|&&id| id as usize >= size) {
            return Err(usage(format!("expected tokens of 0 to {}, found {id}", size - 1)));
        }
        Ok(tokenizer.decode(&tokens))
    }

    /// The tokens of a conversation, a JSON list of messages, up to where the model's turn begins.
    fn encode_chat(&self, messages: &str, system: Option<&str>) -> PyResult<Vec<u32>> {
        let messages = Message::parse(Path::new("messages"), messages.as_bytes()).map_err(usage)?;
        self.model.encode_chat(system, &messages).map_err(of)
    }

    /// Begins a text after a prompt's tokens, which it appends to a session of its own.
    #[pyo3(signature = (prompt, max_tokens, sampler, stop, stop_tokens))]
    fn generate(
        &self,
        py: Python<'_>,
        prompt: Vec<u32>,
        max_tokens: usize,
        sampler: &Bound<'_, PyDict>,
        stop: Vec<String>,
        stop_tokens: Option<Vec<u32>>,
    ) -> PyResult<Generation> {
        let how = Generate { max_tokens, sampler: sampler_options(sampler)?, stop, stop_tokens };
        let mut session = self.session(py)?;
        let mut interrupted = None;
        let filled = py.detach(|| {
            session.prefill_with(&prompt, &mut |_, _| match Python::attach(|py| py.check_signals()) {
                Ok(()) => ControlFlow::Continue(()),
                Err(error) => {
                    interrupted = Some(error);
                    ControlFlow::Break(())
                }
            })
        });
        filled.map_err(failure)?;
        if let Some(error) = interrupted {
            return Err(error);
        }
        let generation = self.model.generate_with(session, &[], &how).map_err(of)?;
        Ok(Generation { generation: Mutex::new(generation) })
    }

    /// The logits after each token, written to a float32 array (tokens, vocabulary).
    fn logits(&self, py: Python<'_>, tokens: Vec<u32>, out: &Bound<'_, PyAny>) -> PyResult<()> {
        let width = self.vocab_size();
        let shape = [tokens.len(), width];
        let ty = TensorType::new(DType::F32, shape.map(Dim::Fixed).to_vec());
        let array = Array::of(out, "out", &ty, true)?;
        if array.shape() != shape {
            return Err(usage(format!("out: expected {ty}, found {:?}", array.shape())));
        }
        let mut session = self.session(py)?;
        let place = array.place();
        // SAFETY: an array of floats that can be written to, held until the end.
        let rows =
            unsafe { std::slice::from_raw_parts_mut(place.address.cast::<f32>(), tokens.len() * width) };
        py.detach(|| {
            session.score(&tokens, &mut |row, logits| rows[row * width..][..width].copy_from_slice(logits))
        })
        .map_err(failure)
    }
}

impl Model {
    fn session(&self, py: Python<'_>) -> PyResult<Session> {
        let session = py.detach(|| self.model.session());
        py.check_signals()?;
        session.map_err(of)
    }
}

/// The sampler's options by their names.
fn sampler_options(given: &Bound<'_, PyDict>) -> PyResult<SamplerOptions> {
    let mut options = SamplerOptions::default();
    let SamplerOptions { temperature, top_k, top_p, min_p, repetition_penalty, repeat_last_n, seed } =
        &mut options;
    for (name, value) in given.iter() {
        let name: String = name.extract()?;
        let typed = |error: PyErr| usage(format!("`{name}`: {error}"));
        match name.as_str() {
            "temperature" => *temperature = value.extract().map_err(typed)?,
            "top_k" => *top_k = value.extract().map_err(typed)?,
            "top_p" => *top_p = value.extract().map_err(typed)?,
            "min_p" => *min_p = value.extract().map_err(typed)?,
            "repetition_penalty" => *repetition_penalty = value.extract().map_err(typed)?,
            "repeat_last_n" => *repeat_last_n = value.extract().map_err(typed)?,
            "seed" => *seed = value.extract().map_err(typed)?,
            _ => return Err(usage(format!("unknown option `{name}`"))),
        }
    }
    options.validate().map_err(usage)?;
    Ok(options)
}

#[pymethods]
impl Generation {
    fn __iter__(slf: PyRef<'_, Self>) -> PyRef<'_, Self> {
        slf
    }

    /// The text that the next token makes certain.
    fn __next__(&self, py: Python<'_>) -> PyResult<Option<String>> {
        py.check_signals()?;
        py.detach(|| self.held().next()).transpose().map_err(of)
    }

    /// The text so far.
    #[getter]
    fn text(&self) -> String {
        self.held().text().to_string()
    }

    /// The tokens so far.
    #[getter]
    fn tokens(&self) -> Vec<u32> {
        self.held().tokens().to_vec()
    }

    /// Why it ended; before that, none.
    #[getter]
    fn end(&self) -> Option<&'static str> {
        self.held().end().map(|end| end.name())
    }
}

impl Generation {
    fn held(&self) -> MutexGuard<'_, lapidary::Generation<'static>> {
        self.generation.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
