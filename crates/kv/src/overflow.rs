//! What a sequence does when it is full: nothing more, or it forgets its older half in whole pages.
//!
//! Attention sees positions only as distances between query and key. So a sequence that forgets keeps all its positions
//! and lets them grow; what differs is the distance to the sinks. Where they stay ([`Overflow::Evict`]) it grows beyond the
//! context. To move all that follows *down* to the sinks, as a context shift does, is to move the sinks *up* to what
//! follows ([`Overflow::Shift`]): every distance is the same, and instead of all pages, which are sealed in few bits,
//! a few that are exact are turned and encoded again.

use crate::{Freed, PageId, Pages, Plan, Sequence, Span};

/// What a sequence does when it is full.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Overflow {
    /// It takes no more tokens.
    #[default]
    Stop,
    /// It forgets the older half of what is not a sink, and the sinks move up to the rest: no distance is longer than the
    /// context.
    Shift,
    /// It forgets them, and all others keep their positions.
    Evict,
}

impl Overflow {
    /// Every way, with its name on the command line and what it does.
    pub const ALL: [(&'static str, &'static str, Overflow); 3] = [
        ("stop", "the text ends", Overflow::Stop),
        ("shift", "older tokens are forgotten, the first ones move up to the rest", Overflow::Shift),
        ("evict", "older tokens are forgotten, positions grow beyond the context", Overflow::Evict),
    ];
}

/// A page's parts of one window class whose keys move to other positions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Moved {
    /// The page.
    pub from: PageId,
    /// Where the moved parts belong: the same page, or a new one if others need the parts as they are.
    pub to: PageId,
    /// The class, an index into [`Plan::windows`].
    pub window_class: usize,
}

impl Plan {
    fn sinks(&self) -> usize {
        self.sink_pages * self.page
    }

    /// Tokens that a full sequence of `context` tokens forgets at once: half of what is not a sink, in whole pages.
    pub fn forgets(&self, context: usize) -> usize {
        (context.saturating_sub(self.sinks()) / 2 / self.page).max(1) * self.page
    }

    /// The shortest context that always has a page to forget: sinks, that page, and the longest tail.
    pub fn shortest_forgetful(&self) -> usize {
        self.sinks() + 2 * self.page + self.tail
    }

    /// The most tokens for which a full sequence of a context that is not shorter can make room by forgetting once.
    pub fn most_after_forgetting(&self, context: usize) -> usize {
        self.forgets(context).min(context - self.sinks() - self.page - self.tail)
    }
}

impl Sequence {
    /// Forgets `tokens` of the oldest tokens that are not sinks, or a few more: pages are forgotten whole. Returns how
    /// many; fewer only if the others are not sealed.
    pub fn forget(&mut self, tokens: usize, plan: &Plan, pages: &mut Pages, freed: &mut Vec<Freed>) -> usize {
        if self.forgotten.is_empty() {
            // A page that is a sink in part, behind a cut, may go: what is kept is never more than the sinks.
            let is_sink = |span: &&Span| span.start + span.len <= plan.sinks();
            self.kept = self.spans.iter().take_while(is_sink).count();
            let start = self.spans[..self.kept].iter().map(|span| span.len).sum();
            self.forgotten = start..start;
        }
        let (kept, mut end, mut count) = (self.kept, self.kept, 0);
        while count < tokens
            && let Some(span) = self.spans.get(end)
        {
            (end, count) = (end + 1, count + span.len);
        }
        for (class, held) in self.held.iter_mut().enumerate() {
            self.spans[end.min(kept.max(*held))..end]
                .iter()
                .for_each(|s| pages.release(s.page, class, freed));
            if *held > kept {
                *held = kept.max(held.saturating_sub(end - kept));
            }
        }
        self.spans.drain(kept..end);
        self.forgotten.end += count;
        if self.forgotten.is_empty() {
            self.kept = 0;
        } else {
            self.snapshots.forget(self.forgotten.end);
        }
        count
    }

    /// Moves the sinks up to what follows the forgotten tokens: how far, and the pages whose keys the backend then turns,
    /// before it frees what nobody needs any more.
    pub fn close_gap(&mut self, pages: &mut Pages, freed: &mut Vec<Freed>) -> (usize, Vec<Moved>) {
        let distance = self.forgotten.len() - self.moved;
        let mut moved = Vec::new();
        for (i, span) in self.spans[..self.kept].iter_mut().enumerate() {
            span.start += distance;
            let classes: Vec<usize> = (0..self.held.len()).filter(|class| self.held[*class] <= i).collect();
            let from = span.page;
            if classes.iter().any(|class| pages.references(from, *class) > 1) {
                let references = (0..self.held.len()).map(|class| u32::from(classes.contains(&class)));
                span.page = pages.take(references.collect(), pages.age(from));
                classes.iter().for_each(|class| pages.release(from, *class, freed));
            }
            moved.extend(classes.into_iter().map(|window_class| Moved { from, to: span.page, window_class }));
        }
        self.moved = self.forgotten.len();
        (distance, moved)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Age, KvLayer, Policy};

    fn plan(sink: usize, windows: &[Option<usize>]) -> Plan {
        let layers: Vec<_> = (windows.iter())
            .map(|&window| KvLayer { heads: 1, head_dim: [64, 64], values_in_keys: false, window })
            .collect();
        Plan::new(&Policy { page: 16, tail: 4, sink, ..Policy::default() }, &layers).unwrap()
    }

    /// Feeds tokens in chunks and forgets as a context of that length does. Returns what was freed.
    fn feed(
        sequence: &mut Sequence,
        chunks: &[usize],
        context: usize,
        plan: &Plan,
        pages: &mut Pages,
    ) -> Vec<Freed> {
        let mut freed = Vec::new();
        for &new in chunks {
            assert!(new <= plan.most_after_forgetting(context));
            if sequence.held_tokens() + new > context {
                assert!(sequence.forget(plan.forgets(context), plan, pages, &mut freed) > 0);
            }
            sequence.append(new);
            assert!(sequence.held_tokens() <= context, "{sequence:?}");
            while sequence.seal(plan, pages).is_some() {}
            sequence.expire(plan, pages, &mut freed);
        }
        freed
    }

    #[test]
    fn a_full_sequence_always_makes_room() {
        for (sink, windows) in [(0, &[None][..]), (16, &[None, Some(40)]), (40, &[Some(20), None])] {
            let plan = plan(sink, windows);
            for context in plan.shortest_forgetful()..plan.shortest_forgetful() + 60 {
                let (mut pages, mut sequence) = (Pages::default(), Sequence::new(&plan, 0));
                let most = plan.most_after_forgetting(context);
                let chunks: Vec<usize> = (0..60).map(|i| [most, 1, 1 + i % most][i % 3]).collect();
                let mut freed = feed(&mut sequence, &chunks, context, &plan, &mut pages);
                assert_eq!(sequence.len(), chunks.iter().sum::<usize>());
                let global = windows.iter().position(Option::is_none).unwrap();
                let starts: Vec<usize> = sequence.spans(global).iter().map(|span| span.start).collect();
                let sinks: Vec<usize> = (0..plan.sink_pages).map(|page| 16 * page).collect();
                assert_eq!(starts[..plan.sink_pages], sinks, "sinks stay");
                assert_eq!(starts[plan.sink_pages], sequence.forgotten().end, "the rest follows the gap");
                // Every page is freed once for every class.
                sequence.clear(&mut pages, &mut freed);
                assert_eq!((pages.in_use(), sequence.forgotten()), (0, 0..0));
            }
        }
    }

    #[test]
    fn cuts_leave_room_too() {
        // The page behind a cut sink begins among the sinks and ends behind them; but for it and the tail there is nothing.
        let plan16 = plan(16, &[None]);
        let (mut pages, mut sequence) = (Pages::default(), Sequence::new(&plan16, 0));
        let context = plan16.shortest_forgetful();
        feed(&mut sequence, &[16, 4], context, &plan16, &mut pages);
        sequence.truncate(8, &plan16, &mut pages, &mut Vec::new()).unwrap();
        feed(&mut sequence, &[1; 35], context, &plan16, &mut pages);
        assert_eq!((sequence.spans(0).len(), sequence.tail_len()), (2, 19));
        feed(&mut sequence, &[16], context, &plan16, &mut pages);
        assert_eq!(sequence.forgotten(), 8..24);

        for (sink, windows) in [(0, &[None][..]), (16, &[None]), (40, &[None, Some(300)])] {
            let plan = plan(sink, windows);
            for context in plan.shortest_forgetful()..plan.shortest_forgetful() + 40 {
                let (mut pages, mut sequence) = (Pages::default(), Sequence::new(&plan, 0));
                let (most, mut freed) = (plan.most_after_forgetting(context), Vec::new());
                // Pages of less than sixteen tokens, among the sinks and later.
                for i in 0..80 {
                    let chunks = [most, 1 + i % most, 16.min(most)];
                    freed.extend(feed(&mut sequence, &chunks, context, &plan, &mut pages));
                    let cut = sequence.len() - sequence.len().min(3 + 7 * i % 41);
                    let _ = sequence.truncate(cut, &plan, &mut pages, &mut freed);
                    let saved = sequence.saved(&plan, &pages);
                    assert_eq!(saved.held_tokens(), sequence.held_tokens());
                    saved.sections(&plan).expect("it can be saved");
                }
                sequence.clear(&mut pages, &mut freed);
                assert_eq!(pages.in_use(), 0);
            }
        }
    }

    #[test]
    fn sinks_move_up_and_shared_ones_are_copied() {
        let plan = plan(20, &[None, Some(30)]);
        let (mut pages, mut freed) = (Pages::default(), Vec::new());
        let (mut a, mut b) = (Sequence::new(&plan, 0), Sequence::new(&plan, 1));
        feed(&mut a, &[16; 8], 160, &plan, &mut pages);
        b.fork_from(&a, &mut pages);
        assert_eq!(a.forget(40, &plan, &mut pages, &mut freed), 48);
        assert!(freed.is_empty(), "the copy holds all pages");
        let [first, second] = [0, 1].map(|i| b.span(i).page);
        let (distance, moved) = a.close_gap(&mut pages, &mut freed);
        // The window has left the sinks; of the others, the copies are new.
        assert_eq!((distance, moved.len(), a.moved()), (48, 2, 48));
        assert!(moved.iter().zip([first, second]).all(|(m, from)| m.from == from && m.to != from));
        assert!(moved.iter().all(|m| m.window_class == 0) && freed.is_empty());
        let starts = |sequence: &Sequence| sequence.spans(0).iter().map(|s| s.start).collect::<Vec<_>>();
        assert_eq!(starts(&a), [48, 64, 80, 96]);
        assert_eq!(starts(&b), [0, 16, 32, 48, 64, 80, 96]);
        // Nobody else holds them now: they move in place, the rest of the way.
        assert_eq!(a.forget(1, &plan, &mut pages, &mut freed), 16);
        let (distance, moved) = a.close_gap(&mut pages, &mut freed);
        assert_eq!((distance, starts(&a)), (16, vec![64, 80, 96]));
        assert!(moved.iter().all(|m| m.from == m.to));
        // One can go back to what is left, and no further.
        assert!(a.truncate(100, &plan, &mut pages, &mut freed).is_ok());
        let error = a.truncate(95, &plan, &mut pages, &mut freed).unwrap_err().to_string();
        assert!(error.contains("96") && error.contains("forgotten"), "{error}");
        a.clear(&mut pages, &mut freed);
        b.clear(&mut pages, &mut freed);
        assert_eq!(pages.in_use(), 0);
    }

    #[test]
    fn ages_are_shares_of_what_is_held() {
        let layer = KvLayer { heads: 1, head_dim: [64, 64], values_in_keys: false, window: None };
        let policy = Policy { page: 16, tail: 4, sink: 16, ..Policy::uniform("turbo4", "turbo4") };
        let plan = Plan::new(&policy.with_decay("40,30,30").unwrap(), &[layer]).unwrap();
        let (mut pages, mut sequence) = (Pages::default(), Sequence::new(&plan, 0));
        feed(&mut sequence, &[16; 40], 180, &plan, &mut pages);
        assert!(sequence.forgotten().len() > 300);
        pages.grow_old(&plan, std::slice::from_ref(&sequence));
        let ages: Vec<_> = sequence.spans(0).iter().map(|span| pages.age(span.page)).collect();
        let expected = (0..ages.len()).map(|i| match plan.new_age(16 * i) {
            Age::Tier(_) => Age::Tier(plan.tier(16 * (i + 1), 16 * ages.len())),
            sink => sink,
        });
        assert_eq!(ages, expected.collect::<Vec<_>>());
    }
}
