//! GGUF files made by hand, for tests: any keys and tensors, right or wrong.

/// Numbers of the types of values.
pub mod kind {
    /// 4 bytes, unsigned.
    pub const U32: u32 = 4;
    /// 4 bytes, signed.
    pub const I32: u32 = 5;
    /// binary32.
    pub const F32: u32 = 6;
    /// A byte.
    pub const BOOL: u32 = 7;
    /// A text.
    pub const TEXT: u32 = 8;
    /// A list.
    pub const LIST: u32 = 9;
}

/// One tensor.
#[derive(Clone, Debug)]
pub struct Tensor {
    /// Its name.
    pub name: String,
    /// The contiguous axis first, as the file has them.
    pub sizes: Vec<u64>,
    /// The number of its form.
    pub kind: u32,
    /// Where it begins, from the data's start on; else the next place.
    pub offset: Option<u64>,
    /// Its bytes.
    pub bytes: Vec<u8>,
}

/// A file.
#[derive(Clone, Debug)]
pub struct File {
    /// The version.
    pub version: u32,
    /// Keys, types of values, and the values' bytes.
    pub keys: Vec<(String, u32, Vec<u8>)>,
    /// Tensors.
    pub tensors: Vec<Tensor>,
    /// What tensors are aligned to.
    pub alignment: usize,
}

impl Default for File {
    fn default() -> File {
        File { version: 3, keys: Vec::new(), tensors: Vec::new(), alignment: 32 }
    }
}

/// A text as a file has it.
pub fn text(text: &[u8]) -> Vec<u8> {
    [&(text.len() as u64).to_le_bytes()[..], text].concat()
}

/// A list as a file has it.
pub fn list(kind: u32, elements: &[Vec<u8>]) -> Vec<u8> {
    [&kind.to_le_bytes()[..], &(elements.len() as u64).to_le_bytes(), &elements.concat()].concat()
}

impl File {
    /// Adds a key.
    pub fn key(mut self, key: &str, kind: u32, value: impl Into<Vec<u8>>) -> File {
        self.keys.push((key.into(), kind, value.into()));
        self
    }

    /// Gives a key another value, or takes it away.
    pub fn change(mut self, key: &str, value: Option<(u32, Vec<u8>)>) -> File {
        self.keys.retain(|(k, _, _)| k != key);
        self.keys.extend(value.map(|(kind, bytes)| (key.to_string(), kind, bytes)));
        self
    }

    /// Adds a text.
    pub fn text(self, key: &str, value: &str) -> File {
        self.key(key, kind::TEXT, text(value.as_bytes()))
    }

    /// Adds an integer.
    pub fn u32(self, key: &str, value: u32) -> File {
        self.key(key, kind::U32, value.to_le_bytes())
    }

    /// Adds a number.
    pub fn f32(self, key: &str, value: f32) -> File {
        self.key(key, kind::F32, value.to_le_bytes())
    }

    /// Adds a truth.
    pub fn bool(self, key: &str, value: bool) -> File {
        self.key(key, kind::BOOL, [u8::from(value)])
    }

    /// Adds a list of texts.
    pub fn texts<T: AsRef<[u8]>>(self, key: &str, values: &[T]) -> File {
        let values: Vec<Vec<u8>> = values.iter().map(|v| text(v.as_ref())).collect();
        self.key(key, kind::LIST, list(kind::TEXT, &values))
    }

    /// Adds a list of numbers.
    pub fn f32s(self, key: &str, values: &[f32]) -> File {
        let values: Vec<Vec<u8>> = values.iter().map(|v| v.to_le_bytes().to_vec()).collect();
        self.key(key, kind::LIST, list(kind::F32, &values))
    }

    /// Adds a list of integers.
    pub fn i32s(self, key: &str, values: &[i32]) -> File {
        let values: Vec<Vec<u8>> = values.iter().map(|v| v.to_le_bytes().to_vec()).collect();
        self.key(key, kind::LIST, list(kind::I32, &values))
    }

    /// Adds a tensor at the next place.
    pub fn tensor(mut self, name: &str, sizes: &[u64], kind: u32, bytes: impl Into<Vec<u8>>) -> File {
        let (name, sizes, bytes) = (name.into(), sizes.into(), bytes.into());
        self.tensors.push(Tensor { name, sizes, kind, offset: None, bytes });
        self
    }

    /// Everything before the data.
    pub fn header(&self) -> Vec<u8> {
        let mut out = b"GGUF".to_vec();
        out.extend(self.version.to_le_bytes());
        out.extend((self.tensors.len() as u64).to_le_bytes());
        out.extend((self.keys.len() as u64).to_le_bytes());
        for (key, kind, value) in &self.keys {
            out.extend(text(key.as_bytes()));
            out.extend(kind.to_le_bytes());
            out.extend(value);
        }
        let mut next = 0;
        for t in &self.tensors {
            out.extend(text(t.name.as_bytes()));
            out.extend((t.sizes.len() as u32).to_le_bytes());
            t.sizes.iter().for_each(|n| out.extend(n.to_le_bytes()));
            out.extend(t.kind.to_le_bytes());
            out.extend(t.offset.unwrap_or(next).to_le_bytes());
            next = (next + t.bytes.len() as u64).next_multiple_of(self.alignment as u64);
        }
        out
    }

    /// The whole file.
    pub fn bytes(&self) -> Vec<u8> {
        let mut out = self.header();
        for t in &self.tensors {
            out.resize(out.len().next_multiple_of(self.alignment), 0);
            out.extend(&t.bytes);
        }
        out
    }
}

/// A vocabulary of a few tokens of every kind.
pub fn vocabulary() -> File {
    let mut tokens = vec!["<pad>", "<eos>", "<bos>", "<unk>", "<end_of_turn>", "<start_of_turn>"];
    let mut kinds = vec![3, 3, 3, 2, 3, 3];
    let user = ["\n", "\n\n", "\n\n\n", "  ", "   ", "    ", "<b>", "[tag]"];
    let normal = [
        "▁", "a", "b", "c", "h", "e", "l", "o", "he", "ll", "llo", "hello", "▁hello", "ab", "bc", "é", "x",
        "ß▁", "▁h",
    ];
    let bytes: Vec<String> = (0..=255).map(|b| format!("<0x{b:02X}>")).collect();
    tokens.extend(user);
    kinds.extend(user.map(|_| 4));
    tokens.extend(bytes.iter().map(String::as_str));
    kinds.extend(bytes.iter().map(|_| 6));
    tokens.extend(normal);
    kinds.extend(normal.map(|_| 1));
    let first = tokens.len() - normal.len();
    let score = |id: usize| if id < first { -1000.0 } else { -((id - first) as f32) };
    let scores: Vec<f32> = (0..tokens.len()).map(score).collect();
    File::default()
        .text("tokenizer.ggml.model", "llama")
        .texts("tokenizer.ggml.tokens", &tokens)
        .f32s("tokenizer.ggml.scores", &scores)
        .i32s("tokenizer.ggml.token_type", &kinds)
        .u32("tokenizer.ggml.bos_token_id", 2)
        .u32("tokenizer.ggml.eos_token_id", 1)
        .u32("tokenizer.ggml.unknown_token_id", 3)
        .u32("tokenizer.ggml.padding_token_id", 0)
        .bool("tokenizer.ggml.add_space_prefix", false)
}
