//! Measurements in files: records, that are added to, and baselines, that are read.

use super::row::Row;
use anyhow::{Context, Result, bail};
use std::fs::{self, OpenOptions};
use std::path::{Path, PathBuf};

/// The record of a machine and day.
pub struct Record {
    path: PathBuf,
}

impl Record {
    /// `folder/<machine>/<date>.csv`, its folder made.
    pub fn new(folder: &Path, cpu: &str, cores: usize, date: &str) -> Result<Record> {
        let folder = folder.join(machine(cpu, cores));
        fs::create_dir_all(&folder)
            .with_context(|| format!("--record: cannot make `{}`", folder.display()))?;
        let day = date.split('T').next().unwrap_or_default();
        Ok(Record { path: folder.join(format!("{day}.csv")) })
    }

    /// Adds rows, below those that are there; where.
    pub fn add(&self, rows: &[Row]) -> Result<&Path> {
        let path = &self.path;
        let file = || format!("--record: `{}`", path.display());
        let out = OpenOptions::new().create(true).append(true).open(path).with_context(file)?;
        let is_new = out.metadata().with_context(file)?.len() == 0;
        let mut out = csv::Writer::from_writer(out);
        for (i, row) in rows.iter().enumerate() {
            let cells = row.cells()?;
            let columns: Vec<&String> = cells.iter().map(|(name, _)| name).collect();
            if i == 0 && is_new {
                out.write_record(columns).with_context(file)?;
            } else if i == 0
                && csv::Reader::from_path(path).and_then(|mut r| r.headers().cloned())? != columns
            {
                bail!("{} has other columns, of another revision: move it away", file());
            }
            out.write_record(cells.iter().map(|(_, cell)| cell)).with_context(file)?;
        }
        out.flush().with_context(file)?;
        Ok(path)
    }
}

/// The name of a machine's folder: `amd-epyc-9655-2-cores`.
fn machine(cpu: &str, cores: usize) -> String {
    let name = format!("{cpu} {cores} cores").to_lowercase();
    let words: Vec<&str> =
        name.split(|c: char| !c.is_ascii_alphanumeric()).filter(|w| !w.is_empty()).collect();
    words.join("-")
}

/// The rows of an earlier run: what --json has printed, or a record.
pub fn read(path: &Path) -> Result<Vec<Row>> {
    let file = || format!("--baseline: `{}`", path.display());
    let text = fs::read_to_string(path).with_context(file)?;
    let rows: Vec<Row> = if text.trim_start().starts_with('[') {
        serde_json::from_str(&text).with_context(file)?
    } else {
        let rows = csv::Reader::from_reader(text.as_bytes()).into_deserialize().collect::<Result<_, _>>();
        rows.with_context(|| format!("{} is neither JSON nor CSV of `torque bench`", file()))?
    };
    if rows.is_empty() {
        bail!("{} has no rows", file());
    }
    Ok(rows)
}

#[cfg(test)]
mod tests {
    use super::super::row::tests::row;
    use super::*;

    #[test]
    fn machines_have_names_for_folders() {
        assert_eq!(machine("AMD EPYC 9655", 2), "amd-epyc-9655-2-cores");
        assert_eq!(machine("Intel(R) Xeon(R) @ 2.10GHz", 64), "intel-r-xeon-r-2-10ghz-64-cores");
    }

    #[test]
    fn what_is_recorded_is_read() {
        let folder = tempfile::tempdir().unwrap();
        let rows = [row("tg4", &[1.5, 2.25], &[10.0, 11.5]), row("pp8", &[3.0], &[])];
        let load = Row { first_token_s: Some(0.125), peak_bytes: Some(77), ..rows[0].clone() };
        let record = || Record::new(folder.path(), &rows[0].cpu, 2, &rows[0].date).unwrap();
        assert_eq!(record().path, folder.path().join("cpu-1-ghz-2-cores/2026-01-31.csv"));
        record().add(&rows).unwrap();
        record().add(&[load]).unwrap();
        let found = read(&record().path).unwrap();
        assert_eq!(
            found.iter().map(Row::key).collect::<Vec<_>>(),
            [&rows[0], &rows[1], &rows[0]].map(Row::key)
        );
        assert_eq!(found[0].samples, [1.5, 2.25]);
        assert_eq!((&found[1].samples[..], found[1].machine_gb_per_s.len()), (&[3.0][..], 0));
        assert_eq!(
            (found[1].peak_bytes, found[2].peak_bytes, found[2].first_token_s),
            (None, Some(77), Some(0.125))
        );
        let json = folder.path().join("rows.json");
        fs::write(&json, serde_json::to_string_pretty(&found).unwrap()).unwrap();
        assert_eq!(read(&json).unwrap()[0].samples, [1.5, 2.25]);
    }

    #[test]
    fn files_that_are_no_records() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.csv");
        for text in ["", "model,test\nx,y\n", "[]", "[{\"model\": 1}]", "\u{0}\u{1}"] {
            fs::write(&path, text).unwrap();
            let error = format!("{:#}", read(&path).unwrap_err());
            assert!(error.contains("--baseline") && error.contains("x.csv"), "{error}");
        }
        assert!(read(Path::new("/no/such")).is_err());
        let record = Record::new(folder.path(), "x", 2, "2026-01-31").unwrap();
        fs::write(&record.path, "other,columns\n").unwrap();
        let error = record.add(&[row("tg4", &[1.0], &[])]).unwrap_err().to_string();
        assert!(error.contains("2026-01-31.csv") && error.contains("columns"), "{error}");
        assert_eq!(fs::read_to_string(&record.path).unwrap(), "other,columns\n");
        assert!(Record::new(&path, "x", 2, "2026-01-31").is_err());
    }
}
