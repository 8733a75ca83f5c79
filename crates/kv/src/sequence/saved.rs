//! A sequence as it is written to disk: what it holds, without the bytes and without the numbers of its pages, which
//! are others when it is read again.

use super::{PageId, Pages, Sequence, Span};
use crate::{Age, EXACT_SNAPSHOTS, Plan, Snapshots};
use serde::{Deserialize, Serialize};
use std::ops::Range;

/// What a sequence holds.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SavedSequence {
    /// Tokens, sealed and open, and those that are forgotten.
    pub len: usize,
    /// Tokens of every sealed span, from position 0 on, without gaps but for the one that [`Gap`] tells.
    spans: Vec<usize>,
    /// First span still held, for each window class.
    held: Vec<usize>,
    /// What the spans are sealed in that some class still holds: the last ones.
    ages: Vec<Age>,
    /// How much attention those get, as the bits of an f32; empty if nothing depends on it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    masses: Vec<u32>,
    /// Where copies of the recurrent state are, oldest first.
    snapshots: Vec<usize>,
    /// How many of them, the oldest, are rounded.
    rounded: usize,
    /// What is forgotten.
    #[serde(default, skip_serializing_if = "Gap::is_none")]
    gap: Gap,
}

/// The tokens that a sequence has forgotten.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Gap {
    /// Spans before them.
    kept: usize,
    /// How many there are.
    tokens: usize,
    /// How far those before have moved up.
    moved: usize,
}

impl Gap {
    fn is_none(&self) -> bool {
        self.tokens == 0
    }
}

/// Bytes that are saved together: a backend exports and imports them, of the length that [`SavedSequence::sections`] says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Section {
    /// A page's parts in layers of one window class: layer by layer, K, then V.
    Page {
        /// Which of the sequence's spans, [`Sequence::span`].
        span: usize,
        /// The class, an index into [`Plan::windows`].
        window_class: usize,
        /// What it is sealed in.
        age: Age,
    },
    /// The rows of the tail that are in use: layer by layer, K, then V, head by head.
    Tail,
    /// The state of one recurrent layer, then its snapshots, oldest first: of each, the inputs of the convolution, then
    /// the matrix.
    State {
        /// Ordinal among the recurrent layers.
        layer: usize,
    },
}

/// A saved sequence that no sequence of this plan can be.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct BadSequence(&'static str);

impl SavedSequence {
    /// What is saved of it, in this order, with the bytes of each; an error if it contradicts itself or the plan.
    pub fn sections(&self, plan: &Plan) -> Result<Vec<(Section, usize)>, BadSequence> {
        self.check(plan)?;
        let pages = self.aged().flat_map(|(span, age)| {
            let held = (0..self.held.len()).filter(move |class| self.held[*class] <= span);
            held.map(move |window_class| {
                (Section::Page { span, window_class, age }, plan.page_bytes(age, window_class))
            })
        });
        let tail = self.held_tokens() - self.spans.iter().sum::<usize>();
        let tail = (Section::Tail, plan.tail_token_bytes() * tail);
        let states = plan.states.iter().enumerate().map(|(layer, state)| {
            let snapshots = (0..self.snapshots.len()).map(|i| state.snapshot_bytes(i < self.rounded));
            (Section::State { layer }, state.bytes() + snapshots.sum::<usize>())
        });
        Ok(pages.chain([tail]).chain(states).collect())
    }

    /// Tokens without those that are forgotten.
    pub fn held_tokens(&self) -> usize {
        self.len - self.gap.tokens
    }

    /// The places of a span's tokens in the text.
    pub fn places(&self, span: usize) -> Range<usize> {
        let forgotten = if span < self.gap.kept { 0 } else { self.gap.tokens };
        let start = forgotten + self.spans[..span].iter().sum::<usize>();
        start..start + self.spans[span]
    }

    /// The position of a span's first token.
    fn start(&self, span: usize) -> usize {
        self.places(span).start + if span < self.gap.kept { self.gap.moved } else { 0 }
    }

    /// The spans that some class holds, and what they are sealed in.
    fn aged(&self) -> impl Iterator<Item = (usize, Age)> {
        (self.spans.len() - self.ages.len()..).zip(self.ages.iter().copied())
    }

    fn check(&self, plan: &Plan) -> Result<(), BadSequence> {
        let ensure = |fine: bool, what| if fine { Ok(()) } else { Err(BadSequence(what)) };
        let mut ends = vec![0];
        for tokens in &self.spans {
            ensure((1..=plan.page).contains(tokens), "a page of another length")?;
            ends.push(ends[ends.len() - 1] + tokens);
        }
        let held = self.len.checked_sub(self.gap.tokens);
        let tail = held.and_then(|held| held.checked_sub(ends[self.spans.len()]));
        ensure(tail.is_some_and(|tail| tail < plan.page + plan.tail), "a tail of another length")?;
        let Gap { kept, tokens, moved } = self.gap;
        let sinks = ends.get(kept).is_some_and(|end| *end <= plan.sink_pages * plan.page);
        ensure(sinks && moved <= tokens && (tokens > 0 || kept == 0), "other forgotten tokens")?;

        ensure(self.held.len() == plan.windows.len(), "other windows")?;
        for (&held, window) in self.held.iter().zip(&plan.windows) {
            ensure(held <= self.spans.len(), "pages dropped that are not there")?;
            let unseen = |window: usize| {
                held <= self.gap.kept
                    || self.places(held - 1).end.saturating_add(window) <= self.len.saturating_add(1)
            };
            ensure(held == 0 || window.is_some_and(unseen), "pages dropped that are still seen")?;
        }
        let held = self.held.iter().min().map_or(0, |first| self.spans.len() - first);
        ensure(self.ages.len() == held, "pages of no age")?;
        let masses = if plan.guided { held } else { 0 };
        ensure(self.masses.len() == masses, "pages whose attention is not known")?;
        let mass = |bits: &u32| f32::from_bits(*bits).is_finite();
        ensure(self.masses.iter().all(mass), "pages whose attention is no number")?;
        for (span, age) in self.aged() {
            let known = match (age, plan.new_age(self.places(span).start)) {
                (Age::Tier(tier), Age::Tier(_)) => tier <= plan.tiers.len(),
                (age, new) => age == new,
            };
            ensure(known, "a page of an age that it cannot have")?;
        }

        let most = if plan.states.is_empty() { 0 } else { plan.snapshots };
        let exact = self.snapshots.len().checked_sub(self.rounded);
        let fine = self.snapshots.len() <= most && exact.is_some_and(|exact| exact <= EXACT_SNAPSHOTS);
        ensure(fine, "other snapshots")?;
        let positions = [0].iter().chain(&self.snapshots);
        let inside = self.snapshots.last().is_none_or(|last| *last <= self.len);
        ensure(inside && positions.is_sorted_by(|a, b| a < b), "snapshots out of order")
    }
}

impl Sequence {
    /// What it holds.
    pub fn saved(&self, plan: &Plan, pages: &Pages) -> SavedSequence {
        let first = self.held.iter().min().copied().unwrap_or(self.spans.len());
        let masses = self.spans[first..].iter().map(|span| pages.masses[span.page.0 as usize].to_bits());
        SavedSequence {
            len: self.len,
            spans: self.spans.iter().map(|span| span.len).collect(),
            held: self.held.clone(),
            ages: self.spans[first..].iter().map(|span| pages.age(span.page)).collect(),
            masses: masses.filter(|_| plan.guided).collect(),
            snapshots: self.snapshots.positions().to_vec(),
            rounded: self.snapshots.rounded(),
            gap: Gap { kept: self.kept, tokens: self.forgotten.len(), moved: self.moved },
        }
    }

    /// A sequence in `slot` that holds what was saved, in pages of its own, and its sections, which the backend imports. On
    /// an error nothing has changed.
    pub fn restore(
        plan: &Plan,
        slot: usize,
        saved: &SavedSequence,
        pages: &mut Pages,
    ) -> Result<(Sequence, Vec<(Section, usize)>), BadSequence> {
        let sections = saved.sections(plan)?;
        let mut sequence = Sequence::new(plan, slot);
        let dropped = saved.spans.len() - saved.ages.len();
        for (i, &len) in saved.spans.iter().enumerate() {
            let page = match i.checked_sub(dropped) {
                // No class holds it: nobody will ask for it.
                None => PageId(u32::MAX),
                Some(i_aged) => {
                    let references = saved.held.iter().map(|held| u32::from(*held <= i)).collect();
                    let page = pages.take(references, saved.ages[i_aged]);
                    if let Some(mass) = saved.masses.get(i_aged) {
                        pages.masses[page.0 as usize] = f32::from_bits(*mass);
                    }
                    page
                }
            };
            sequence.spans.push(Span { page, start: saved.start(i), len });
            sequence.tail_start += len;
        }
        let Gap { kept, tokens, moved } = saved.gap;
        let start = saved.spans[..kept].iter().sum();
        (sequence.kept, sequence.forgotten, sequence.moved) = (kept, start..start + tokens, moved);
        sequence.tail_start += tokens;
        sequence.held.clone_from(&saved.held);
        sequence.len = saved.len;
        sequence.snapshots = Snapshots::restored(plan, &saved.snapshots, saved.rounded);
        Ok((sequence, sections))
    }
}
