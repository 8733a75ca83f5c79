//! The bytes of a sequence, section by section, as they are saved and restored.

use super::{Part, Store};
use std::io::{Read, Write};
use torque_kv::{Section, Sequence};

const LENGTH: &str = "a section has the length that `SavedSequence::sections` says";

impl Store {
    /// Copies a section of a sequence to `out`.
    pub fn export(&self, sequence: &Sequence, section: Section, mut out: &mut [u8]) {
        let mut put = |bytes: &[u8]| out.write_all(bytes).expect(LENGTH);
        match section {
            Section::Page { span, window_class, .. } => {
                let page = &self.pages[sequence.span(span).page.0 as usize];
                for (layer, parts) in self.plan.layers.iter().zip(page) {
                    if layer.window_class == window_class {
                        let parts = parts.as_ref().expect("a sequence holds only pages that are there");
                        parts.iter().flat_map(Part::buffers).for_each(&mut put);
                    }
                }
            }
            Section::Tail => {
                for tail in self.tails[sequence.slot].iter().flatten() {
                    (0..tail.side.heads).for_each(|head| put(tail.rows(head, 0, sequence.tail_len())));
                }
            }
            Section::State { layer } => {
                self.states[sequence.slot][layer].export(put);
            }
        }
        assert!(out.is_empty(), "{LENGTH}");
    }

    /// Makes a section of a sequence what was exported. Of a page, the other window classes stay as they are.
    pub fn import(&mut self, sequence: &Sequence, section: Section, mut bytes: &[u8]) {
        let mut take = |out: &mut [u8]| bytes.read_exact(out).expect(LENGTH);
        match section {
            Section::Page { span, window_class, age } => {
                let page = sequence.span(span).page.0 as usize;
                if self.pages.len() <= page {
                    self.pages.resize_with(page + 1, Vec::new);
                }
                let page = &mut self.pages[page];
                page.resize_with(self.plan.layers.len(), || None);
                for (layer, parts) in self.plan.layers.iter().zip(page) {
                    if layer.window_class == window_class {
                        let sides = layer.sides.iter();
                        let part = sides.map(|side| {
                            let mut part = Part::new(side, side.page_format(age), self.plan.page);
                            part.buffers_mut().for_each(&mut take);
                            part
                        });
                        *parts = Some(part.collect());
                    }
                }
            }
            Section::Tail => {
                for tail in self.tails[sequence.slot].iter_mut().flatten() {
                    let bytes = sequence.tail_len() * tail.row_bytes();
                    let (rows, head) = tail.heads_mut();
                    rows.chunks_exact_mut(head).for_each(|head| take(&mut head[..bytes]));
                }
            }
            Section::State { layer } => {
                self.states[sequence.slot][layer].import(sequence.snapshots(), take);
            }
        }
        assert!(bytes.is_empty(), "{LENGTH}");
    }
}
