//! What is measured, a line of JSON each, so that a run that was stopped goes on where it was.
//!
//! `{"kind": "kld", "settings": {…}}` comes before the first `{"kind": "kld", "cell": {…}}`, and says what all cells of that kind share.

use anyhow::{Context, Result, bail};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use serde_json::value::{RawValue, to_raw_value};
use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};

/// An open file of cells.
pub struct Journal {
    path: PathBuf,
    file: File,
    lines: Vec<Line>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Line {
    kind: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    settings: Option<Value>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    cell: Option<Box<RawValue>>,
}

impl Journal {
    /// Reads a file, or begins one. What was being written when a run ended is cut off.
    pub fn open(path: &Path) -> Result<Journal> {
        let called = || format!("--resume: `{}`", path.display());
        let mut file =
            OpenOptions::new().create(true).append(true).read(true).open(path).with_context(called)?;
        let mut text = String::new();
        file.read_to_string(&mut text).with_context(called)?;
        let whole = text.rfind('\n').map_or(0, |end| end + 1);
        let mut lines = Vec::new();
        for (index, line) in text[..whole].lines().enumerate() {
            let line = serde_json::from_str(line);
            lines.push(
                line.with_context(|| format!("{}: line {} is not of `torque eval`", called(), index + 1))?,
            );
        }
        let rest = &text[whole..];
        if !rest.is_empty() {
            if lines.is_empty() && !rest.starts_with("{\"kind\":") {
                bail!("{} is not of `torque eval`", called());
            }
            file.set_len(whole as u64).with_context(called)?;
        }
        Ok(Journal { path: path.into(), file, lines })
    }

    /// The cells of a kind, which must have been measured with these settings.
    pub fn begin<Cell: DeserializeOwned>(&mut self, kind: &str, settings: &Value) -> Result<Vec<Cell>> {
        let called = format!("--resume: `{}`", self.path.display());
        let ours = || self.lines.iter().filter(|line| line.kind == kind);
        match ours().find_map(|line| line.settings.as_ref()) {
            Some(theirs) if theirs != settings => {
                let (key, theirs, ours) = difference(theirs, settings);
                bail!("{called} was measured with another {key}: {theirs}, not {ours}; give another file");
            }
            Some(_) => {
                let cells = ours().filter_map(|line| line.cell.as_deref());
                let cells = cells.map(|cell| serde_json::from_str(cell.get())).collect::<Result<_, _>>();
                cells.with_context(|| format!("{called} is of another version"))
            }
            None => {
                let line = Line { kind: kind.into(), settings: Some(settings.clone()), cell: None };
                self.write(&line)?;
                self.lines.push(line);
                Ok(Vec::new())
            }
        }
    }

    /// Adds a cell.
    pub fn add(&self, kind: &str, cell: &impl Serialize) -> Result<()> {
        self.write(&Line { kind: kind.into(), settings: None, cell: Some(to_raw_value(cell)?) })
    }

    /// Writes a line at once, so that only the last one can be incomplete.
    fn write(&self, line: &Line) -> Result<()> {
        let text = serde_json::to_string(line)? + "\n";
        let written = (&self.file).write_all(text.as_bytes());
        written.with_context(|| format!("--resume: cannot write `{}`", self.path.display()))
    }
}

/// The first setting that differs: its name and values.
fn difference(theirs: &Value, ours: &Value) -> (String, Value, Value) {
    let keys = ours.as_object().into_iter().flat_map(|settings| settings.keys());
    let differs = keys.filter(|key| theirs.get(key) != ours.get(key)).map(|key| {
        let value = |settings: &Value| settings.get(key).cloned().unwrap_or_default();
        (key.clone(), value(theirs), value(ours))
    });
    differs.take(1).next().unwrap_or_else(|| ("setting".into(), theirs.clone(), ours.clone()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn what_was_added_is_there_again() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("run.jsonl");
        let settings = json!({ "context": 512 });
        let mut journal = Journal::open(&path).unwrap();
        assert!(journal.begin::<u32>("kld", &settings).unwrap().is_empty());
        journal.add("kld", &1).unwrap();
        journal.add("kld", &2).unwrap();
        assert!(journal.begin::<String>("needle", &json!({})).unwrap().is_empty());
        journal.add("needle", &"three").unwrap();
        let mut journal = Journal::open(&path).unwrap();
        assert_eq!(journal.begin::<u32>("kld", &settings).unwrap(), [1, 2]);
        assert_eq!(journal.begin::<String>("needle", &json!({})).unwrap(), ["three"]);
        let error = journal.begin::<u32>("kld", &json!({ "context": 256 })).unwrap_err().to_string();
        assert!(error.contains("another context: 512, not 256") && error.contains("run.jsonl"), "{error}");
    }

    #[test]
    fn an_incomplete_line_is_cut_off_and_other_files_are_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("run.jsonl");
        let whole = "{\"kind\":\"kld\",\"settings\":{}}\n{\"kind\":\"kld\",\"cell\":1}\n";
        std::fs::write(&path, format!("{whole}{{\"kind\":\"kld\",\"cell\":2")).unwrap();
        let mut journal = Journal::open(&path).unwrap();
        assert_eq!(journal.begin::<u32>("kld", &json!({})).unwrap(), [1]);
        journal.add("kld", &3).unwrap();
        assert_eq!(
            std::fs::read_to_string(&path).unwrap(),
            format!("{whole}{{\"kind\":\"kld\",\"cell\":3}}\n")
        );
        for text in ["A poem", "A poem\nof two lines\n", "{\"kind\":\"kld\",\"colour\":1}\n", "{}\n"] {
            std::fs::write(&path, text).unwrap();
            let error = Journal::open(&path).err().unwrap().to_string();
            assert!(error.contains("is not of `torque eval`"), "{error}");
            assert_eq!(std::fs::read_to_string(&path).unwrap(), text);
        }
    }
}
