//! The state of recurrent layers: its size, and at which positions a sequence keeps copies of it.

use crate::Plan;
use torque_quant::{FormatOps, by_name};

/// The state of one recurrent layer, in `f32`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StateShape {
    /// The last inputs of its convolution: `[kernel − 1, channels]`.
    pub conv: [usize; 2],
    /// What it remembers: `[value_heads, key_dim, value_dim]`.
    pub matrix: [usize; 3],
}

/// How many of the newest snapshots are exact. Older ones are rounded to 8 bits.
pub const EXACT_SNAPSHOTS: usize = 2;

impl StateShape {
    /// Bytes of the state.
    pub fn bytes(&self) -> usize {
        4 * (self.conv.iter().product::<usize>() + self.matrix.iter().product::<usize>())
    }

    /// What the matrix of a snapshot is stored in. The convolution's inputs are few, and stay exact.
    pub fn snapshot_format(rounded: bool) -> &'static FormatOps {
        by_name(if rounded { "q8_0" } else { "f32" }).expect("both are listed")
    }

    /// Bytes of a snapshot.
    pub fn snapshot_bytes(&self, rounded: bool) -> usize {
        let values = self.matrix.iter().product::<usize>();
        4 * self.conv.iter().product::<usize>() + StateShape::snapshot_format(rounded).row_bytes(values)
    }
}

/// Positions at which copies of a sequence's recurrent state are kept. A backend keeps the copies.
///
/// A pass takes at most one, at the last page boundary it reaches. When there are too many, the one whose
/// neighbours are closest goes, the exact ones excepted: the others spread over the whole sequence.
#[derive(Clone, Debug)]
pub struct Snapshots {
    /// Oldest first.
    positions: Vec<usize>,
    /// How many of them, the oldest, are rounded. What is rounded stays so, also when newer ones are gone.
    rounded: usize,
    /// How many there may be, if there are recurrent layers.
    most: Option<usize>,
    page: usize,
}

impl Snapshots {
    pub(crate) fn new(plan: &Plan) -> Snapshots {
        let most = (!plan.states.is_empty()).then_some(plan.snapshots);
        Snapshots { positions: Vec::new(), rounded: 0, most, page: plan.page }
    }

    pub(crate) fn restored(plan: &Plan, positions: &[usize], rounded: usize) -> Snapshots {
        Snapshots { positions: positions.to_vec(), rounded, ..Snapshots::new(plan) }
    }

    /// The positions, oldest first.
    pub fn positions(&self) -> &[usize] {
        &self.positions
    }

    /// How many of them, the oldest, are rounded.
    pub fn rounded(&self) -> usize {
        self.rounded
    }

    /// A pass from position `from` to position `to`.
    pub(crate) fn pass(&mut self, from: usize, to: usize) {
        let (boundary, most) = (to / self.page * self.page, self.most.unwrap_or(0));
        if most == 0 || boundary <= from {
            return;
        }
        self.positions.push(boundary);
        if self.positions.len() > most {
            let gap = |i: usize| {
                let before = if i == 0 { 0 } else { self.positions[i - 1] };
                self.positions[i + 1] - before
            };
            let candidates = 0..most.saturating_sub(EXACT_SNAPSHOTS - 1).max(1);
            let dropped = candidates.min_by_key(|&i| gap(i)).expect("there is one at least");
            self.positions.remove(dropped);
            self.rounded -= usize::from(dropped < self.rounded);
        }
        self.rounded = self.rounded.max(self.positions.len().saturating_sub(EXACT_SNAPSHOTS));
    }

    /// The position a sequence that shall go back to `to` goes back to.
    pub(crate) fn before(&self, to: usize) -> usize {
        if self.most.is_none() {
            return to;
        }
        self.positions.iter().copied().rfind(|&position| position <= to).unwrap_or(0)
    }

    /// Forgets those before position `from`: nobody goes back there any more.
    pub(crate) fn forget(&mut self, from: usize) {
        let gone = self.positions.iter().take_while(|position| **position < from).count();
        self.positions.drain(..gone);
        self.rounded = self.rounded.saturating_sub(gone);
    }

    /// Forgets those after position `to`.
    pub(crate) fn truncate(&mut self, to: usize) {
        self.positions.retain(|&position| position <= to && to > 0);
        self.rounded = self.rounded.min(self.positions.len());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn snapshots(most: usize) -> Snapshots {
        Snapshots { positions: Vec::new(), rounded: 0, most: Some(most), page: 16 }
    }

    #[test]
    fn a_pass_leaves_one_at_the_last_boundary() {
        let mut kept = snapshots(8);
        for (from, to) in [(0, 10), (10, 15), (15, 16), (16, 17), (17, 70), (70, 79), (79, 96)] {
            kept.pass(from, to);
        }
        assert_eq!(kept.positions(), [16, 64, 96]);
        assert_eq!([15, 16, 95, 96, 200].map(|to| kept.before(to)), [0, 16, 64, 96, 96]);
        kept.truncate(64);
        assert_eq!(kept.positions(), [16, 64]);
        kept.truncate(0);
        assert!(kept.positions().is_empty());
    }

    #[test]
    fn what_lies_before_forgotten_tokens_is_forgotten() {
        let mut kept = snapshots(5);
        (0..5).for_each(|page| kept.pass(16 * page, 16 * (page + 1)));
        assert_eq!((kept.positions(), kept.rounded()), (&[16, 32, 48, 64, 80][..], 3));
        kept.forget(40);
        assert_eq!((kept.positions(), kept.rounded()), (&[48, 64, 80][..], 1));
        kept.forget(80);
        assert_eq!((kept.positions(), kept.rounded()), (&[80][..], 0));
    }

    #[test]
    fn without_recurrent_layers_there_are_none() {
        let (mut none, mut not_needed) = (snapshots(0), Snapshots { most: None, ..snapshots(0) });
        none.pass(0, 100);
        not_needed.pass(0, 100);
        assert_eq!((none.positions(), none.before(37)), (&[][..], 0));
        assert_eq!((not_needed.positions(), not_needed.before(37)), (&[][..], 37));
    }

    #[test]
    fn many_spread_over_the_whole_sequence() {
        for most in 1..10 {
            let mut kept = snapshots(most);
            for page in 0..200 {
                kept.pass(16 * page, 16 * (page + 1));
                let positions = kept.positions();
                assert_eq!(positions.len(), most.min(page + 1));
                assert!(positions.is_sorted_by(|a, b| a < b));
                // The newest two are those of the last two pages.
                let newest = positions.iter().rev().take(EXACT_SNAPSHOTS);
                assert!(newest.enumerate().all(|(i, p)| *p == 16 * (page + 1 - i)), "{positions:?}");
                // No gap is much wider than an even spread would leave.
                let ends = [0].into_iter().chain(positions.iter().copied());
                let widest = ends.zip(positions).map(|(a, b)| b - a).max().unwrap_or(0);
                let even = 16 * (page + 1) / most;
                assert!(most < 4 || widest <= 4 * even + 16, "{most}, page {page}: {positions:?}");
            }
        }
    }
}
