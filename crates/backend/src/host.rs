//! What the backends in host memory share: tensors, and the bytes of the KV cache.

mod saved;
mod state;
mod turn;

pub use state::State;

use crate::{Angles, MatrixData, Segment};
use half::f16;
use state::Snapshot;
use std::collections::BTreeMap;
use std::sync::Arc;
use torque_kv::{Age, Freed, LayerPlan, PageId, Plan, Sequence, Side, SidePlan, Span, centred};
use torque_quant::attend::whole::{plane_bytes, planes_apart, tile, tiled, untile};
use torque_quant::format::PLANES_MAX;
use torque_quant::{FormatOps, rotate};

/// Activations: `[rows, width]`, contiguous.
#[derive(Clone, Debug, Default)]
pub struct Tensor {
    width: usize,
    data: Vec<f32>,
}

impl Tensor {
    /// Room for `capacity` values.
    pub fn new(capacity: usize) -> Tensor {
        Tensor { width: 1, data: Vec::with_capacity(capacity) }
    }

    /// A tensor of these rows.
    pub fn from_rows(width: usize, data: &[f32]) -> Tensor {
        assert_eq!(data.len() % width, 0, "whole rows");
        Tensor { width, data: data.to_vec() }
    }

    /// Makes it `[rows, width]`.
    pub fn reshape(&mut self, rows: usize, width: usize) {
        assert!(rows * width <= self.data.capacity(), "[{rows}, {width}] in {} values", self.data.capacity());
        self.data.resize(rows * width, 0.0);
        self.width = width;
    }

    /// Values in a row.
    pub fn width(&self) -> usize {
        self.width
    }

    /// Rows in use.
    pub fn rows(&self) -> usize {
        self.data.len() / self.width
    }

    /// All rows.
    pub fn data(&self) -> &[f32] {
        &self.data
    }

    /// All rows.
    pub fn data_mut(&mut self) -> &mut [f32] {
        &mut self.data
    }

    /// One row.
    pub fn row(&self, row: usize) -> &[f32] {
        &self.data[row * self.width..][..self.width]
    }

    /// One row.
    pub fn row_mut(&mut self, row: usize) -> &mut [f32] {
        &mut self.data[row * self.width..][..self.width]
    }
}

impl MatrixData {
    /// The bytes of one row.
    pub fn row(&self, row: usize) -> &[u8] {
        let bytes = self.format.row_bytes(self.columns);
        &self.bytes[row * bytes..][..bytes]
    }
}

/// A part: keys or values of one layer in one page, for every KV head its mean (f16, if the format is
/// centred) and then its values `[tokens, head_dim]` in blocks of the format.
#[derive(Clone)]
pub struct Part {
    /// What the values are sealed in.
    pub format: &'static FormatOps,
    bytes: Box<[u8]>,
    /// Bit planes of a nested format in tiles, the finest last: for every KV head those of its values.
    planes: Vec<Box<[u8]>>,
}

/// One head of a part or of a tail.
#[derive(Clone, Copy)]
pub struct Stored<'a> {
    /// What its values are stored in.
    pub format: &'static FormatOps,
    /// Of a part, the page mean (f16; empty if the format is not centred), of [`SidePlan::mean_bytes`], and blocks.
    pub bytes: &'a [u8],
    /// [`torque_quant::attend::Part::planes`].
    pub planes: [&'a [u8]; PLANES_MAX],
}

impl Part {
    fn new(side: &SidePlan, format: &'static FormatOps, tokens: usize) -> Part {
        let planes = planes_apart(format, tokens, side.head_dim);
        let plane = vec![0; side.heads * plane_bytes(tokens, side.head_dim)].into_boxed_slice();
        let bytes = vec![0; side.part_bytes(format, tokens) - planes * plane.len()].into_boxed_slice();
        Part { format, bytes, planes: vec![plane; planes] }
    }

    /// One head.
    pub fn head(&self, side: &SidePlan, head: usize) -> Stored<'_> {
        let of_head = |bytes: &'_ [u8]| {
            let size = bytes.len() / side.heads;
            head * size..(head + 1) * size
        };
        let mut planes = [&[][..]; PLANES_MAX];
        planes.iter_mut().zip(&self.planes).for_each(|(to, plane)| *to = &plane[of_head(plane)]);
        Stored { format: self.format, bytes: &self.bytes[of_head(&self.bytes)], planes }
    }

    /// Jobs that encode every head of what a side is stored in now, `from(head)`.
    fn seal<'a>(
        &'a mut self,
        side: &'a SidePlan,
        tokens: usize,
        from: impl Fn(usize) -> Stored<'a> + 'a,
    ) -> impl Iterator<Item = SealJob<'a>> {
        let (format, size) = (self.format, self.bytes.len() / side.heads);
        let heads = self.bytes.chunks_exact_mut(size).enumerate();
        let planes = self.planes.iter_mut();
        let mut planes: Vec<_> =
            planes.map(|plane| plane.chunks_exact_mut(plane.len() / side.heads)).collect();
        heads.map(move |(head, out)| SealJob {
            side,
            tokens,
            from: from(head),
            gain: 1.0,
            turn: None,
            format,
            out,
            planes: planes.iter_mut().map(|heads| heads.next().expect("a plane has all heads")).collect(),
        })
    }

    /// Makes it one of a format that [begins](FormatOps::begins) its own: nothing is decoded.
    fn narrow(&mut self, side: &SidePlan, format: &'static FormatOps) {
        if self.planes.is_empty() {
            let [from, to] = [self.format, format].map(|format| format.head_block(side.head_dim).1);
            let mut bytes = Vec::with_capacity(self.bytes.len());
            for head in self.bytes.chunks_exact(self.bytes.len() / side.heads) {
                let (mean, blocks) = head.split_at(side.mean_bytes(format));
                bytes.extend_from_slice(mean);
                blocks.chunks_exact(from).for_each(|block| bytes.extend_from_slice(&block[..to]));
            }
            self.bytes = bytes.into_boxed_slice();
        } else {
            self.planes.truncate(format.planes.unwrap_or(0));
        }
        self.format = format;
    }

    /// All that it stores, as it is saved.
    fn buffers(&self) -> impl Iterator<Item = &[u8]> {
        [&self.bytes].into_iter().chain(&self.planes).map(|buffer| &**buffer)
    }

    fn buffers_mut(&mut self) -> impl Iterator<Item = &mut [u8]> {
        [&mut self.bytes].into_iter().chain(&mut self.planes).map(|buffer| &mut **buffer)
    }

    /// Bytes of the part.
    pub fn bytes(&self) -> usize {
        self.buffers().map(<[u8]>::len).sum()
    }
}

/// One head of a part to be sealed. Jobs are independent: a backend runs them on any thread.
pub struct SealJob<'a> {
    side: &'a SidePlan,
    tokens: usize,
    /// What it is now.
    from: Stored<'a>,
    /// What is divided by first, but for the mean: how much longer than the exact values it is, and for a page that
    /// others outlive in more bits, how much longer it will be.
    gain: f32,
    /// By what keys are turned on the way.
    turn: Option<Angles<'a>>,
    format: &'static FormatOps,
    out: &'a mut [u8],
    planes: Vec<&'a mut [u8]>,
}

impl SealJob<'_> {
    /// Encodes the head; `encode` is [`FormatOps::encode_blocks`] or does the same.
    pub fn run(&mut self, encode: impl Fn(&FormatOps, &[f32], usize, &mut [u8])) {
        let mut values = vec![0.0; self.tokens * self.side.head_dim];
        unseal_head(self.side, self.from, self.gain, &mut values);
        if let Some(angles) = &self.turn {
            turn::keys(self.side, angles, &mut values);
        }
        let blocks = take_mean(self.side, self.format, &mut values, self.out);
        let (block, bytes) = self.format.head_block(self.side.head_dim);
        if tiled(self.format.rotation, self.tokens, self.side.head_dim) {
            let mut rows = vec![0; values.len() / block * bytes];
            encode(self.format, &values, block, &mut rows);
            tile(&rows, bytes, self.side.head_dim / block, blocks, &mut self.planes);
        } else {
            encode(self.format, &values, block, blocks);
        }
    }
}

/// Decodes what a [`SealJob`] has encoded, `[tokens, head_dim]`: the values divided by a gain, which is 1 for what attention
/// sees, with their mean, rotated if the side is.
pub fn unseal_head(side: &SidePlan, stored: Stored, gain: f32, out: &mut [f32]) {
    let Stored { format, bytes, planes } = stored;
    let (mean, blocks) = bytes.split_at(side.mean_bytes(format));
    if mean.is_empty() {
        return format.decode_row(blocks, out);
    }
    let (block, bytes) = format.head_block(side.head_dim);
    let mut rows = Vec::new();
    let blocks = if tiled(format.rotation, out.len() / side.head_dim, side.head_dim) {
        rows.resize(out.len() / block * bytes, 0);
        untile(blocks, &planes[..format.planes.unwrap_or(0)], bytes, side.head_dim / block, &mut rows);
        &rows
    } else {
        blocks
    };
    for (block, out) in blocks.chunks_exact(bytes).zip(out.chunks_mut(block)) {
        (format.decode)(block, out);
    }
    for row in out.chunks_exact_mut(side.head_dim) {
        for (x, m) in row.iter_mut().zip(mean.as_chunks::<2>().0) {
            *x = *x / gain + f16::from_le_bytes(*m).to_f32();
        }
    }
}

/// Takes the mean out of one head's `values [tokens, head_dim]` if the format is centred, and writes it to where the head
/// is sealed. Returns where its blocks belong.
fn take_mean<'a>(side: &SidePlan, format: &FormatOps, values: &mut [f32], out: &'a mut [u8]) -> &'a mut [u8] {
    let (mean_out, blocks) = out.split_at_mut(side.mean_bytes(format));
    if centred(format) {
        let tokens = (values.len() / side.head_dim) as f32;
        let mut mean = vec![0.0f32; side.head_dim];
        for row in values.chunks_exact(side.head_dim) {
            mean.iter_mut().zip(row).for_each(|(m, x)| *m += x);
        }
        for (m, out) in mean.iter_mut().zip(mean_out.as_chunks_mut::<2>().0) {
            // The mean that is taken out is the one that is stored, so its rounding costs nothing.
            let stored = f16::from_f32((*m / tokens).clamp(-65504.0, 65504.0));
            (*m, *out) = (stored.to_f32(), stored.to_le_bytes());
        }
        for row in values.chunks_exact_mut(side.head_dim) {
            row.iter_mut().zip(&mean).for_each(|(x, m)| *x -= m);
        }
    }
    blocks
}

/// The newest tokens of one side of one layer: `[heads, capacity, head_dim]` in [`SidePlan::exact`].
pub struct Tail {
    side: SidePlan,
    rotation: Option<rotate::Head>,
    capacity: usize,
    bytes: Box<[u8]>,
}

impl Tail {
    fn new(side: &SidePlan, capacity: usize) -> Tail {
        let rotation = side.rotated.then(|| rotate::Head::new(side.head_dim).expect("checked by Plan::new"));
        let bytes = vec![0; side.tail_token_bytes() * capacity].into_boxed_slice();
        Tail { side: side.clone(), rotation, capacity, bytes }
    }

    fn row_bytes(&self) -> usize {
        self.side.exact.row_bytes(self.side.head_dim)
    }

    /// Rows `start..start + tokens` of one head.
    pub fn rows(&self, head: usize, start: usize, tokens: usize) -> &[u8] {
        let row = self.row_bytes();
        &self.bytes[(head * self.capacity + start) * row..][..tokens * row]
    }

    /// The same as they are sealed from.
    pub fn stored(&self, head: usize, start: usize, tokens: usize) -> Stored<'_> {
        let planes = [&[][..]; PLANES_MAX];
        Stored { format: self.row_format(), bytes: self.rows(head, start, tokens), planes }
    }

    /// The rotation of its heads, if they are stored rotated.
    pub fn rotation(&self) -> Option<&rotate::Head> {
        self.rotation.as_ref()
    }

    /// What rows are stored in.
    pub fn row_format(&self) -> &'static FormatOps {
        self.side.exact
    }

    /// The storage of all heads, and the bytes of one head's.
    pub fn heads_mut(&mut self) -> (&mut [u8], usize) {
        let size = self.capacity * self.row_bytes();
        (&mut self.bytes, size)
    }

    /// Writes tokens `[heads, head_dim]` as rows `first..`.
    fn write<'a>(&mut self, first: usize, tokens: impl Iterator<Item = &'a [f32]>) {
        let (head_dim, size, format) = (self.side.head_dim, self.row_bytes(), self.side.exact);
        for (row, token) in (first..).zip(tokens) {
            assert!(row < self.capacity, "tail row {row} of {}", self.capacity);
            for (head, values) in token.chunks_exact(head_dim).enumerate() {
                let mut values = values.to_vec();
                if let Some(rotation) = &self.rotation {
                    rotation.forward(&mut values);
                }
                format.encode_row(&values, &mut self.bytes[(head * self.capacity + row) * size..][..size]);
            }
        }
    }

    /// Drops the first `tokens` of `len` rows.
    fn drop_front(&mut self, tokens: usize, len: usize) {
        let row = self.row_bytes();
        for head in self.bytes.chunks_exact_mut(self.capacity * row) {
            head.copy_within(tokens * row..len * row, 0);
        }
    }
}

/// The bytes of a KV cache in host memory.
pub struct Store {
    /// The plan it was made for.
    pub plan: Plan,
    /// `[slot][layer][side]`, as [`LayerPlan::sides`].
    tails: Vec<Vec<Vec<Tail>>>,
    /// What attention has added, by page.
    mass: Vec<f32>,
    /// `[page][layer][side]`, as [`LayerPlan::sides`].
    pages: Vec<Vec<Option<Vec<Part>>>>,
    /// `[slot][recurrent layer]`.
    states: Vec<Vec<State>>,
    /// Snapshots that are kept with pages: of every recurrent layer one.
    kept_states: BTreeMap<PageId, Vec<Arc<Snapshot>>>,
}

impl Store {
    /// An empty cache.
    pub fn new(plan: &Plan, sequences: usize, batch: usize) -> Store {
        let capacity = plan.tail_capacity(batch);
        let of_layer = |layer: &LayerPlan| layer.sides.iter().map(|s| Tail::new(s, capacity)).collect();
        let tails = (0..sequences).map(|_| plan.layers.iter().map(of_layer).collect()).collect();
        let states = (0..sequences).map(|_| plan.states.iter().map(State::new).collect()).collect();
        Store {
            plan: plan.clone(),
            tails,
            mass: Vec::new(),
            pages: Vec::new(),
            states,
            kept_states: BTreeMap::new(),
        }
    }

    /// The tail a side of one layer is read from.
    pub fn tail(&self, slot: usize, layer: usize, side: Side) -> &Tail {
        &self.tails[slot][layer][self.plan.layers[layer].place(side)]
    }

    /// The sealed part a side of one layer is read from.
    pub fn part(&self, span: Span, layer: usize, side: Side) -> &Part {
        let parts = self.pages[span.page.0 as usize][layer].as_ref();
        &parts.expect("a sequence holds only pages that are there")[self.plan.layers[layer].place(side)]
    }

    /// Adds to the mass of a page.
    pub fn add_mass(&mut self, page: PageId, mass: f32) {
        let page = page.0 as usize;
        self.mass.resize(self.mass.len().max(page + 1), 0.0);
        self.mass[page] += mass;
    }

    /// The mass of every page since it was taken last.
    pub fn take_mass(&mut self) -> Vec<f32> {
        std::mem::take(&mut self.mass)
    }

    /// The tails of one layer: K, then V unless values lie in the keys.
    pub fn tails_mut(&mut self, slot: usize, layer: usize) -> &mut [Tail] {
        &mut self.tails[slot][layer]
    }

    /// Writes a segment's keys and values to its tail.
    pub fn append(&mut self, layer: usize, segment: &Segment, k: &Tensor, v: &Tensor) {
        let first = segment.position() - segment.sequence.tail_start();
        for (tail, tokens) in self.tails_mut(segment.sequence.slot, layer).iter_mut().zip([k, v]) {
            tail.write(first, segment.rows.clone().map(|row| tokens.row(row)));
        }
    }

    /// Encodes the first rows of a tail as a page and drops them from the tail. `run` runs the jobs.
    pub fn seal(&mut self, sequence: &Sequence, span: Span, run: impl FnOnce(&mut [SealJob])) {
        let page = span.page.0 as usize;
        if self.pages.len() <= page {
            self.pages.resize_with(page + 1, Vec::new);
        }
        let age = self.plan.new_age(span.start);
        let tails = &mut self.tails[sequence.slot];
        let part = |side: &SidePlan| Part::new(side, side.page_format(age), span.len);
        let mut parts: Vec<Vec<Part>> =
            self.plan.layers.iter().map(|layer| layer.sides.iter().map(part).collect()).collect();
        let mut jobs = Vec::new();
        for (tail, part) in tails.iter().flatten().zip(parts.iter_mut().flatten()) {
            jobs.extend(part.seal(&tail.side, span.len, |head| tail.stored(head, 0, span.len)));
        }
        run(&mut jobs);
        self.pages[page] = parts.into_iter().map(Some).collect();
        // The sequence has moved the page out of its tail; the rows are still here.
        let rows = sequence.tail_len() + span.len;
        tails.iter_mut().flatten().for_each(|tail| tail.drop_front(span.len, rows));
    }

    /// Encodes a page again, as one of that tier, or leaves out planes where that does it. `run` runs the jobs.
    pub fn reseal(&mut self, page: PageId, tier: usize, run: impl FnOnce(&mut [SealJob])) {
        let (age, tokens) = (Age::Tier(tier), self.plan.page);
        let layers = self.plan.layers.iter().zip(&mut self.pages[page.0 as usize]);
        let parts = layers.flat_map(|(layer, parts)| layer.sides.iter().zip(parts.iter_mut().flatten()));
        let mut resealed = Vec::new();
        for (side, part) in parts {
            let format = side.page_format(age);
            if format.begins(part.format) {
                part.narrow(side, format);
            } else if !std::ptr::eq(format, part.format) {
                resealed.push((Part::new(side, format, tokens), side, part));
            }
        }
        let mut jobs = Vec::new();
        for (new, side, part) in &mut resealed {
            let (side, part): (&SidePlan, &Part) = (side, part);
            // The longer vectors that serve best where all pages are alike (formats' gains) do harm where others are
            // more exact: noisy scores add weight already. What is sealed again gets its own length.
            let gain = part.format.gain * new.format.gain;
            let of_part = new.seal(side, tokens, |head| part.head(side, head));
            jobs.extend(of_part.map(|job| SealJob { gain, ..job }));
        }
        run(&mut jobs);
        for (new, _, part) in resealed {
            *part = new;
        }
    }

    /// Frees parts.
    pub fn free(&mut self, freed: &[Freed]) {
        for freed in freed {
            // A page whose import was given up may not be there.
            let parts = self.pages.get_mut(freed.page.0 as usize).into_iter().flatten();
            for (layer, parts) in self.plan.layers.iter().zip(parts) {
                if layer.window_class == freed.window_class {
                    *parts = None;
                }
            }
        }
    }

    /// Copies a tail, and the state of recurrent layers, to another slot.
    pub fn copy_tail(&mut self, from: &Sequence, to_slot: usize) {
        let from_slot = from.slot;
        if from_slot == to_slot {
            return;
        }
        let [from, to] = self.tails.get_disjoint_mut([from_slot, to_slot]).expect("two slots of this store");
        for (from, to) in from.iter().flatten().zip(to.iter_mut().flatten()) {
            to.bytes.copy_from_slice(&from.bytes);
        }
        self.copy_states(from_slot, to_slot);
    }

    /// (sealed pages and snapshots, tails and states) in bytes.
    pub fn bytes(&self) -> (usize, usize) {
        let pages: usize = self.pages.iter().flatten().flatten().flatten().map(Part::bytes).sum();
        let tails: usize = self.tails.iter().flatten().flatten().map(|t| t.bytes.len()).sum();
        let (snapshots, states) = self.state_bytes();
        (pages + snapshots, tails + states)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use torque_kv::{KvLayer, Pages, Policy, Tier};

    /// Narrowing a page gives back its planes. Nothing is encoded, and what is left stays where it is.
    #[test]
    fn planes_are_dropped_where_they_lie() {
        let layer = KvLayer { heads: 2, head_dim: [128; 2], values_in_keys: false, window: None };
        let tier = |name: &str| Tier { percent: 40, k: Some(name.into()), v: Some(name.into()) };
        let tiers = vec![tier("turbo3_nested"), tier("turbo2_nested")];
        let policy = Policy { tiers, ..Policy::uniform("turbo4_nested", "turbo4_nested").bare() };
        let plan = Plan::new(&policy, &[layer]).unwrap();
        let (mut store, mut sequence) = (Store::new(&plan, 1, 128), Sequence::new(&plan, 0));
        sequence.append(128);
        let span = sequence.seal(&plan, &mut Pages::default()).unwrap();
        store.seal(&sequence, span, |jobs| assert_eq!(jobs.len(), 4));
        let common = |store: &Store| store.part(span, 0, Side::K).bytes.as_ptr();
        let (place, whole) = (common(&store), store.bytes().0);
        for tier in [1, 2] {
            store.reseal(span.page, tier, |jobs| assert!(jobs.is_empty()));
            assert_eq!(common(&store), place);
            assert_eq!(store.bytes().0, whole - tier * 2 * 2 * 128 * 128 / 8);
            assert_eq!(store.bytes().0, plan.page_bytes(Age::Tier(tier), 0));
        }
    }
}
