//! One command a file: its flags, its examples, and what it does.

pub mod bench;
pub mod chat;
pub mod completions;
pub mod demo;
pub mod eval;
pub mod formats;
pub mod inspect;
pub mod run;
pub mod tokenize;
pub mod tune;
