//! Numbers and texts as people write them.

use anyhow::{Context, Result};
use std::io::{IsTerminal, Read};
use std::path::Path;

/// `494 M`, `7.7 M`, `1.05 B`: three digits and a unit.
pub fn count(n: u64) -> String {
    let mut value = n as f64;
    for unit in ["", " K", " M", " B"] {
        if value < 999.5 {
            return format!("{}{unit}", three_digits(value, unit.is_empty()));
        }
        value /= 1000.0;
    }
    format!("{} T", three_digits(value, false))
}

/// `123`, `12.3`, `1.23`.
fn three_digits(value: f64, whole: bool) -> String {
    match value {
        _ if whole => format!("{value:.0}"),
        v if v < 9.995 => format!("{v:.2}"),
        v if v < 99.95 => format!("{v:.1}"),
        v => format!("{v:.0}"),
    }
}

/// Three digits that count: `0.00820`, `12.3`, `5.20e-5`.
pub fn significant(value: f64) -> String {
    let exponent = value.abs().log10().floor();
    match value {
        0.0 => "0".into(),
        _ if !exponent.is_finite() => format!("{value}"),
        _ if exponent < -4.0 => format!("{value:.2e}"),
        _ => format!("{value:.*}", (2.0 - exponent).max(0.0) as usize),
    }
}

/// `8GiB`, `512 MiB`, `1.5G`: bytes, in powers of 1024.
pub fn bytes(text: &str) -> Result<usize, String> {
    let digits = text.trim_end_matches(|c: char| c.is_alphabetic());
    let unit = text[digits.len()..].to_lowercase();
    let power = ["", "k", "m", "g", "t"]
        .iter()
        .position(|name| unit.trim_end_matches('b').trim_end_matches('i') == *name);
    match (digits.trim().parse::<f64>(), power) {
        (Ok(n), Some(power)) if n > 0.0 => Ok((n * 1024f64.powi(power as i32)) as usize),
        _ => Err("expected a size such as 8GiB or 512MiB".into()),
    }
}

/// `131,072`.
pub fn thousands(n: u64) -> String {
    let digits = n.to_string();
    let mut text = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// Tokens per second: two decimals below ten, one above.
pub fn rate(tokens: usize, seconds: f64) -> String {
    if tokens == 0 || seconds <= 0.0 {
        return "–".into();
    }
    let rate = tokens as f64 / seconds;
    if rate < 10.0 { format!("{rate:.2}") } else { format!("{rate:.1}") }
}

/// The escape sequences of llama.cpp: `\n \r \t \' \" \\` and `\xHH`. What is none of them stays as it is.
pub fn unescape(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('\\') {
        bytes.extend_from_slice(&rest.as_bytes()[..at]);
        rest = &rest[at + 1..];
        let simple = match rest.as_bytes().first() {
            Some(b'n') => Some(b'\n'),
            Some(b'r') => Some(b'\r'),
            Some(b't') => Some(b'\t'),
            Some(c @ (b'\'' | b'"' | b'\\')) => Some(*c),
            _ => None,
        };
        let hex = rest.strip_prefix('x').and_then(|hex| hex.get(..2));
        if let Some(byte) = simple {
            bytes.push(byte);
            rest = &rest[1..];
        } else if let Some(byte) = hex.and_then(|hex| u8::from_str_radix(hex, 16).ok()) {
            bytes.push(byte);
            rest = &rest[3..];
        } else {
            bytes.push(b'\\');
        }
    }
    bytes.extend_from_slice(rest.as_bytes());
    String::from_utf8_lossy(&bytes).into_owned()
}

/// A text file, or stdin if it is named `-`.
pub fn read(path: &Path) -> Result<String> {
    if path == Path::new("-") {
        return read_stdin();
    }
    let bytes = std::fs::read(path).with_context(|| format!("cannot read `{}`", path.display()))?;
    utf8(bytes, &format!("`{}`", path.display()))
}

/// What is piped into the program; `None` if stdin is a terminal.
pub fn piped() -> Result<Option<String>> {
    if std::io::stdin().is_terminal() { Ok(None) } else { read_stdin().map(Some) }
}

fn read_stdin() -> Result<String> {
    let mut bytes = Vec::new();
    std::io::stdin().read_to_end(&mut bytes).context("cannot read stdin")?;
    utf8(bytes, "stdin")
}

fn utf8(bytes: Vec<u8>, what: &str) -> Result<String> {
    String::from_utf8(bytes).map_err(|error| {
        let at = error.utf8_error().valid_up_to();
        anyhow::anyhow!("{what} is not valid UTF-8: byte {at} is {:#04x}", error.as_bytes()[at])
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_have_three_digits() {
        for (n, text) in
            [(0, "0"), (999, "999"), (1000, "1.00 K"), (7_734_784, "7.73 M"), (494_000_000, "494 M")]
        {
            assert_eq!(count(n), text);
        }
        assert_eq!(count(999_600), "1.00 M");
        assert_eq!(count(70_560_000_000), "70.6 B");
        assert_eq!(thousands(1_234_567), "1,234,567");
        assert_eq!(thousands(12), "12");
    }

    #[test]
    fn escapes_are_those_of_llama_cpp() {
        for (given, expected) in [
            (r"a\nb\t", "a\nb\t"),
            (r"\\n", r"\n"),
            (r"\x41\xe2\x82\xac", "A€"),
            (r"\q \x4 \xzz \", r"\q \x4 \xzz \"),
            (r#"\"\'"#, "\"'"),
            ("é\\né", "é\né"),
        ] {
            assert_eq!(unescape(given), expected, "{given}");
        }
    }
}
