//! What chat templates take from Python and `transformers` that Jinja itself does not have, and where
//! minijinja differs from Jinja.

use std::fmt::Write;
use std::sync::LazyLock;

use minijinja::value::{Kwargs, Value, ValueKind};
use minijinja::{Environment, Error, ErrorKind, Output, State};
use regex_automata::meta::Regex;

use super::{json, methods};

/// Adds functions, filters, tests and methods, and prints values as Python does.
pub fn add_to(environment: &mut Environment) {
    environment.set_formatter(print);
    environment.set_unknown_method_callback(methods::call);
    environment.add_function("raise_exception", raise_exception);
    environment.add_function("strftime_now", strftime_now);
    environment.add_filter("tojson", json::to_json);
    environment.add_filter("string", |value: &Value| text(value));
    for name in ["length", "count"] {
        environment.add_filter(name, length);
    }
    for name in ["default", "d"] {
        environment.add_filter(name, default);
    }
    environment.add_filter("indent", indent);
    environment.add_filter("replace", replace);
    environment.add_filter("trim", trim);
    environment.add_test("iterable", is_iterable);
    environment.add_test("sequence", is_sequence);
}

/// `raise_exception(message)`: the template refuses the messages.
fn raise_exception(message: String) -> Result<Value, Error> {
    Err(Error::new(ErrorKind::InvalidOperation, message))
}

/// `strftime_now(format)`: the local time.
fn strftime_now(format: String) -> Result<String, Error> {
    jiff::fmt::strtime::format(&format, &jiff::Zoned::now()).map_err(|error| {
        Error::new(ErrorKind::InvalidOperation, format!("strftime_now({format:?}): {error}"))
    })
}

/// `length`: what is undefined has none, rather than being an error.
fn length(value: &Value) -> Result<usize, Error> {
    let refused =
        || Error::new(ErrorKind::InvalidOperation, format!("a value of type {} has no length", value.kind()));
    if value.is_undefined() { Ok(0) } else { value.len().ok_or_else(refused) }
}

/// `default(value, boolean)`: with `boolean` also for what counts as false. Both arguments may be named.
fn default(
    value: &Value,
    other: Option<Value>,
    boolean: Option<bool>,
    named: Kwargs,
) -> Result<Value, Error> {
    let other = other.or(named.get("default_value")?);
    let boolean = boolean.or(named.get("boolean")?).unwrap_or(false);
    named.assert_all_used()?;
    let replaced = value.is_undefined() || boolean && !value.is_true();
    Ok(if replaced { other.unwrap_or_else(|| Value::from("")) } else { value.clone() })
}

/// `replace(old, new, count)`.
fn replace(value: &Value, old: &str, new: &str, count: Option<usize>) -> String {
    text(value).replacen(old, new, count.unwrap_or(usize::MAX))
}

/// `trim(chars)`, which prints what is no string.
fn trim(value: &Value, characters: Option<&str>) -> String {
    let text = text(value);
    match characters {
        Some(characters) => text.trim_matches(|c| characters.contains(c)).to_string(),
        None => text.trim().to_string(),
    }
}

/// `indent(width, first, blank)`: a line end at the end stays, and `width` may be a text.
fn indent(
    value: &Value,
    width: Option<Value>,
    first: Option<bool>,
    blank: Option<bool>,
    named: Kwargs,
) -> Result<String, Error> {
    let width = width.or(named.get("width")?).unwrap_or_else(|| Value::from(4));
    let first = first.or(named.get("first")?).unwrap_or(false);
    let blank = blank.or(named.get("blank")?).unwrap_or(false);
    named.assert_all_used()?;
    let margin = match width.as_str() {
        Some(margin) => margin.to_string(),
        None => " ".repeat(usize::try_from(width)?),
    };
    let text = text(value) + "\n";
    let mut out = String::with_capacity(text.len());
    for (index, (line, _)) in methods::lines(&text).enumerate() {
        if index > 0 {
            out.push('\n');
        }
        if if index == 0 { first } else { blank || !line.is_empty() } {
            out += &margin;
        }
        out += line;
    }
    Ok(out)
}

/// `iterable`: unlike in minijinja, `none` is not.
fn is_iterable(value: &Value) -> bool {
    !value.is_none() && value.try_iter().is_ok()
}

/// `sequence`: what has a length and can be indexed, so strings and dictionaries too.
fn is_sequence(value: &Value) -> bool {
    use ValueKind::*;
    matches!(value.kind(), Undefined | String | Bytes | Seq | Map)
}

/// What `{{ value }}` prints.
fn print(out: &mut Output, _: &mut State, value: &Value) -> Result<(), Error> {
    match value.as_str() {
        Some(text) => out.write_str(text),
        None => out.write_str(&text(value)),
    }
    .map_err(Error::from)
}

/// `str(value)`.
pub fn text(value: &Value) -> String {
    let mut out = String::new();
    match value.as_str() {
        Some(text) => out += text,
        None if value.is_undefined() => {}
        None => write_repr(value, &mut out),
    }
    out
}

/// `repr(value)`.
fn write_repr(value: &Value, out: &mut String) {
    let mut items = |open: &str, close: &str, items: &mut dyn Iterator<Item = (Option<Value>, Value)>| {
        *out += open;
        for (index, (key, value)) in items.enumerate() {
            *out += if index == 0 { "" } else { ", " };
            if let Some(key) = key {
                write_repr(&key, out);
                *out += ": ";
            }
            write_repr(&value, out);
        }
        *out += close;
    };
    let object = value.as_object();
    match (value.kind(), object) {
        (ValueKind::String, _) => quote(value.as_str().unwrap_or_default(), out),
        (ValueKind::Number, _) if !value.is_integer() => {
            *out += &f64::try_from(value.clone()).map_or_else(|_| value.to_string(), float);
        }
        (ValueKind::Seq, Some(list)) => {
            let mut values = list.try_iter().into_iter().flatten().map(|value| (None, value));
            match value.is_tuple() {
                true if value.len() == Some(1) => items("(", ",)", &mut values),
                true => items("(", ")", &mut values),
                false => items("[", "]", &mut values),
            }
        }
        (ValueKind::Map, Some(map)) if !value.is_kwargs() => {
            items("{", "}", &mut map.try_iter_pairs().into_iter().flatten().map(|(k, v)| (Some(k), v)));
        }
        _ => *out += &value.to_string(),
    }
}

/// `repr` of a string: in double quotes if that spares escapes.
fn quote(text: &str, out: &mut String) {
    static HIDDEN: LazyLock<Regex> =
        LazyLock::new(|| Regex::new(r"[[\p{Other}\p{Separator}]--[ ]]").expect("a constant pattern"));
    let quote = if text.contains('\'') && !text.contains('"') { '"' } else { '\'' };
    out.push(quote);
    let mut buffer = [0; 4];
    for character in text.chars() {
        match character {
            '\n' => *out += "\\n",
            '\r' => *out += "\\r",
            '\t' => *out += "\\t",
            '\\' => *out += "\\\\",
            _ if character == quote => out.extend(['\\', quote]),
            _ if HIDDEN.is_match(character.encode_utf8(&mut buffer).as_bytes()) => {
                let _ = match u32::from(character) {
                    code @ ..0x100 => write!(out, "\\x{code:02x}"),
                    code @ ..0x10000 => write!(out, "\\u{code:04x}"),
                    code => write!(out, "\\U{code:08x}"),
                };
            }
            _ => out.push(character),
        }
    }
    out.push(quote);
}

/// `repr` of a float. Rust and Python choose the same digits, and an exponent for the same numbers, but Python
/// gives that a sign and two digits.
pub fn float(number: f64) -> String {
    let text = format!("{number:?}");
    let Some((digits, exponent)) = text.split_once('e') else { return text.to_lowercase() };
    let (sign, exponent) = match exponent.strip_prefix('-') {
        Some(exponent) => ('-', exponent),
        None => ('+', exponent),
    };
    format!("{digits}e{sign}{exponent:0>2}")
}
