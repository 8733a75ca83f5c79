//! What chat templates take from Python and `transformers` that Jinja itself does not have.

use std::io;

use minijinja::value::{Kwargs, Value, ValueKind};
use minijinja::{Error, ErrorKind};
use regex_automata::meta::Regex;
use serde::Serialize;
use serde_json::ser::Formatter;

/// `raise_exception(message)`: the template refuses the messages.
pub fn raise_exception(message: String) -> Result<Value, Error> {
    Err(Error::new(ErrorKind::InvalidOperation, message))
}

/// `strftime_now(format)`: the local time.
pub fn strftime_now(format: String) -> Result<String, Error> {
    jiff::fmt::strtime::format(&format, &jiff::Zoned::now()).map_err(|error| {
        Error::new(ErrorKind::InvalidOperation, format!("strftime_now({format:?}): {error}"))
    })
}

/// `tojson` as `json.dumps(value, ensure_ascii=False, …)` prints it, with its arguments `indent`,
/// `separators`, `sort_keys`.
pub fn to_json(value: Value, kwargs: Kwargs) -> Result<String, Error> {
    let refused = |what: String| Error::new(ErrorKind::InvalidOperation, format!("tojson: {what}"));
    if kwargs.get::<Option<bool>>("ensure_ascii")?.unwrap_or(false) {
        return Err(refused("ensure_ascii=True is not supported".into()));
    }
    let indent = kwargs.get::<Option<usize>>("indent")?;
    let sort_keys = kwargs.get::<Option<bool>>("sort_keys")?.unwrap_or(false);
    let (item, key) = match kwargs.get::<Option<Vec<String>>>("separators")?.as_deref() {
        Some([item, key]) => (item.clone(), key.clone()),
        Some(_) => return Err(refused("separators are two strings".into())),
        None => (if indent.is_some() { "," } else { ", " }.into(), ": ".into()),
    };
    kwargs.assert_all_used()?;
    if value.kind() == ValueKind::Undefined {
        return Err(refused("the value is undefined".into()));
    }

    let mut json = serde_json::to_value(&value).map_err(|error| refused(error.to_string()))?;
    if sort_keys {
        json.sort_all_objects();
    }
    let mut bytes = Vec::new();
    let mut serializer = serde_json::Serializer::with_formatter(
        &mut bytes,
        Python { item, key, indent, depth: 0, has_items: false },
    );
    json.serialize(&mut serializer).map_err(|error| refused(error.to_string()))?;
    String::from_utf8(bytes).map_err(|error| refused(error.to_string()))
}

/// Layout of `json.dumps`.
struct Python {
    /// Between items, before the new line if there is an indent.
    item: String,
    /// Between key and value.
    key: String,
    /// Spaces per level; `None` keeps everything on one line.
    indent: Option<usize>,
    depth: usize,
    /// Whether the container that is being closed had items; an empty one stays on its line.
    has_items: bool,
}

impl Python {
    fn new_line<W: ?Sized + io::Write>(&self, out: &mut W) -> io::Result<()> {
        match self.indent {
            Some(indent) => write!(out, "\n{:1$}", "", indent * self.depth),
            None => Ok(()),
        }
    }

    fn open<W: ?Sized + io::Write>(&mut self, out: &mut W, bracket: &[u8]) -> io::Result<()> {
        self.depth += 1;
        self.has_items = false;
        out.write_all(bracket)
    }

    fn item<W: ?Sized + io::Write>(&mut self, out: &mut W, first: bool) -> io::Result<()> {
        if !first {
            out.write_all(self.item.as_bytes())?;
        }
        self.new_line(out)
    }

    fn close<W: ?Sized + io::Write>(&mut self, out: &mut W, bracket: &[u8]) -> io::Result<()> {
        self.depth -= 1;
        if self.has_items {
            self.new_line(out)?;
        }
        out.write_all(bracket)
    }
}

impl Formatter for Python {
    fn begin_array<W: ?Sized + io::Write>(&mut self, out: &mut W) -> io::Result<()> {
        self.open(out, b"[")
    }

    fn begin_array_value<W: ?Sized + io::Write>(&mut self, out: &mut W, first: bool) -> io::Result<()> {
        self.item(out, first)
    }

    fn end_array_value<W: ?Sized + io::Write>(&mut self, _: &mut W) -> io::Result<()> {
        self.has_items = true;
        Ok(())
    }

    fn end_array<W: ?Sized + io::Write>(&mut self, out: &mut W) -> io::Result<()> {
        self.close(out, b"]")
    }

    fn begin_object<W: ?Sized + io::Write>(&mut self, out: &mut W) -> io::Result<()> {
        self.open(out, b"{")
    }

    fn begin_object_key<W: ?Sized + io::Write>(&mut self, out: &mut W, first: bool) -> io::Result<()> {
        self.item(out, first)
    }

    fn begin_object_value<W: ?Sized + io::Write>(&mut self, out: &mut W) -> io::Result<()> {
        out.write_all(self.key.as_bytes())
    }

    fn end_object_value<W: ?Sized + io::Write>(&mut self, _: &mut W) -> io::Result<()> {
        self.has_items = true;
        Ok(())
    }

    fn end_object<W: ?Sized + io::Write>(&mut self, out: &mut W) -> io::Result<()> {
        self.close(out, b"}")
    }
}

/// Replaces `{% generation %}` and its end, with which `transformers` marks the model's own words for
/// training, by an `if` that is always true.
pub fn without_generation_tags(source: &str) -> String {
    let tags =
        Regex::new(r"(\{%[-+]?\s*)(generation|endgeneration)(\s*[-+]?%\})").expect("a constant pattern");
    let mut out = String::with_capacity(source.len());
    let mut done = 0;
    for found in tags.captures_iter(source) {
        let word = found.get_group(2).expect("the group takes part in every match").range();
        out.push_str(&source[done..word.start]);
        out.push_str(if source[word.clone()].starts_with("end") { "endif" } else { "if true" });
        done = word.end;
    }
    out + &source[done..]
}
