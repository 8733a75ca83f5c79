//! Methods of Python's strings, lists and dictionaries that minijinja's own collection lacks, or has with
//! fewer arguments.

use minijinja::value::{Kwargs, Tuple, Value, ValueKind, from_args};
use minijinja::{Error, ErrorKind, State};
use minijinja_contrib::pycompat;

/// Calls a method of a value, ours or minijinja's.
pub fn call(state: &mut State, value: &Value, method: &str, arguments: &[Value]) -> Result<Value, Error> {
    if method == "__slice__" {
        return slice(value, arguments);
    }
    let ours = match value.kind() {
        ValueKind::String => of_string(value.as_str().expect("a string"), method, arguments)?,
        ValueKind::Seq => of_list(value, method, arguments)?,
        // Values do not change, so a copy is the value itself.
        ValueKind::Map if method == "copy" => Some(value.clone()),
        _ => None,
    };
    match ours {
        Some(result) => Ok(result),
        None => pycompat::unknown_method_callback(state, value, method, arguments),
    }
}

fn of_string(text: &str, method: &str, arguments: &[Value]) -> Result<Option<Value>, Error> {
    Ok(Some(match method {
        "split" | "rsplit" => {
            let (separator, limit, named): (Option<Value>, Option<i64>, Kwargs) = from_args(arguments)?;
            let separator = separator.or(named.get("sep")?).filter(|separator| !separator.is_none());
            let limit = limit.or(named.get("maxsplit")?);
            named.assert_all_used()?;
            // A negative limit is none.
            let limit = limit.and_then(|limit| usize::try_from(limit).ok()).unwrap_or(usize::MAX);
            let separator = match &separator {
                Some(separator) => match separator.as_str() {
                    Some("") => return Err(invalid("empty separator")),
                    Some(separator) => Some(separator),
                    None => return Err(invalid("the separator is not a string")),
                },
                None => None,
            };
            split(text, separator, limit, method == "rsplit").into_iter().map(Value::from).collect()
        }
        "partition" | "rpartition" => {
            let (separator,): (&str,) = from_args(arguments)?;
            let parts = match method {
                "partition" => text.split_once(separator).map(|(left, right)| [left, separator, right]),
                _ => text.rsplit_once(separator).map(|(left, right)| [left, separator, right]),
            };
            let whole = if method == "partition" { [text, "", ""] } else { ["", "", text] };
            Value::from(Tuple::from(parts.unwrap_or(whole).map(Value::from)))
        }
        "splitlines" => {
            let (keep_ends, named): (Option<bool>, Kwargs) = from_args(arguments)?;
            let keep_ends = keep_ends.or(named.get("keepends")?).unwrap_or(false);
            named.assert_all_used()?;
            lines(text).map(|(line, end)| Value::from(if keep_ends { end } else { line })).collect()
        }
        "removeprefix" | "removesuffix" => {
            let (affix,): (&str,) = from_args(arguments)?;
            let rest = match method {
                "removeprefix" => text.strip_prefix(affix),
                _ => text.strip_suffix(affix),
            };
            Value::from(rest.unwrap_or(text))
        }
        "find" | "rfind" | "index" | "rindex" => {
            let (what, start, stop): (&str, Option<i64>, Option<i64>) = from_args(arguments)?;
            let (start, stop) = indices(text.chars().count(), start, stop, 1);
            let byte = |index| text.char_indices().nth(index as usize).map_or(text.len(), |(byte, _)| byte);
            let from = byte(start);
            let part = &text[from..byte(stop).max(from)];
            let found = if method.starts_with('r') { part.rfind(what) } else { part.find(what) };
            match found {
                Some(at) => Value::from(text[..from + at].chars().count()),
                None if method.ends_with("find") => Value::from(-1),
                None => return Err(invalid("substring not found")),
            }
        }
        _ => return Ok(None),
    }))
}

fn of_list(list: &Value, method: &str, arguments: &[Value]) -> Result<Option<Value>, Error> {
    Ok(Some(match method {
        "copy" => list.clone(),
        "index" => {
            let (what,): (&Value,) = from_args(arguments)?;
            let at = list.try_iter()?.position(|item| item == *what);
            Value::from(at.ok_or_else(|| invalid("the value is not in the list"))?)
        }
        _ => return Ok(None),
    }))
}

fn invalid(message: &str) -> Error {
    Error::new(ErrorKind::InvalidOperation, message.to_string())
}

/// Parts of a text, at most `limit` cuts, counted from the end if `reverse`. Without a separator runs of white
/// space separate, and none is left at the ends.
fn split<'t>(text: &'t str, separator: Option<&str>, limit: usize, reverse: bool) -> Vec<&'t str> {
    let mut parts = Vec::new();
    let mut rest = match separator {
        Some(_) => text,
        None if reverse => text.trim_end(),
        None => text.trim_start(),
    };
    while parts.len() < limit {
        let cut = match (separator, reverse) {
            (Some(separator), false) => rest.split_once(separator),
            (Some(separator), true) => rest.rsplit_once(separator),
            (None, false) => rest.split_once(char::is_whitespace).map(|(l, r)| (l, r.trim_start())),
            (None, true) => rest.rsplit_once(char::is_whitespace).map(|(l, r)| (l.trim_end(), r)),
        };
        let Some((left, right)) = cut else { break };
        parts.push(if reverse { right } else { left });
        rest = if reverse { left } else { right };
    }
    if separator.is_some() || !rest.is_empty() {
        parts.push(rest);
    }
    if reverse {
        parts.reverse();
    }
    parts
}

/// Lines without and with their ends.
pub fn lines(text: &str) -> impl Iterator<Item = (&str, &str)> {
    const ENDS: [char; 10] =
        ['\n', '\r', '\x0b', '\x0c', '\x1c', '\x1d', '\x1e', '\u{85}', '\u{2028}', '\u{2029}'];
    let mut rest = text;
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let length = rest.find(ENDS).unwrap_or(rest.len());
        let after = &rest[length..];
        let end = if after.starts_with("\r\n") { 2 } else { after.chars().next().map_or(0, char::len_utf8) };
        let (line, next) = rest.split_at(length + end);
        rest = next;
        Some((&line[..length], line))
    })
}

/// Where a slice begins and ends, as Python's `slice(start, stop, step).indices(length)`.
fn indices(length: usize, start: Option<i64>, stop: Option<i64>, step: i64) -> (i64, i64) {
    let length = i64::try_from(length).expect("no list is that long");
    let (lower, upper) = if step < 0 { (-1, length - 1) } else { (0, length) };
    let bound =
        |index: i64| (if index < 0 { index.saturating_add(length) } else { index }).clamp(lower, upper);
    let (first, last) = if step < 0 { (upper, lower) } else { (lower, upper) };
    (start.map_or(first, bound), stop.map_or(last, bound))
}

/// `value[start:stop:step]`.
fn slice(value: &Value, arguments: &[Value]) -> Result<Value, Error> {
    let (start, stop, step): (Option<i64>, Option<i64>, Option<i64>) = from_args(arguments)?;
    let step = step.unwrap_or(1);
    if step == 0 {
        return Err(invalid("slice step cannot be zero"));
    }
    let select = |length: usize| {
        let (start, stop) = indices(length, start, stop, step);
        let count = if step < 0 { start - stop } else { stop - start };
        let every = usize::try_from(step.unsigned_abs()).unwrap_or(usize::MAX);
        (0..usize::try_from(count).unwrap_or(0)).step_by(every).map(move |offset| {
            let offset = offset as i64;
            (if step < 0 { start - offset } else { start + offset }) as usize
        })
    };
    if let Some(text) = value.as_str() {
        let characters: Vec<char> = text.chars().collect();
        return Ok(Value::from(select(characters.len()).map(|at| characters[at]).collect::<String>()));
    }
    match value.kind() {
        ValueKind::Seq | ValueKind::Iterable => {}
        kind @ (ValueKind::Undefined | ValueKind::Map) => {
            return Err(invalid(&format!("a value of type {kind} cannot be sliced")));
        }
        // As any index that is not there.
        _ => return Ok(Value::UNDEFINED),
    }
    let items: Vec<Value> = value.try_iter()?.collect();
    let selected = select(items.len()).map(|at| items[at].clone());
    Ok(if value.is_tuple() { Value::from(Tuple::new(selected.collect())) } else { selected.collect() })
}
