//! Sequences and the pages they share.

mod saved;

pub use saved::{BadSequence, SavedSequence, Section};

use crate::{Age, Plan, Snapshots};
use std::collections::BTreeMap;
use std::ops::Range;

/// A sealed page.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PageId(pub u32);

/// A sealed page as one sequence sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    /// The page.
    pub page: PageId,
    /// Position of its first token: that of the token in the text, unless it is a sink that has moved.
    pub start: usize,
    /// Tokens of it that belong to this sequence, from its first on. Fewer than the page holds only
    /// after a truncation that cut into the page.
    pub len: usize,
}

/// A page whose parts of one window class nobody needs any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Freed {
    /// The page.
    pub page: PageId,
    /// The class, an index into [`Plan::windows`].
    pub window_class: usize,
}

/// Who uses which page: one reference count per page and window class; how old pages are, and how much attention they get.
#[derive(Debug, Default)]
pub struct Pages {
    references: Vec<Vec<u32>>,
    ages: Vec<Age>,
    /// [`Pages::attend`].
    masses: Vec<f32>,
    free: Vec<PageId>,
}

/// After so many tokens, the attention that a page got counts half.
const HALF_LIFE: f32 = 1024.0;

impl Pages {
    /// Pages in use by some sequence.
    pub fn in_use(&self) -> usize {
        self.references.len() - self.free.len()
    }

    /// What a page is sealed in.
    pub fn age(&self, page: PageId) -> Age {
        self.ages[page.0 as usize]
    }

    /// Adds the softmax mass that a pass gave each page, `masses` by their numbers, to what the page got before, which counts half
    /// after 1,024 tokens. The pass is that of some sequences with so many new tokens each: their last ones, whose masses
    /// these are, stand for all of them.
    pub fn attend(&mut self, plan: &Plan, batch: &[(&Sequence, usize)], masses: &[f32]) {
        let Some(class) = plan.ageing_class() else { return };
        let mut most = BTreeMap::new();
        for (sequence, tokens) in batch {
            for span in sequence.spans(class) {
                let of_page = most.entry(span.page.0 as usize).or_insert(*tokens);
                *of_page = (*of_page).max(*tokens);
            }
        }
        for (page, tokens) in most {
            let new = masses.get(page).copied().unwrap_or(0.0);
            let kept = (-(tokens as f32) / HALF_LIFE).exp2();
            self.masses[page] = self.masses[page] * kept + new * tokens as f32;
        }
    }

    /// Pages that have become old for every sequence that holds them, and their new tiers: the backend seals them
    /// again. A page that has become old stays so when its sequence becomes shorter.
    ///
    /// Pages grow old in their order. If the plan is guided, as many do, but of those that one sequence alone holds, the pages of a tier
    /// by age and the older three quarters of the next younger one compete for the place by the attention they get. (On the demo
    /// models, KL divergence of decayed caches falls by 8 to 16 % with three quarters, with half of them by 6 to 11 %.)
    pub fn grow_old(&mut self, plan: &Plan, sequences: &[Sequence]) -> Vec<(PageId, usize)> {
        let Some(class) = plan.ageing_class() else { return Vec::new() };
        let mut tiers = BTreeMap::new();
        for sequence in sequences {
            // Ages are shares of what is held. (What lies before the gap are sinks, which have no age.)
            let gone = sequence.forgotten.len();
            let of_span = |span: &Span| {
                let end = (span.start + plan.page).saturating_sub(gone);
                (span.page, plan.tier(end, sequence.tail_start() - gone))
            };
            for (page, tier) in sequence.spans(class).iter().map(of_span) {
                let (youngest, holders) = tiers.entry(page).or_insert((tier, 0));
                (*youngest, *holders) = (tier.min(*youngest), *holders + 1);
            }
        }
        if plan.guided {
            for sequence in sequences {
                let spans = sequence.spans(class).iter();
                let own = |span: &&Span| tiers[&span.page].1 == 1 && self.age(span.page) != Age::Sink;
                let mut pages: Vec<_> =
                    spans.filter(own).map(|span| (span.page, tiers[&span.page].0)).collect();
                self.guide(plan, &mut pages);
                pages.into_iter().for_each(|(page, tier)| _ = tiers.insert(page, (tier, 1)));
            }
        }
        let tiers = tiers.into_iter().map(|(page, (tier, _))| (page, tier));
        let older = |(page, tier): &(PageId, usize)| matches!(self.age(*page), Age::Tier(t) if t < *tier);
        let older: Vec<_> = tiers.filter(older).collect();
        older.iter().for_each(|(page, tier)| self.ages[page.0 as usize] = Age::Tier(*tier));
        older
    }

    /// Makes the tiers of pages, the oldest first, which are those by age, those by attention.
    fn guide(&self, plan: &Plan, pages: &mut [(PageId, usize)]) {
        let by_age: Vec<usize> = pages.iter().map(|(_, tier)| *tier).collect();
        let as_old = |tiers: &mut dyn Iterator<Item = usize>, tier| tiers.filter(|t| *t >= tier).count();
        for (page, tier) in &mut *pages {
            *tier = match self.age(*page) {
                Age::Sink => 0,
                Age::Tier(tier) => tier,
            };
        }
        for tier in (1..=plan.tiers.len()).rev() {
            let [wanted, younger] = [tier, tier - 1].map(|tier| as_old(&mut by_age.iter().copied(), tier));
            let there = as_old(&mut pages.iter().map(|(_, tier)| *tier), tier);
            let compete = &mut pages[..wanted + 3 * (younger - wanted) / 4];
            let mut open: Vec<_> = compete.iter_mut().filter(|(_, t)| *t < tier).collect();
            open.sort_by(|(a, _), (b, _)| self.masses[a.0 as usize].total_cmp(&self.masses[b.0 as usize]));
            open.into_iter().take(wanted.saturating_sub(there)).for_each(|(_, t)| *t = tier);
        }
    }

    /// A page with that many references in each class.
    pub(crate) fn take(&mut self, references: Vec<u32>, age: Age) -> PageId {
        match self.free.pop() {
            Some(page) => {
                self.references[page.0 as usize] = references;
                self.ages[page.0 as usize] = age;
                self.masses[page.0 as usize] = 0.0;
                page
            }
            None => {
                self.references.push(references);
                self.ages.push(age);
                self.masses.push(0.0);
                PageId(u32::try_from(self.references.len() - 1).expect("fewer than 2^32 pages fit in memory"))
            }
        }
    }

    pub(crate) fn share(&mut self, page: PageId, window_class: usize) {
        self.references[page.0 as usize][window_class] += 1;
    }

    /// How many hold a page's parts of a class.
    pub(crate) fn references(&self, page: PageId, window_class: usize) -> u32 {
        self.references[page.0 as usize][window_class]
    }

    pub(crate) fn release(&mut self, page: PageId, window_class: usize, freed: &mut Vec<Freed>) {
        let counts = &mut self.references[page.0 as usize];
        counts[window_class] -= 1;
        if counts[window_class] == 0 {
            freed.push(Freed { page, window_class });
            if counts.iter().all(|&n| n == 0) {
                self.free.push(page);
            }
        }
    }
}

/// The tokens of one sequence: sealed spans, then the open tail. A token's position is its place in the text, whatever is
/// forgotten before it.
///
/// A sequence gives its references back through [`Sequence::clear`] only.
#[derive(Debug)]
pub struct Sequence {
    /// Where the backend keeps this sequence's tail.
    pub slot: usize,
    pub(crate) spans: Vec<Span>,
    /// First span still held, for each window class.
    pub(crate) held: Vec<usize>,
    pub(crate) tail_start: usize,
    pub(crate) len: usize,
    pub(crate) snapshots: Snapshots,
    /// Tokens that no layer holds any more, because the sequence was full.
    pub(crate) forgotten: Range<usize>,
    /// Spans before them: the sinks. 0 if nothing is forgotten.
    pub(crate) kept: usize,
    /// How far up those have moved.
    pub(crate) moved: usize,
}

/// A truncation that would need pages that are gone.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)]
pub enum TruncateError {
    #[error("cannot go back to {to} tokens: the sliding window of {window} has dropped what they would see")]
    Window { to: usize, window: usize },
    #[error("cannot go back to {to} tokens: those before {end} are forgotten")]
    Forgotten { to: usize, end: usize },
}

impl Sequence {
    /// An empty sequence whose tail lies in `slot`.
    pub fn new(plan: &Plan, slot: usize) -> Sequence {
        Sequence {
            slot,
            spans: Vec::new(),
            held: vec![0; plan.windows.len()],
            tail_start: 0,
            len: 0,
            snapshots: Snapshots::new(plan),
            forgotten: 0..0,
            kept: 0,
            moved: 0,
        }
    }

    /// Tokens, sealed and open, and those that are forgotten: the position of the next.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are no tokens.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Tokens without those that are forgotten.
    pub fn held_tokens(&self) -> usize {
        self.len - self.forgotten.len()
    }

    /// The tokens that are forgotten ([`crate::Overflow`]).
    pub fn forgotten(&self) -> Range<usize> {
        self.forgotten.clone()
    }

    /// How far the tokens before them have moved up.
    pub fn moved(&self) -> usize {
        self.moved
    }

    /// Position of the tail's first token.
    pub fn tail_start(&self) -> usize {
        self.tail_start
    }

    /// Tokens in the tail.
    pub fn tail_len(&self) -> usize {
        self.len - self.tail_start
    }

    /// The sealed spans that layers of a window class still hold, oldest first.
    pub fn spans(&self, window_class: usize) -> &[Span] {
        &self.spans[self.held[window_class]..]
    }

    /// A sealed span, held or not, counted from the first.
    pub fn span(&self, span: usize) -> Span {
        self.spans[span]
    }

    /// The snapshots of the recurrent state.
    pub fn snapshots(&self) -> &Snapshots {
        &self.snapshots
    }

    /// Bytes that the next token reads: the sealed parts held, the open tail, the recurrent state.
    pub fn read_bytes(&self, plan: &Plan, pages: &Pages) -> usize {
        let kv: usize = (plan.layers.iter())
            .map(|layer| {
                let sealed: usize = self
                    .spans(layer.window_class)
                    .iter()
                    .flat_map(|span| {
                        let age = pages.age(span.page);
                        layer.sides.iter().map(move |s| s.part_bytes(s.page_format(age), span.len))
                    })
                    .sum();
                let tail: usize = layer.sides.iter().map(|s| s.tail_token_bytes()).sum();
                sealed + tail * self.tail_len()
            })
            .sum();
        kv + plan.state_bytes()
    }

    /// Adds `tokens` tokens to the tail. The backend's recurrent layers take a snapshot at the last page
    /// boundary that they pass.
    pub fn append(&mut self, tokens: usize) {
        self.snapshots.pass(self.len, self.len + tokens);
        self.len += tokens;
    }

    /// Makes a page of the tail's first tokens, if enough newer ones stay behind. The backend then
    /// encodes the first [`Plan::page`] tail rows as that page and drops them from the tail.
    pub fn seal(&mut self, plan: &Plan, pages: &mut Pages) -> Option<Span> {
        if self.tail_len() < plan.page + plan.tail {
            return None;
        }
        let page = pages.take(vec![1; plan.windows.len()], plan.new_age(self.tail_start));
        let span = Span { page, start: self.tail_start, len: plan.page };
        self.spans.push(span);
        self.tail_start += plan.page;
        Some(span)
    }

    /// Lets go of the parts that have left their sliding window: no query from the tail's first
    /// token on sees them.
    pub fn expire(&mut self, plan: &Plan, pages: &mut Pages, freed: &mut Vec<Freed>) {
        for (window_class, window) in plan.windows.iter().enumerate() {
            let Some(window) = window else { continue };
            while let Some(span) = self.spans.get(self.held[window_class])
                && span.start + span.len + window <= self.tail_start + 1
            {
                pages.release(span.page, window_class, freed);
                self.held[window_class] += 1;
            }
        }
    }

    /// Forgets all tokens from position `to` on; with a recurrent state, from the newest snapshot at or
    /// before it. Returns the tokens left. A cut into a sealed page keeps the page and hides the rest of it.
    /// The backend then takes the state back.
    pub fn truncate(
        &mut self,
        to: usize,
        plan: &Plan,
        pages: &mut Pages,
        freed: &mut Vec<Freed>,
    ) -> Result<usize, TruncateError> {
        if to >= self.len {
            return Ok(self.len);
        }
        let (to, end) = (self.snapshots.before(to), self.forgotten.end);
        if to < end {
            return Err(TruncateError::Forgotten { to, end });
        }
        for (class, window) in plan.windows.iter().enumerate() {
            // Sinks that a window dropped are as good as forgotten, wherever they would have moved.
            let dropped = self.held[class].checked_sub(1).filter(|dropped| *dropped >= self.kept);
            if let (Some(window), Some(dropped)) = (*window, dropped) {
                let end = self.spans[dropped].start + self.spans[dropped].len;
                if end + window > to + 1 {
                    return Err(TruncateError::Window { to, window });
                }
            }
        }
        self.len = to;
        self.snapshots.truncate(to);
        self.tail_start = self.tail_start.min(to);
        while let Some(last) = self.spans.last_mut()
            && last.start + last.len > to
        {
            if last.start < to {
                last.len = to - last.start;
                break;
            }
            let page = last.page;
            self.spans.pop();
            for class in 0..plan.windows.len() {
                if self.held[class] > self.spans.len() {
                    self.held[class] = self.spans.len();
                } else {
                    pages.release(page, class, freed);
                }
            }
        }
        Ok(to)
    }

    /// Forgets everything and gives all pages back.
    pub fn clear(&mut self, pages: &mut Pages, freed: &mut Vec<Freed>) {
        for (class, held) in self.held.iter_mut().enumerate() {
            for span in &self.spans[*held..] {
                pages.release(span.page, class, freed);
            }
            *held = 0;
        }
        self.spans.clear();
        self.snapshots.truncate(0);
        self.tail_start = 0;
        self.len = 0;
        (self.forgotten, self.kept, self.moved) = (0..0, 0, 0);
    }

    /// Makes `self`, which must be empty, a copy of `other` that shares its pages. The backend copies
    /// the tail.
    pub fn fork_from(&mut self, other: &Sequence, pages: &mut Pages) {
        assert!(self.is_empty() && self.spans.is_empty(), "fork into an empty sequence");
        for (class, &held) in other.held.iter().enumerate() {
            other.spans[held..].iter().for_each(|span| pages.share(span.page, class));
        }
        self.spans.clone_from(&other.spans);
        self.held.clone_from(&other.held);
        self.snapshots.clone_from(&other.snapshots);
        (self.tail_start, self.len) = (other.tail_start, other.len);
        (self.forgotten, self.kept, self.moved) = (other.forgotten(), other.kept, other.moved);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{KvLayer, Policy};

    fn plan(page: usize, tail: usize, windows: &[Option<usize>]) -> Plan {
        let layers: Vec<_> = (windows.iter())
            .map(|&window| KvLayer { heads: 1, head_dim: [64, 64], values_in_keys: false, window })
            .collect();
        Plan::new(&Policy { page, tail, sink: 0, ..Policy::default() }, &layers).unwrap()
    }

    fn grow(sequence: &mut Sequence, tokens: usize, plan: &Plan, pages: &mut Pages) -> Vec<Freed> {
        let mut freed = Vec::new();
        for _ in 0..tokens {
            sequence.append(1);
            while sequence.seal(plan, pages).is_some() {}
            sequence.expire(plan, pages, &mut freed);
        }
        freed
    }

    #[test]
    fn pages_seal_behind_the_tail() {
        let (plan, mut pages) = (plan(16, 10, &[None]), Pages::default());
        let mut sequence = Sequence::new(&plan, 0);
        grow(&mut sequence, 25, &plan, &mut pages);
        assert_eq!((sequence.spans(0).len(), sequence.tail_len()), (0, 25));
        grow(&mut sequence, 1, &plan, &mut pages);
        assert_eq!((sequence.spans(0).len(), sequence.tail_len()), (1, 10));
        grow(&mut sequence, 100, &plan, &mut pages);
        assert_eq!(sequence.tail_start() + sequence.tail_len(), 126);
        assert!(sequence.spans(0).windows(2).all(|w| w[0].start + w[0].len == w[1].start));
    }

    #[test]
    fn windows_drop_what_no_query_sees() {
        let (plan, mut pages) = (plan(16, 0, &[None, Some(20)]), Pages::default());
        let mut sequence = Sequence::new(&plan, 0);
        let freed = grow(&mut sequence, 160, &plan, &mut pages);
        assert_eq!(sequence.spans(0).len(), 10);
        // The next query is at 160 and sees 141..=160: page 8 (128..144) and 9.
        assert_eq!(sequence.spans(1)[0].start, 128);
        assert!(freed.iter().all(|f| f.window_class == 1) && freed.len() == 8);
        assert!(sequence.truncate(150, &plan, &mut pages, &mut Vec::new()).is_ok());
        assert!(sequence.truncate(140, &plan, &mut pages, &mut Vec::new()).is_err());
    }

    #[test]
    fn truncation_cuts_pages_and_gives_them_back() {
        let (plan, mut pages) = (plan(16, 0, &[None]), Pages::default());
        let (mut sequence, mut freed) = (Sequence::new(&plan, 0), Vec::new());
        grow(&mut sequence, 70, &plan, &mut pages);
        sequence.truncate(66, &plan, &mut pages, &mut freed).unwrap();
        assert_eq!((sequence.spans(0).len(), sequence.tail_len(), freed.len()), (4, 2, 0));
        sequence.truncate(40, &plan, &mut pages, &mut freed).unwrap();
        assert_eq!((sequence.spans(0).len(), sequence.tail_len(), freed.len()), (3, 0, 1));
        assert_eq!(sequence.spans(0)[2].len, 8);
        // What follows a cut page starts where the cut is.
        grow(&mut sequence, 16, &plan, &mut pages);
        assert_eq!(sequence.spans(0)[3].start, 40);
        sequence.truncate(0, &plan, &mut pages, &mut freed).unwrap();
        assert_eq!((sequence.len(), pages.in_use()), (0, 0));
    }

    #[test]
    fn pages_grow_old_for_all_who_hold_them() {
        let policy = Policy { page: 16, tail: 0, sink: 16, ..Policy::uniform("turbo4", "turbo4") };
        let policy = policy.with_decay("25,25,50").unwrap();
        let layer = KvLayer { heads: 1, head_dim: [64, 64], values_in_keys: false, window: None };
        let (plan, mut pages) = (Plan::new(&policy, &[layer]).unwrap(), Pages::default());
        let mut sequences = [Sequence::new(&plan, 0), Sequence::new(&plan, 1)];
        grow(&mut sequences[0], 64, &plan, &mut pages);
        // Half of 64 tokens are cold: two pages, of which one is a sink. The next is warm.
        let [sink, cold, warm, new] = [0, 1, 2, 3].map(PageId);
        assert_eq!(pages.grow_old(&plan, &sequences), [(cold, 2), (warm, 1)]);
        assert_eq!([sink, new].map(|page| pages.age(page)), [Age::Sink, Age::Tier(0)]);
        assert!(pages.grow_old(&plan, &sequences).is_empty());
        // Another sequence holds the same pages and stays short.
        let [a, b] = &mut sequences;
        b.fork_from(a, &mut pages);
        grow(a, 64, &plan, &mut pages);
        assert_eq!(pages.grow_old(&plan, &sequences), [(PageId(4), 1), (PageId(5), 1)]);
        let bytes = sequences[0].read_bytes(&plan, &pages);
        sequences[1].clear(&mut pages, &mut Vec::new());
        assert_eq!(pages.grow_old(&plan, &sequences), [(warm, 2), (new, 2)]);
        assert!(sequences[0].read_bytes(&plan, &pages) < bytes);
        // A page that is taken again is new.
        sequences[0].clear(&mut pages, &mut Vec::new());
        grow(&mut sequences[1], 64, &plan, &mut pages);
        let young = |span: &Span| pages.age(span.page) == plan.new_age(span.start);
        assert!(sequences[1].spans(0).iter().all(young));
    }

    #[test]
    fn pages_that_get_attention_stay_young() {
        let policy = Policy { page: 16, tail: 0, sink: 16, ..Policy::uniform("turbo4", "turbo4") };
        let policy = policy.with_decay("25,25,50").unwrap();
        let layer = KvLayer { heads: 1, head_dim: [64, 64], values_in_keys: false, window: None };
        let plans =
            [false, true].map(|guided| Plan::new(&Policy { guided, ..policy.clone() }, &[layer]).unwrap());
        let (mut pages, mut caches) = ([Pages::default(), Pages::default()], Vec::new());
        for (plan, pages) in plans.iter().zip(&mut pages) {
            let mut sequence = [Sequence::new(plan, 0)];
            let mut bytes = Vec::new();
            for _ in 0..40 {
                grow(&mut sequence[0], 16, plan, pages);
                // Everybody looks at page 5, and at the others the less the older they are.
                let mass = |page: usize| if page == 5 { 1.0 } else { 0.001 * page as f32 };
                let masses: Vec<f32> = (0..sequence[0].spans(0).len()).map(mass).collect();
                pages.attend(plan, &[(&sequence[0], 16)], &masses);
                pages.grow_old(plan, &sequence);
                bytes.push(sequence[0].read_bytes(plan, pages));
            }
            let ages: Vec<Age> = sequence[0].spans(0).iter().map(|span| pages.age(span.page)).collect();
            caches.push((ages, bytes));
        }
        let [(by_age, bytes), (guided, guided_bytes)] = <[_; 2]>::try_from(caches).unwrap();
        assert_eq!(bytes, guided_bytes, "as much is small");
        assert_eq!((by_age[5], guided[5]), (Age::Tier(2), Age::Tier(0)));
        // In its place a page is old that is younger.
        let count = |ages: &[Age], tier| ages.iter().filter(|age| **age == Age::Tier(tier)).count();
        assert!((0..3).all(|tier| count(&by_age, tier) == count(&guided, tier)), "{guided:?}");
        assert_eq!((guided[0], guided[4], guided[6]), (Age::Sink, Age::Tier(2), Age::Tier(2)));
        // Attention that was got long ago counts less and less.
        let [_, mut pages] = pages;
        let (mut sequence, plan) = (Sequence::new(&plans[1], 0), &plans[1]);
        grow(&mut sequence, 32, plan, &mut pages);
        let page = sequence.spans(0)[1].page;
        pages.attend(plan, &[(&sequence, 1)], &[vec![0.0; page.0 as usize], vec![1.0]].concat());
        let new = pages.masses[page.0 as usize];
        // A page that several sequences hold is counted once.
        let mut sharer = Sequence::new(plan, 1);
        sharer.fork_from(&sequence, &mut pages);
        pages.attend(plan, &[(&sequence, 1), (&sharer, HALF_LIFE as usize)], &[]);
        assert_eq!((new, pages.masses[page.0 as usize]), (1.0, 0.5));
    }

    #[test]
    fn shared_pages_live_as_long_as_someone_needs_them() {
        let (plan, mut pages) = (plan(16, 0, &[None, Some(20)]), Pages::default());
        let (mut a, mut b) = (Sequence::new(&plan, 0), Sequence::new(&plan, 1));
        grow(&mut a, 40, &plan, &mut pages);
        b.fork_from(&a, &mut pages);
        let mut freed = Vec::new();
        a.clear(&mut pages, &mut freed);
        assert!(freed.is_empty() && pages.in_use() == 2);
        grow(&mut b, 100, &plan, &mut pages);
        b.clear(&mut pages, &mut freed);
        assert_eq!(pages.in_use(), 0);
        // Every page of every class is freed exactly once.
        freed.sort_by_key(|f| (f.page, f.window_class));
        assert!(freed.windows(2).all(|w| w[0] != w[1]));
    }
}
