//! From a file's tensors to a [`Model`]: every name, shape and type is checked here, once.

use crate::config::{Config, ExpertConfig, LayerConfig};
use crate::error::Error;
use crate::rope::Factors;
use std::cell::RefCell;
use std::collections::HashSet;
use torque_backend::{Backend, Experts, MatrixData};
use torque_gguf::{Gguf, Tensor};
use torque_quant::FormatOps;

/// A model on a device.
pub struct Model<B: Backend> {
    /// Its numbers.
    pub config: Config,
    /// Tensors of the file that no op reads, for information.
    pub unused: Vec<String>,
    /// Bytes of weights that one decoded token reads: all but the embedding table (unless it is the
    /// output too) and the experts that are not used.
    pub active_bytes: usize,
    /// Parameters in the file.
    pub parameters: u64,
    pub(crate) embedding: B::Matrix,
    pub(crate) layers: Vec<Layer<B>>,
    pub(crate) output_norm: B::Vector,
    /// Absent if the embedding table is the output too.
    pub(crate) output: Option<B::Matrix>,
    pub(crate) factors: Factors,
}

/// One block.
pub(crate) struct Layer<B: Backend> {
    pub attention_norm: Option<B::Vector>,
    pub attention: AttentionWeights<B>,
    pub attention_post_norm: Option<B::Vector>,
    pub ffn_norm: Option<B::Vector>,
    pub ffn: FeedForward<B>,
    pub ffn_post_norm: Option<B::Vector>,
}

/// A matrix product and its bias.
pub(crate) struct Linear<B: Backend> {
    pub weight: B::Matrix,
    pub bias: Option<B::Vector>,
    pub rows: usize,
}

pub(crate) struct AttentionWeights<B: Backend> {
    pub q: Linear<B>,
    pub k: Linear<B>,
    pub v: Linear<B>,
    pub output: Linear<B>,
    /// As wide as a head or as all heads.
    pub q_norm: Option<B::Vector>,
    pub k_norm: Option<B::Vector>,
}

pub(crate) enum FeedForward<B: Backend> {
    Dense { gate: Linear<B>, up: Linear<B>, down: Linear<B> },
    Routed { router: Linear<B>, experts: Experts<B::Matrix> },
}

impl<B: Backend> Model<B> {
    /// Brings the tensors of a file to the backend.
    pub fn load(gguf: &Gguf, backend: &B) -> Result<Model<B>, Error> {
        let config = Config::from_metadata(gguf.metadata())?;
        let loader =
            Loader { gguf, backend, config: &config, used: RefCell::default(), active: Default::default() };
        let width = config.embedding;
        let embedding = loader.matrix("token_embd.weight", config.vocabulary, width)?;
        let has_output = gguf.tensor("output.weight").is_some();
        let output =
            has_output.then(|| loader.matrix("output.weight", config.vocabulary, width)).transpose()?;
        if has_output {
            let table = gguf.tensor("token_embd.weight").expect("just loaded");
            loader.active.set(loader.active.get() - table.data.len() as f64);
        }
        let factors = Factors {
            always: loader.factors("rope_freqs.weight")?,
            short: loader.factors("rope_factors_short.weight")?,
            long: loader.factors("rope_factors_long.weight")?,
        };
        let layers = (config.layers.iter().enumerate())
            .map(|(index, layer)| loader.layer(index, layer))
            .collect::<Result<_, _>>()?;
        let output_norm = loader.vector("output_norm.weight", &[width])?;
        let unused = loader.unused()?;
        let active_bytes = loader.active.get() as usize;
        let parameters = gguf.tensors().iter().map(|t| t.shape.iter().product::<u64>()).sum();
        Ok(Model {
            unused,
            active_bytes,
            parameters,
            embedding,
            layers,
            output_norm,
            output,
            factors,
            config,
        })
    }
}

struct Loader<'a, B: Backend> {
    gguf: &'a Gguf,
    backend: &'a B,
    config: &'a Config,
    used: RefCell<HashSet<String>>,
    /// Bytes a decoded token reads; fractions of expert tensors.
    active: std::cell::Cell<f64>,
}

/// Rows `skip..skip + rows` of each of the matrices a tensor holds.
#[derive(Clone, Copy)]
struct Slice {
    skip: usize,
    rows: usize,
    /// Rows of the whole tensor.
    total: usize,
}

impl Slice {
    fn whole(rows: usize) -> Slice {
        Slice { skip: 0, rows, total: rows }
    }
}

impl<B: Backend> Loader<'_, B> {
    fn has(&self, name: &str) -> bool {
        self.gguf.tensor(name).is_some()
    }

    fn tensor(&self, name: &str) -> Result<&Tensor, Error> {
        self.used.borrow_mut().insert(name.into());
        self.gguf.tensor(name).ok_or_else(|| Error::MissingTensor(name.into()))
    }

    /// A tensor of a given shape (trailing ones ignored) and its format.
    fn checked(&self, name: &str, expected: &[usize]) -> Result<(&Tensor, &'static FormatOps), Error> {
        let tensor = self.tensor(name)?;
        let expected: Vec<u64> = expected.iter().map(|&n| n as u64).collect();
        let trim = |shape: &[u64]| {
            shape.iter().rposition(|&n| n != 1).map_or(Vec::new(), |last| shape[..=last].to_vec())
        };
        if trim(&tensor.shape) != trim(&expected) {
            return Err(Error::Shape { tensor: name.into(), found: tensor.shape.clone(), expected });
        }
        let kind = tensor.kind.name();
        let format = torque_quant::by_name(&kind).filter(|format| format.weights).ok_or_else(|| {
            let known: Vec<_> = torque_quant::FORMATS.iter().filter(|f| f.weights).map(|f| f.name).collect();
            Error::Type { tensor: name.into(), kind: kind.to_string(), known: known.join(" ") }
        })?;
        // A tensor without dimensions is one value.
        let columns = tensor.shape.first().map_or(1, |&n| n as usize);
        if !format.fits(columns) {
            return Err(Error::Block {
                tensor: name.into(),
                kind: kind.into(),
                columns,
                block: format.block,
            });
        }
        Ok((tensor, format))
    }

    fn matrix(&self, name: &str, rows: usize, columns: usize) -> Result<B::Matrix, Error> {
        Ok(self.matrices(name, Slice::whole(rows), columns, 1, 1.0)?.remove(0))
    }

    /// A tensor `[columns, rows, count]` as matrices, each cut to a slice of its rows. `active` is the
    /// share of them that a token reads.
    fn matrices(
        &self,
        name: &str,
        slice: Slice,
        columns: usize,
        count: usize,
        active: f64,
    ) -> Result<Vec<B::Matrix>, Error> {
        let shape = [columns, slice.total, count];
        let (tensor, format) = self.checked(name, if count == 1 { &shape[..2] } else { &shape })?;
        let row = format.row_bytes(columns);
        self.active.set(self.active.get() + (slice.rows * count * row) as f64 * active);
        Ok((0..count)
            .map(|index| {
                let start = (index * slice.total + slice.skip) * row;
                let bytes = tensor.data.slice(start..start + slice.rows * row);
                self.backend.matrix(MatrixData { format, rows: slice.rows, columns, bytes })
            })
            .collect())
    }

    /// A vector whose length is one of `lengths`, as numbers.
    fn values(&self, name: &str, lengths: &[usize]) -> Result<Vec<f32>, Error> {
        let found = self.tensor(name)?.shape.iter().product::<u64>() as usize;
        let length = if lengths.contains(&found) { found } else { lengths[0] };
        let (tensor, format) = self.checked(name, &[length])?;
        let mut values = vec![0.0; length];
        format.decode_row(&tensor.data, &mut values);
        Ok(values)
    }

    fn vector(&self, name: &str, lengths: &[usize]) -> Result<B::Vector, Error> {
        Ok(self.backend.vector(&self.values(name, lengths)?))
    }

    fn optional(&self, name: &str, lengths: &[usize]) -> Result<Option<B::Vector>, Error> {
        self.has(name).then(|| self.vector(name, lengths)).transpose()
    }

    fn required_if(&self, required: bool, name: &str, length: usize) -> Result<Option<B::Vector>, Error> {
        required.then(|| self.vector(name, &[length])).transpose()
    }

    fn factors(&self, name: &str) -> Result<Option<Vec<f32>>, Error> {
        let pairs = self.config.ropes[0].channels / 2;
        self.has(name).then(|| self.values(name, &[pairs])).transpose()
    }

    /// `{name}.weight`, and `{name}.bias` if it is there.
    fn linear(&self, name: &str, rows: usize, columns: usize) -> Result<Linear<B>, Error> {
        self.linear_slice(name, Slice::whole(rows), columns)
    }

    fn linear_slice(&self, name: &str, slice: Slice, columns: usize) -> Result<Linear<B>, Error> {
        let weight = self.matrices(&format!("{name}.weight"), slice, columns, 1, 1.0)?.remove(0);
        let bias = format!("{name}.bias");
        let bias = match self.has(&bias) {
            true => {
                let values = self.values(&bias, &[slice.total])?;
                Some(self.backend.vector(&values[slice.skip..][..slice.rows]))
            }
            false => None,
        };
        Ok(Linear { weight, bias, rows: slice.rows })
    }

    fn layer(&self, index: usize, layer: &LayerConfig) -> Result<Layer<B>, Error> {
        let name = |part: &str| format!("blk.{index}.{part}");
        for part in self.config.arch.required {
            self.tensor(&name(part))?;
        }
        let (norms, width) = (self.config.arch.norms, self.config.embedding);
        Ok(Layer {
            attention_norm: self.required_if(norms.before(), &name("attn_norm.weight"), width)?,
            attention: self.attention(&name, layer)?,
            attention_post_norm: self.required_if(
                norms.after(),
                &name("post_attention_norm.weight"),
                width,
            )?,
            ffn_norm: self.required_if(norms.before(), &name("ffn_norm.weight"), width)?,
            ffn: match self.config.experts {
                Some(experts) if self.has(&name("ffn_gate_inp.weight")) => self.routed(&name, &experts)?,
                _ => self.dense(&name, layer)?,
            },
            ffn_post_norm: self.required_if(norms.after(), &name("post_ffw_norm.weight"), width)?,
        })
    }

    fn attention(
        &self,
        name: &dyn Fn(&str) -> String,
        layer: &LayerConfig,
    ) -> Result<AttentionWeights<B>, Error> {
        let width = self.config.embedding;
        let [k_dim, v_dim] = layer.kv.head_dim;
        let (q_rows, k_rows, v_rows) = (layer.heads * k_dim, layer.kv.heads * k_dim, layer.kv.heads * v_dim);
        let fused = name("attn_qkv");
        let [q, k, v] = if self.has(&format!("{fused}.weight")) {
            let total = q_rows + k_rows + v_rows;
            [(0, q_rows), (q_rows, k_rows), (q_rows + k_rows, v_rows)]
                .map(|(skip, rows)| self.linear_slice(&fused, Slice { skip, rows, total }, width))
        } else {
            [("attn_q", q_rows), ("attn_k", k_rows), ("attn_v", v_rows)]
                .map(|(part, rows)| self.linear(&name(part), rows, width))
        };
        Ok(AttentionWeights {
            q: q?,
            k: k?,
            v: v?,
            output: self.linear(&name("attn_output"), width, layer.heads * v_dim)?,
            q_norm: self.optional(&name("attn_q_norm.weight"), &[k_dim, q_rows])?,
            k_norm: self.optional(&name("attn_k_norm.weight"), &[k_dim, k_rows])?,
        })
    }

    fn dense(&self, name: &dyn Fn(&str) -> String, layer: &LayerConfig) -> Result<FeedForward<B>, Error> {
        let (width, inner) = (self.config.embedding, layer.feed_forward);
        let (gate, up) = if self.has(&name("ffn_gate.weight")) {
            (self.linear(&name("ffn_gate"), inner, width)?, self.linear(&name("ffn_up"), inner, width)?)
        } else {
            let half = |skip| {
                self.linear_slice(&name("ffn_up"), Slice { skip, rows: inner, total: 2 * inner }, width)
            };
            (half(0)?, half(inner)?)
        };
        Ok(FeedForward::Dense { gate, up, down: self.linear(&name("ffn_down"), width, inner)? })
    }

    fn routed(&self, name: &dyn Fn(&str) -> String, config: &ExpertConfig) -> Result<FeedForward<B>, Error> {
        let (width, inner, count) = (self.config.embedding, config.feed_forward, config.count);
        let active = config.used as f64 / count as f64;
        let all = |part: &str, slice: Slice, columns: usize| -> Result<Vec<B::Matrix>, Error> {
            if self.has(&name(&format!("{part}.0.weight"))) {
                // Old files hold one tensor an expert.
                let one = |e| self.matrices(&name(&format!("{part}.{e}.weight")), slice, columns, 1, active);
                return (0..count).map(|e| one(e).map(|mut m| m.remove(0))).collect();
            }
            self.matrices(&name(&format!("{part}_exps.weight")), slice, columns, count, active)
        };
        let (gate, up) = if self.has(&name("ffn_gate_up_exps.weight")) {
            let half = |skip| all("ffn_gate_up", Slice { skip, rows: inner, total: 2 * inner }, width);
            (half(0)?, half(inner)?)
        } else {
            (all("ffn_gate", Slice::whole(inner), width)?, all("ffn_up", Slice::whole(inner), width)?)
        };
        let down = all("ffn_down", Slice::whole(width), inner)?;
        let router = self.linear(&name("ffn_gate_inp"), count, width)?;
        let activation = self.config.arch.activation;
        Ok(FeedForward::Routed { router, experts: Experts { gate, up, down, activation } })
    }

    /// Tensors nothing has asked for. One that would change the result is an error.
    fn unused(&self) -> Result<Vec<String>, Error> {
        let used = self.used.borrow();
        let layers = self.config.layers.len();
        let mut unused = Vec::new();
        for tensor in self.gguf.tensors().iter().filter(|t| !used.contains(&t.name)) {
            // Blocks past the last layer predict further tokens; plain inference skips them.
            let block = tensor
                .name
                .strip_prefix("blk.")
                .and_then(|rest| rest.split('.').next()?.parse::<usize>().ok());
            if block.is_some_and(|block| block < layers) {
                return Err(Error::Unused { tensor: tensor.name.clone(), arch: self.config.arch.name });
            }
            unused.push(tensor.name.clone());
        }
        Ok(unused)
    }
}
