//! From a file's tensors to a [`Model`]: every name, shape and type is checked here, once.

use crate::config::{Config, LayerConfig};
use crate::error::Error;
use crate::mixers::Mixer;
use crate::mixers::feed_forward::FeedForward;
use crate::mixers::per_layer;
use crate::rope::Factors;
use std::cell::{Cell, RefCell};
use std::collections::HashSet;
use torque_backend::{Backend, MatrixData};
use torque_gguf::{Gguf, Tensor};
use torque_quant::FormatOps;

/// A model on a device.
pub struct Model<B: Backend> {
    /// Its numbers.
    pub config: Config,
    /// Tensors of the file that no op reads, for information.
    pub unused: Vec<String>,
    /// Bytes of weights that one decoded token reads: all but the embedding tables (unless one is the
    /// output too) and the experts that are not used.
    pub active_bytes: usize,
    /// Parameters in the file.
    pub parameters: u64,
    /// Positions it can tell apart, if they are learned.
    pub positions: Option<usize>,
    pub(crate) embedding: B::Matrix,
    /// Learned positions: `[positions, embedding]`.
    pub(crate) position_embedding: Option<B::Matrix>,
    pub(crate) per_layer: Option<per_layer::Inputs<B>>,
    pub(crate) layers: Vec<Layer<B>>,
    pub(crate) output_norm: Norm<B>,
    /// Absent if the embedding table is the output too.
    pub(crate) output: Option<B::Matrix>,
    pub(crate) factors: Factors,
}

/// One block.
pub(crate) struct Layer<B: Backend> {
    pub mixer_norm: Option<Norm<B>>,
    pub mixer: Mixer<B>,
    pub mixer_post_norm: Option<Norm<B>>,
    pub ffn_norm: Option<Norm<B>>,
    pub ffn: FeedForward<B>,
    pub ffn_post_norm: Option<Norm<B>>,
    pub per_layer: Option<per_layer::Weights<B>>,
    /// Multiplies the residual stream at the end.
    pub scale: Option<f32>,
}

/// A matrix product and its bias.
pub(crate) struct Linear<B: Backend> {
    pub weight: B::Matrix,
    pub bias: Option<B::Vector>,
    pub rows: usize,
}

/// A root-mean-square norm, or a layer norm if it has a bias.
pub(crate) struct Norm<B: Backend> {
    pub weight: B::Vector,
    pub bias: Option<B::Vector>,
}

impl<B: Backend> Model<B> {
    /// Brings the tensors of a file to the backend.
    pub fn load(gguf: &Gguf, backend: &B) -> Result<Model<B>, Error> {
        let config = Config::from_metadata(gguf.metadata())?;
        let loader =
            Loader { gguf, backend, config: &config, used: RefCell::default(), active: Cell::default() };
        let width = config.embedding;
        let has_output = loader.has("output.weight");
        let embedding = match has_output {
            true => loader.table("token_embd.weight", Some(config.vocabulary), width)?.0,
            false => loader.matrix("token_embd.weight", config.vocabulary, width)?,
        };
        let output =
            has_output.then(|| loader.matrix("output.weight", config.vocabulary, width)).transpose()?;
        // Without a rotary embedding positions are learned.
        let learned = config.arch.pairs.is_none();
        let positions = learned.then(|| loader.table("position_embd.weight", None, width)).transpose()?;
        let factors = Factors {
            always: loader.factors("rope_freqs.weight")?,
            short: loader.factors("rope_factors_short.weight")?,
            long: loader.factors("rope_factors_long.weight")?,
        };
        let per_layer = per_layer::Inputs::load(&loader)?;
        let layers = (config.layers.iter().enumerate())
            .map(|(index, numbers)| Layer::load(&LayerLoader { loader: &loader, index }, numbers))
            .collect::<Result<_, _>>()?;
        let output_norm = loader.norm("output_norm", width)?;
        let unused = loader.unused()?;
        let active_bytes = loader.active.get() as usize;
        let parameters = gguf.tensors().iter().map(|t| t.shape.iter().product::<u64>()).sum();
        let (position_embedding, positions) = positions.unzip();
        Ok(Model {
            unused,
            active_bytes,
            parameters,
            positions,
            embedding,
            position_embedding,
            per_layer,
            layers,
            output_norm,
            output,
            factors,
            config,
        })
    }
}

impl<B: Backend> Layer<B> {
    fn load(at: &LayerLoader<B>, numbers: &LayerConfig) -> Result<Layer<B>, Error> {
        let arch = at.config().arch;
        for part in arch.required {
            at.loader.tensor(&at.name(part))?;
        }
        let norm = |there: bool, part: &str| there.then(|| at.norm(part)).transpose();
        let (before, after) = (arch.norms.before(), arch.norms.after());
        Ok(Layer {
            mixer_norm: norm(before, "attn_norm")?,
            mixer: Mixer::load(at, &numbers.mixer)?,
            mixer_post_norm: norm(after, "post_attention_norm")?,
            ffn_norm: norm(before, arch.ffn_norm)?,
            ffn: FeedForward::load(at, numbers.feed_forward)?,
            ffn_post_norm: norm(after, "post_ffw_norm")?,
            per_layer: per_layer::Weights::load(at)?,
            scale: match at.has("layer_output_scale.weight") {
                true => Some(at.values("layer_output_scale.weight", &[1])?[0]),
                false => None,
            },
        })
    }
}

/// A file's tensors, each checked as it is taken.
pub(crate) struct Loader<'a, B: Backend> {
    gguf: &'a Gguf,
    pub backend: &'a B,
    pub config: &'a Config,
    used: RefCell<HashSet<String>>,
    /// Bytes a decoded token reads; fractions of expert tensors.
    active: Cell<f64>,
}

/// Rows `skip..skip + rows` of each of the matrices a tensor holds.
#[derive(Clone, Copy)]
pub(crate) struct Slice {
    pub skip: usize,
    pub rows: usize,
    /// Rows of the whole tensor.
    pub total: usize,
}

impl Slice {
    pub fn whole(rows: usize) -> Slice {
        Slice { skip: 0, rows, total: rows }
    }
}

impl<B: Backend> Loader<'_, B> {
    pub fn has(&self, name: &str) -> bool {
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

    pub fn matrix(&self, name: &str, rows: usize, columns: usize) -> Result<B::Matrix, Error> {
        Ok(self.matrices(name, Slice::whole(rows), columns, 1, 1.0)?.remove(0))
    }

    /// A tensor `[columns, rows, count]` as matrices, each cut to a slice of its rows. `active` is the
    /// share of them that a token reads.
    pub fn matrices(
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
    pub fn values(&self, name: &str, lengths: &[usize]) -> Result<Vec<f32>, Error> {
        let found = self.tensor(name)?.shape.iter().product::<u64>() as usize;
        let length = if lengths.contains(&found) { found } else { lengths[0] };
        let (tensor, format) = self.checked(name, &[length])?;
        let mut values = vec![0.0; length];
        format.decode_row(&tensor.data, &mut values);
        Ok(values)
    }

    pub fn vector(&self, name: &str, lengths: &[usize]) -> Result<B::Vector, Error> {
        Ok(self.backend.vector(&self.values(name, lengths)?))
    }

    pub fn optional(&self, name: &str, lengths: &[usize]) -> Result<Option<B::Vector>, Error> {
        self.has(name).then(|| self.vector(name, lengths)).transpose()
    }

    /// `{name}.weight`, and `{name}.bias` of layer norms.
    pub fn norm(&self, name: &str, length: usize) -> Result<Norm<B>, Error> {
        Ok(Norm {
            weight: self.vector(&format!("{name}.weight"), &[length])?,
            bias: match self.config.arch.layer_norms {
                true => Some(self.vector(&format!("{name}.bias"), &[length])?),
                false => None,
            },
        })
    }

    /// A table of which a token reads one row, and its rows: any number, if none is given.
    pub fn table(
        &self,
        name: &str,
        rows: Option<usize>,
        columns: usize,
    ) -> Result<(B::Matrix, usize), Error> {
        let rows = match rows {
            Some(rows) => rows,
            None => self.tensor(name)?.shape.get(1).map_or(1, |n| *n as usize),
        };
        let active = self.active.get();
        let table = self.matrix(name, rows, columns)?;
        self.active.set(active);
        Ok((table, rows))
    }

    fn factors(&self, name: &str) -> Result<Option<Vec<f32>>, Error> {
        let Some(rope) = self.config.ropes.first() else { return Ok(None) };
        self.has(name).then(|| self.values(name, &[rope.channels / 2])).transpose()
    }

    /// `{name}.weight`, and `{name}.bias` if it is there.
    pub fn linear(&self, name: &str, rows: usize, columns: usize) -> Result<Linear<B>, Error> {
        self.linear_slice(name, Slice::whole(rows), columns)
    }

    pub fn linear_slice(&self, name: &str, slice: Slice, columns: usize) -> Result<Linear<B>, Error> {
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

/// The tensors of one block, by their names inside it.
pub(crate) struct LayerLoader<'a, B: Backend> {
    pub loader: &'a Loader<'a, B>,
    pub index: usize,
}

impl<B: Backend> LayerLoader<'_, B> {
    pub fn config(&self) -> &Config {
        self.loader.config
    }

    pub fn name(&self, part: &str) -> String {
        format!("blk.{}.{part}", self.index)
    }

    pub fn has(&self, part: &str) -> bool {
        self.loader.has(&self.name(part))
    }

    /// A tensor that is there and known not to matter.
    pub fn ignore(&self, part: &str) {
        self.loader.used.borrow_mut().insert(self.name(part));
    }

    pub fn linear(&self, part: &str, rows: usize, columns: usize) -> Result<Linear<B>, Error> {
        self.loader.linear(&self.name(part), rows, columns)
    }

    /// Neighbouring slices of one projection, each of that many rows.
    pub fn linear_parts<const N: usize>(
        &self,
        part: &str,
        rows: [usize; N],
        columns: usize,
    ) -> Result<[Linear<B>; N], Error> {
        let total = rows.iter().sum();
        let mut skip = 0;
        let mut parts = Vec::with_capacity(N);
        for rows in rows {
            parts.push(self.loader.linear_slice(&self.name(part), Slice { skip, rows, total }, columns)?);
            skip += rows;
        }
        Ok(parts.try_into().unwrap_or_else(|_| unreachable!("N parts")))
    }

    /// Projections whose rows lie mixed in one tensor, which the parts' rows make up.
    pub fn linear_rows<const N: usize>(
        &self,
        part: &str,
        parts: [Vec<usize>; N],
        columns: usize,
    ) -> Result<[Linear<B>; N], Error> {
        let total = parts.iter().map(Vec::len).sum();
        let name = self.name(&format!("{part}.weight"));
        let (tensor, format) = self.loader.checked(&name, &[columns, total])?;
        let row_bytes = format.row_bytes(columns);
        self.loader.active.set(self.loader.active.get() + tensor.data.len() as f64);
        Ok(parts.map(|rows| {
            let bytes = rows.iter().flat_map(|row| &tensor.data[row * row_bytes..][..row_bytes]);
            let bytes = bytes.copied().collect::<Vec<u8>>().into();
            let weight = self.backend().matrix(MatrixData { format, rows: rows.len(), columns, bytes });
            Linear { weight, bias: None, rows: rows.len() }
        }))
    }

    pub fn matrices(
        &self,
        part: &str,
        slice: Slice,
        columns: usize,
        count: usize,
        active: f64,
    ) -> Result<Vec<B::Matrix>, Error> {
        self.loader.matrices(&self.name(part), slice, columns, count, active)
    }

    pub fn values(&self, part: &str, lengths: &[usize]) -> Result<Vec<f32>, Error> {
        self.loader.values(&self.name(part), lengths)
    }

    pub fn vector(&self, part: &str, lengths: &[usize]) -> Result<B::Vector, Error> {
        self.loader.vector(&self.name(part), lengths)
    }

    pub fn optional(&self, part: &str, lengths: &[usize]) -> Result<Option<B::Vector>, Error> {
        self.loader.optional(&self.name(part), lengths)
    }

    /// A table of numbers: `[rows, columns]`.
    pub fn table(&self, part: &str, rows: usize, columns: usize) -> Result<Vec<f32>, Error> {
        let (tensor, format) = self.loader.checked(&self.name(part), &[columns, rows])?;
        let mut values = vec![0.0; rows * columns];
        let row_bytes = format.row_bytes(columns);
        for (row, values) in tensor.data.chunks_exact(row_bytes).zip(values.chunks_exact_mut(columns)) {
            format.decode_row(row, values);
        }
        Ok(values)
    }

    /// A norm as wide as the residual stream.
    pub fn norm(&self, part: &str) -> Result<Norm<B>, Error> {
        self.loader.norm(&self.name(part), self.config().embedding)
    }

    pub fn backend(&self) -> &B {
        self.loader.backend
    }
}
