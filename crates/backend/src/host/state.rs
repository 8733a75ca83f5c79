//! The state of recurrent layers in host memory, and the snapshots of it that a sequence can go back to.

use super::{Store, Tensor};
use crate::Segment;
use std::ops::Range;
use std::sync::Arc;
use torque_kv::{PageId, Sequence, Snapshots, Span, StateShape};
use torque_quant::FormatOps;

/// The state of one recurrent layer of one sequence.
pub struct State {
    /// The last inputs of the convolution, oldest first: `[kernel − 1, channels]`.
    pub conv: Vec<f32>,
    /// `[value_heads, key_dim, value_dim]`.
    pub matrix: Vec<f32>,
    shape: StateShape,
    /// Oldest first. Sequences that were forked share them.
    snapshots: Vec<Arc<Snapshot>>,
}

/// A state as it was after `position` tokens.
pub(super) struct Snapshot {
    position: usize,
    conv: Vec<f32>,
    format: &'static FormatOps,
    matrix: Vec<u8>,
}

impl Snapshot {
    /// The same in another format.
    fn in_format(&self, format: &'static FormatOps, values: usize) -> Snapshot {
        let mut matrix = vec![0.0; values];
        self.format.decode_row(&self.matrix, &mut matrix);
        Snapshot::of(self.position, &self.conv, &matrix, format)
    }

    fn of(position: usize, conv: &[f32], matrix: &[f32], format: &'static FormatOps) -> Snapshot {
        let mut bytes = vec![0; format.row_bytes(matrix.len())];
        format.encode_row(matrix, &mut bytes);
        Snapshot { position, conv: conv.to_vec(), format, matrix: bytes }
    }

    fn bytes(&self) -> usize {
        size_of_val(&*self.conv) + self.matrix.len()
    }
}

impl State {
    pub(super) fn new(shape: &StateShape) -> State {
        State {
            conv: vec![0.0; shape.conv.iter().product()],
            matrix: vec![0.0; shape.matrix.iter().product()],
            shape: *shape,
            snapshots: Vec::new(),
        }
    }

    /// Keeps only the snapshots that a sequence has, rounded as it says.
    fn age(&mut self, kept: &Snapshots) {
        self.snapshots.retain(|snapshot| kept.positions().contains(&snapshot.position));
        for snapshot in &mut self.snapshots {
            let rounded = kept.positions()[..kept.rounded()].contains(&snapshot.position);
            let format = StateShape::snapshot_format(rounded);
            if !std::ptr::eq(format, snapshot.format) {
                *snapshot = Arc::new(snapshot.in_format(format, self.matrix.len()));
            }
        }
    }

    /// Gives out all bytes: the state, then its snapshots, oldest first.
    pub(super) fn export(&self, mut put: impl FnMut(&[u8])) {
        let mut put_values = |values: &[f32]| values.iter().for_each(|x| put(&x.to_le_bytes()));
        put_values(&self.conv);
        put_values(&self.matrix);
        for snapshot in &self.snapshots {
            snapshot.conv.iter().for_each(|x| put(&x.to_le_bytes()));
            put(&snapshot.matrix);
        }
    }

    /// Takes in what [`State::export`] gave out, when these snapshots were kept.
    pub(super) fn import(&mut self, kept: &Snapshots, mut take: impl FnMut(&mut [u8])) {
        fn values(out: &mut [f32], take: &mut impl FnMut(&mut [u8])) {
            for x in out {
                let mut bytes = [0; 4];
                take(&mut bytes);
                *x = f32::from_le_bytes(bytes);
            }
        }
        values(&mut self.conv, &mut take);
        values(&mut self.matrix, &mut take);
        let snapshots = kept.positions().iter().enumerate().map(|(i, &position)| {
            let format = StateShape::snapshot_format(i < kept.rounded());
            let mut conv = vec![0.0; self.conv.len()];
            values(&mut conv, &mut take);
            let mut matrix = vec![0; format.row_bytes(self.matrix.len())];
            take(&mut matrix);
            Arc::new(Snapshot { position, conv, format, matrix })
        });
        self.snapshots = snapshots.collect();
    }

    /// The inputs of the convolution over `rows`, those before the first row included.
    pub fn inputs<'a>(conv: &'a [f32], inputs: &'a Tensor, rows: &Range<usize>) -> Vec<&'a [f32]> {
        conv.chunks_exact(inputs.width()).chain(rows.clone().map(|row| inputs.row(row))).collect()
    }

    /// Moves the convolution on over `rows`.
    fn shift(&mut self, inputs: &Tensor, rows: &Range<usize>) {
        let [kept, channels] = self.shape.conv;
        let new = rows.len().min(kept);
        self.conv.copy_within(new * channels.., 0);
        for (row, out) in rows.clone().rev().zip(self.conv.chunks_exact_mut(channels).rev()) {
            out.copy_from_slice(inputs.row(row));
        }
    }
}

impl Store {
    /// Runs a recurrent layer over a segment, whose `inputs` are those of its convolution: `run(state, rows)` moves
    /// the matrix on over some rows, and is called again for those that follow a snapshot.
    pub fn recur(
        &mut self,
        layer: usize,
        segment: &Segment,
        inputs: &Tensor,
        mut run: impl FnMut(&mut State, Range<usize>),
    ) {
        let state = &mut self.states[segment.sequence.slot][layer];
        assert_eq!(inputs.width(), state.shape.conv[1], "channels of layer {layer}");
        let snapshots = segment.sequence.snapshots();
        state.age(snapshots);
        let (start, rows) = (segment.position(), segment.rows.clone());
        let boundary = snapshots.positions().last().copied().filter(|&position| position > start);
        let cut = boundary.map_or(rows.start, |boundary| rows.start + boundary - start);
        for piece in [rows.start..cut, cut..rows.end] {
            if piece.is_empty() {
                continue;
            }
            run(state, piece.clone());
            state.shift(inputs, &piece);
            if let Some(position) = boundary
                && piece.end == cut
            {
                let format = StateShape::snapshot_format(false);
                let snapshot = Snapshot::of(position, &state.conv, &state.matrix, format);
                state.snapshots.push(Arc::new(snapshot));
            }
        }
    }

    /// Keeps the snapshot that a sequence has at the end of a page with the page.
    pub fn keep_state(&mut self, sequence: &Sequence, span: Span) {
        let end = span.start + span.len;
        let at_end = |state: &State| {
            let snapshot = state.snapshots.iter().find(|snapshot| snapshot.position == end);
            snapshot.expect("a sequence names snapshots that are there").clone()
        };
        self.kept_states.insert(span.page, self.states[sequence.slot].iter().map(at_end).collect());
    }

    /// Makes the state of a sequence what is kept with the page it ends with.
    pub fn take_state(&mut self, sequence: &Sequence, page: PageId) {
        for (state, kept) in self.states[sequence.slot].iter_mut().zip(&self.kept_states[&page]) {
            state.snapshots = vec![kept.clone()];
        }
        self.rewind(sequence);
    }

    /// Frees what is kept with pages.
    pub fn drop_states(&mut self, pages: &[PageId]) {
        self.kept_states.retain(|page, _| !pages.contains(page));
    }

    /// Takes the state of a sequence that was truncated or cleared back to its length.
    pub fn rewind(&mut self, sequence: &Sequence) {
        for state in &mut self.states[sequence.slot] {
            state.age(sequence.snapshots());
            match state.snapshots.last() {
                Some(snapshot) => {
                    assert_eq!(snapshot.position, sequence.len(), "a sequence goes back to a snapshot");
                    state.conv.copy_from_slice(&snapshot.conv);
                    snapshot.format.decode_row(&snapshot.matrix, &mut state.matrix);
                }
                None => {
                    assert!(sequence.is_empty(), "a sequence without a snapshot starts over");
                    state.conv.fill(0.0);
                    state.matrix.fill(0.0);
                }
            }
        }
    }

    /// Copies the states of one slot to another.
    pub(super) fn copy_states(&mut self, from: usize, to: usize) {
        let [from, to] = self.states.get_disjoint_mut([from, to]).expect("two slots of this store");
        for (from, to) in from.iter().zip(to) {
            to.conv.copy_from_slice(&from.conv);
            to.matrix.copy_from_slice(&from.matrix);
            to.snapshots.clone_from(&from.snapshots);
        }
    }

    /// (snapshots, states) in bytes. What sequences share counts once.
    pub(super) fn state_bytes(&self) -> (usize, usize) {
        let states = || self.states.iter().flatten();
        let kept = self.kept_states.values().flatten();
        let mut snapshots: Vec<&Arc<Snapshot>> = states().flat_map(|s| &s.snapshots).chain(kept).collect();
        snapshots.sort_by_key(|snapshot| Arc::as_ptr(snapshot));
        snapshots.dedup_by_key(|snapshot| Arc::as_ptr(snapshot));
        (snapshots.iter().map(|s| s.bytes()).sum(), states().map(|state| state.shape.bytes()).sum())
    }
}
