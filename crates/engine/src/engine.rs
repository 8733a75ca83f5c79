//! An open model: weights, tokenizer and the device it runs on.

use crate::error::Error;
use crate::machine::available_memory;
use crate::model_file::ModelFile;
use crate::running::{Loaded, On};
use crate::session::{Session, SessionOptions};
use std::path::Path;
use std::sync::Arc;
use torque_backend::{Backend, Scalar};
use torque_cpu::Cpu;
use torque_gguf::Gguf;
use torque_kv::{LayerPlan, Plan, Policy, Side};
use torque_model::{Config, ContextOptions, Model};
use torque_tokenizer::Tokenizer;

/// What runs the model.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum BackendKind {
    /// Threads and SIMD.
    #[default]
    Cpu,
    /// The scalar reference: slow, plain, for comparison.
    Scalar,
}

impl BackendKind {
    /// Every backend, with its name on the command line.
    pub const ALL: [(&'static str, BackendKind); 2] =
        [("cpu", BackendKind::Cpu), ("scalar", BackendKind::Scalar)];
}

/// How to open a model.
#[derive(Clone, Debug, Default)]
pub struct EngineOptions {
    /// What runs it.
    pub backend: BackendKind,
    /// CPU threads; the physical cores if `None`.
    pub threads: Option<usize>,
    /// Instruction set of the CPU backend by name; the best there is if `None`.
    pub isa: Option<String>,
}

/// An open model.
pub struct Engine {
    file: Arc<ModelFile>,
    tokenizer: Tokenizer,
    model: Box<dyn Loaded>,
}

/// The effective KV cache of one layer, as printed.
#[derive(Clone, Debug, serde::Serialize)]
pub struct LayerKv {
    /// Ordinal among layers with KV.
    pub layer: usize,
    /// Format of sealed keys; of those of older tokens, if the policy has tiers: `q8_0>turbo4_nested>turbo3_nested`.
    pub k: String,
    /// Format of sealed values, likewise; `in K` where values are channels of the keys and not stored.
    pub v: String,
    /// KV heads × head size, keys.
    pub heads: usize,
    /// Head size of keys.
    pub head_dim: usize,
    /// Sliding window.
    pub window: Option<usize>,
    /// Bytes of a sealed token.
    pub bytes_per_token: f64,
}

impl LayerKv {
    fn new(layer: usize, plan: &LayerPlan, of: &Plan) -> LayerKv {
        let ages = |side: Side| {
            let mut names: Vec<_> = plan.side(side).formats.iter().map(|format| format.name).collect();
            names.dedup();
            names.join(">")
        };
        LayerKv {
            layer,
            k: ages(Side::K),
            v: if plan.shape.values_in_keys { "in K".into() } else { ages(Side::V) },
            heads: plan.shape.heads,
            head_dim: plan.shape.head_dim[0],
            window: plan.shape.window,
            bytes_per_token: of.layer_bytes_per_token(plan),
        }
    }
}

impl Engine {
    /// Opens a model file (any part of a split one).
    pub fn open(path: impl AsRef<Path>, options: &EngineOptions) -> Result<Engine, Error> {
        Engine::from_gguf(Gguf::open(path)?, options)
    }

    /// Opens a parsed model.
    pub fn from_gguf(gguf: Gguf, options: &EngineOptions) -> Result<Engine, Error> {
        fn on<B: Backend>(gguf: &Gguf, backend: B) -> Result<Box<dyn Loaded>, Error> {
            let model = Arc::new(Model::load(gguf, &backend)?);
            Ok(Box::new(On { backend: Arc::new(backend), model }))
        }
        let model = match options.backend {
            BackendKind::Cpu => on(&gguf, Cpu::new(options.threads, options.isa.as_deref())?)?,
            BackendKind::Scalar => on(&gguf, Scalar)?,
        };
        let tokenizer = Tokenizer::from_metadata(gguf.metadata())?;
        Ok(Engine { file: Arc::new(ModelFile::new(gguf)), tokenizer, model })
    }

    /// The file.
    pub fn gguf(&self) -> &Gguf {
        &self.file.gguf
    }

    /// The file, with what tells it from others.
    pub(crate) fn file(&self) -> &ModelFile {
        &self.file
    }

    /// The tokenizer.
    pub fn tokenizer(&self) -> &Tokenizer {
        &self.tokenizer
    }

    /// The model's numbers.
    pub fn config(&self) -> &Config {
        self.model.config()
    }

    /// What runs it, by name.
    pub fn backend(&self) -> &'static str {
        self.model.backend()
    }

    /// The instruction set or device.
    pub fn device(&self) -> String {
        self.model.device()
    }

    /// Threads that compute.
    pub fn threads(&self) -> usize {
        self.model.threads()
    }

    /// Parameters in the file.
    pub fn parameters(&self) -> u64 {
        self.model.parameters()
    }

    /// Bytes of weights that decoding one token reads.
    pub fn active_bytes(&self) -> usize {
        self.model.active_bytes()
    }

    /// Tells models apart: a hash of architecture and numbers, and of names, shapes, types and samples of all tensors.
    pub fn fingerprint(&self) -> String {
        self.file.fingerprint()
    }

    /// Things a user should know about this file.
    pub fn warnings(&self) -> Vec<String> {
        let unused = self.model.unused();
        let unused = (!unused.is_empty())
            .then(|| format!("{} tensors are not used, `{}` first", unused.len(), unused[0]));
        self.tokenizer.warnings().iter().cloned().chain(unused).collect()
    }

    /// The KV cache a policy gives this model.
    pub fn plan(&self, policy: &Policy) -> Result<Plan, Error> {
        Ok(self.config().plan(policy).map_err(torque_model::Error::from)?)
    }

    /// The effective format of every layer and side.
    pub fn layer_kv(&self, policy: &Policy) -> Result<Vec<LayerKv>, Error> {
        let plan = self.plan(policy)?;
        Ok((plan.layers.iter().enumerate())
            .map(|(ordinal, layer)| LayerKv::new(ordinal, layer, &plan))
            .collect())
    }

    /// A new sequence. A context that is asked for must fit in memory; the default one is the model's
    /// own, or what fits.
    pub fn session(&self, options: &SessionOptions) -> Result<Session, Error> {
        Ok(self.sessions(options, 1)?.pop().expect("one session"))
    }

    /// Some sequences of one cache: what one of them has computed, another whose text begins alike takes
    /// ([`Session::feed`]). Each takes one text after another; a server has one for every request it works on at once.
    pub fn sessions(&self, options: &SessionOptions, sequences: usize) -> Result<Vec<Session>, Error> {
        let plan = self.plan(&options.policy)?;
        let batch = options.batch.max(1);
        let free = available_memory() as usize;
        // What may be kept for later does not crowd out what is needed now.
        let prefix_bytes = options.prefix_bytes.min(free / 4);
        let available = (free - prefix_bytes) / sequences.max(1);
        let fits = plan.context_that_fits(available, batch);
        let context = match options.context {
            Some(context) if context > fits => {
                return Err(Error::Memory {
                    context,
                    needed: human_bytes(plan.sequence_bytes(context, batch) as f64),
                    available: human_bytes(available as f64),
                    fits,
                });
            }
            Some(context) => context,
            None => self.config().context.min(fits),
        };
        let batch = batch.min(context.max(1));
        let policy = options.policy.clone();
        let running = self.model.context(ContextOptions {
            context,
            batch,
            sequences,
            policy,
            overflow: options.overflow,
            prefix_bytes,
        })?;
        Ok(Session::of(running, &self.file, self.config().vocabulary))
    }
}

/// `1.50 GiB` and the like.
pub fn human_bytes(bytes: f64) -> String {
    let mut value = bytes;
    for unit in ["B", "KiB", "MiB", "GiB"] {
        if value < 1024.0 {
            return if unit == "B" { format!("{value:.0} B") } else { format!("{value:.2} {unit}") };
        }
        value /= 1024.0;
    }
    format!("{value:.2} TiB")
}

#[cfg(test)]
mod tests {
    use super::*;
    use torque_kv::KvLayer;

    #[test]
    fn formats_in_use_are_told() {
        let latent = KvLayer { heads: 1, head_dim: [576, 512], values_in_keys: true, window: None };
        let layers = [latent, KvLayer { values_in_keys: false, ..latent }];
        let plan = Plan::new(&Policy::uniform("f16", "q8_0"), &layers).unwrap();
        let told = [0, 1].map(|i| LayerKv::new(i, &plan.layers[i], &plan));
        assert_eq!(told.each_ref().map(|kv| (&kv.k[..], &kv.v[..])), [("f16", "in K"), ("f16", "q8_0")]);
        assert_eq!(told[0].bytes_per_token, 576.0 * 2.0);
    }
}
