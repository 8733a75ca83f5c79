use crate::{json, output, shared, stdout, torque};
use serde_json::{Value, json};
use std::fs;
use std::path::Path;

#[test]
fn every_combination_is_a_row() {
    let rows =
        json(&mut torque("bench -p 8,16 -n 4 -d 0,40 -r 2 -t 1 -ctk f16,turbo3 -ctv q8_0 -b 8 --json"));
    let rows = rows.as_array().unwrap();
    let tests: Vec<&str> = rows.iter().map(|row| row["test"].as_str().unwrap()).collect();
    let once = ["pp8", "pp16", "tg4", "pp8 @ d40", "pp16 @ d40", "tg4 @ d40"];
    assert_eq!(tests, [once, once].concat());
    for row in rows {
        for key in ["model", "isa", "backend", "type_k", "type_v", "cpu", "compiler", "revision", "date"] {
            assert!(row[key].is_string(), "{key}: {row}");
        }
        for key in ["stddev", "n_prompt", "n_gen", "n_depth", "threads", "batch"] {
            assert!(row[key].is_number(), "{key}: {row}");
        }
        assert!(
            row["tokens_per_s"].as_f64().unwrap() > 0.0 && row["gb_per_s"].as_f64().unwrap() > 0.0,
            "{row}"
        );
        assert_eq!(row["samples"].as_array().unwrap().len(), 2);
        assert_eq!(row["machine_gb_per_s"].as_array().unwrap().len(), 2);
        assert!(row["compiler"].as_str().unwrap().starts_with("rustc 1."), "{row}");
        assert!(row["date"].as_str().unwrap().starts_with("20"), "{row}");
    }
}

#[test]
fn values_that_are_not_read_are_counted() {
    let deep = "bench -p 0 -n 2 -d 3000 -r 1 -ctk q8_0 -ctv turbo2 --json";
    let skipped = |flags: &str| json(&mut torque(&format!("{deep} {flags}")))[0]["values_skipped"].clone();
    assert_eq!(skipped(""), Value::Null);
    let share = skipped("--sparse-v 1").as_f64().expect("a share");
    assert!(0.0 < share && share < 1.0, "{share}");
}

#[test]
fn the_table_is_markdown() {
    let table = stdout(&mut torque("bench --synthetic tiny --type q8_0,q4_0 -p 0 -n 4 -r 1"));
    let lines: Vec<&str> = table.lines().collect();
    assert_eq!(lines.len(), 4, "{table}");
    assert!(
        lines[0].contains("tokens/s") && lines[1].starts_with("| --") && lines[2].contains("tg4"),
        "{table}"
    );
}

#[test]
fn files_tell_how_they_load() {
    let rows = json(torque("bench -p 0 -n 0 -r 2 -ctk q8_0 --json -m").arg(shared("demo/demo.gguf")));
    let [load] = &rows.as_array().unwrap()[..] else { panic!("{rows}") };
    assert_eq!((&load["test"], &load["type_k"]), (&json!("load"), &json!("q8_0")));
    let seconds = load["first_token_s"].as_f64().unwrap();
    assert!(seconds > 0.0 && seconds < 60.0, "{load}");
    let file = fs::metadata(shared("demo/demo.gguf")).unwrap().len();
    if cfg!(target_os = "linux") {
        let peak = load["peak_bytes"].as_u64().unwrap();
        assert!(peak > file / 2 && peak < 2 * file + (256 << 20), "{load}");
    }
    let table = stdout(torque("bench -p 0 -n 2 -r 1 -m").arg(shared("demo/demo.gguf")));
    assert!(table.contains("peak memory") && table.contains("| load |"), "{table}");
}

#[test]
fn kernels_stand_beside_their_limits() {
    let report = json(&mut torque("bench --kernels turbo2,seal,scores --isa scalar --json"));
    assert!(report["limits"]["read"].as_f64().unwrap() > 0.0, "{report}");
    assert_eq!(report["limits"]["multiply"][0]["isa"], "scalar");
    let kernels = report["kernels"].as_array().unwrap();
    let names: Vec<(&str, u64)> =
        kernels.iter().map(|row| (row["kernel"].as_str().unwrap(), row["count"].as_u64().unwrap())).collect();
    assert_eq!(names, [("scores", 1), ("scores", 4), ("scores", 8), ("seal", 1)]);
    for row in kernels {
        assert_eq!((&row["format"], &row["isa"]), (&json!("turbo2"), &json!("scalar")));
        let [speed, limit, part] = ["speed", "limit", "of_limit"].map(|key| row[key].as_f64().unwrap());
        assert!(speed > 0.0 && (speed / limit / part - 1.0).abs() < 1e-6, "{row}");
    }
    let table = stdout(&mut torque("bench --isa scalar --kernels turbo2,seal"));
    for part in ["memory read", "scalar float multiply-adds", "| seal ", " GB/s |", " % |"] {
        assert!(table.contains(part), "{part}: {table}");
    }
}

#[test]
fn records_grow() {
    let folder = tempfile::tempdir().unwrap();
    let record = || torque("bench --synthetic tiny -p 0 -n 4 -r 3 --record").arg(folder.path()).ok().unwrap();
    record();
    let second = record();
    let only = |folder: &Path| {
        let mut entries = fs::read_dir(folder).unwrap();
        let path = entries.next().unwrap().unwrap().path();
        assert!(entries.next().is_none(), "{}", folder.display());
        path
    };
    let machine = only(folder.path());
    assert!(machine.to_str().unwrap().ends_with("-cores"), "{}", machine.display());
    let file = only(&machine);
    let told = String::from_utf8(second.stderr).unwrap();
    assert!(told.contains(file.to_str().unwrap()), "{told}");
    let text = fs::read_to_string(&file).unwrap();
    assert_eq!(text.lines().count(), 3, "{text}");
    assert!(
        text.starts_with("model,architecture,") && text.contains(",cpu,compiler,revision,date"),
        "{text}"
    );
    // What was recorded is a baseline.
    let rows = json(torque("bench --synthetic tiny -p 0 -n 4 -r 3 --json --baseline").arg(slow(&file)));
    assert!(rows[0]["of_baseline"].as_f64().unwrap() > 1.0, "{rows}");
}

/// A record whose rows all took a thousand times as long.
fn slow(record: &Path) -> std::path::PathBuf {
    let text = fs::read_to_string(record).unwrap();
    let mut lines = text.lines();
    let header: Vec<&str> = lines.next().unwrap().split(',').collect();
    let samples = header.iter().position(|column| *column == "samples").unwrap();
    let mut out = header.join(",") + "\n";
    for line in lines {
        let mut cells: Vec<&str> = line.split(',').collect();
        assert_eq!(cells.len(), header.len(), "no cell of this test has a comma: {line}");
        cells[samples] = "0.001 0.001 0.001";
        out += &(cells.join(",") + "\n");
    }
    let path = record.with_extension("slow.csv");
    fs::write(&path, out).unwrap();
    path
}

/// Writes a file's JSON with the samples of every row `rate`, and other rates, if so.
fn with_rate(path: &Path, rate: f64) {
    fn set(value: &mut Value, rate: f64) {
        match value {
            Value::Array(values) => values.iter_mut().for_each(|value| set(value, rate)),
            Value::Object(fields) => {
                for (name, value) in fields {
                    if name == "samples" {
                        *value = json!(vec![rate; 3]);
                    } else {
                        set(value, rate);
                    }
                }
            }
            _ => {}
        }
    }
    let mut value: Value = serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap();
    set(&mut value, rate);
    fs::write(path, value.to_string()).unwrap();
}

#[test]
fn slower_than_the_baseline_is_an_error() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("rows.json");
    let bench = |flags: &str| torque(&format!("bench --synthetic tiny -p 8 -n 4 -r 3 {flags}"));
    fs::write(&file, stdout(&mut bench("--json"))).unwrap();
    with_rate(&file, 1e-3);
    let faster = output(bench("--baseline").arg(&file));
    assert_eq!(faster.status, 0, "{}", faster.stderr);
    assert!(faster.stdout.contains("of baseline") && faster.stdout.contains("×"), "{}", faster.stdout);
    with_rate(&file, 1e12);
    let slower = output(bench("--baseline").arg(&file));
    assert_eq!(slower.status, 1, "{}", slower.stdout);
    for part in ["slower than the baseline", "synthetic tiny q4_k", "and 1 more"] {
        assert!(slower.stderr.contains(part), "{part}: {}", slower.stderr);
    }
    assert!(slower.stdout.contains("0.000×"), "the table comes all the same: {}", slower.stdout);
    // Rows that the baseline has not.
    let new = output(bench("-ctk q8_0 --baseline").arg(&file));
    assert_eq!(new.status, 0, "{}", new.stderr);
    assert!(new.stdout.contains("| ") && new.stdout.contains("new") && new.stderr.contains("warning"));
}

#[test]
fn the_gate_tells_by_its_status() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("gate.json");
    let gate = |flags: &str| output(torque(&format!("bench gate -n 4 -d 0 {flags} --baseline")).arg(&file));
    let turbo = "-r 3 -ctk turbo3 -ctv turbo3";
    let written = gate(turbo);
    assert_eq!(written.status, 0, "{}", written.stderr);
    assert!(
        written.stdout.contains("written to") && written.stdout.contains("gate.json"),
        "{}",
        written.stdout
    );
    with_rate(&file, 1e-3);
    let fine = gate(turbo);
    assert_eq!((fine.status, fine.stdout.lines().count()), (0, 3), "{}{}", fine.stdout, fine.stderr);
    assert!(fine.stdout.lines().all(|line| line.starts_with("ok ")), "{}", fine.stdout);

    with_rate(&file, 1e12);
    let slower = gate(turbo);
    assert_eq!(slower.status, 1, "{}", slower.stderr);
    let worse = |stdout: &str| stdout.lines().filter(|line| line.starts_with("WORSE ")).count();
    assert!(worse(&slower.stdout) == 1 && slower.stdout.starts_with("WORSE "), "{}", slower.stdout);

    // A baseline that was anything from a tenth to ten times our speed.
    let mut wide: Value = serde_json::from_str(&fs::read_to_string(&file).unwrap()).unwrap();
    let rate = wide["speed"]["tokens_per_s"].as_f64().unwrap();
    wide["speed"]["samples"] = json!([rate / 10.0, rate, rate * 10.0]);
    fs::write(&file, wide.to_string()).unwrap();
    let unclear = gate(turbo);
    assert_eq!(unclear.status, 2, "{}", unclear.stdout);
    assert!(unclear.stdout.starts_with("UNCLEAR ") && unclear.stderr.contains("noise"), "{}", unclear.stdout);

    // Better numbers than ours, at a speed that anything beats.
    with_rate(&file, 1e-3);
    let mut better: Value = serde_json::from_str(&fs::read_to_string(&file).unwrap()).unwrap();
    let found = better["quality"]["kl_divergence"].as_f64().unwrap();
    assert!(found > 1e-5, "turbo3 can be told from f16: {found}");
    better["quality"]["kl_divergence"] = json!(found / 2.0);
    fs::write(&file, better.to_string()).unwrap();
    let worse_numbers = gate(turbo);
    assert_eq!(worse_numbers.status, 1, "{}", worse_numbers.stderr);
    let line = worse_numbers.stdout.lines().find(|line| line.starts_with("WORSE ")).unwrap();
    assert!(line.contains("KL divergence") && worse(&worse_numbers.stdout) == 1, "{}", worse_numbers.stdout);

    // Whatever cannot be compared.
    for (flags, what) in [
        ("-r 3 -ctk turbo2 -ctv turbo3", "another run"),
        ("-r 3 -ctk turbo3 -ctv turbo3 --kv-sink 0", "another policy"),
        ("-r 2", "-r 3"),
        ("-r 3 -m /no/such.gguf", "/no/such.gguf"),
    ] {
        let found = gate(flags);
        assert_eq!(found.status, 2, "{flags}: {}", found.stdout);
        assert!(found.stderr.contains(what), "{flags}: {}", found.stderr);
    }
    let renewed = gate("-r 3 --write");
    assert_eq!(renewed.status, 0, "{}", renewed.stderr);
    fs::write(&file, "[]").unwrap();
    let broken = gate(turbo);
    assert_eq!(broken.status, 2, "{}", broken.stdout);
    assert!(broken.stderr.contains("gate.json") && broken.stderr.contains("--baseline"), "{}", broken.stderr);
}

#[test]
fn the_environment_chooses_an_instruction_set() {
    let isa = |value: &str, flags: &str| {
        let bench = format!("bench --synthetic tiny -p 2 -n 0 -r 1 --json {flags}");
        json(torque(&bench).env("TORQUE_ISA", value))[0]["isa"].as_str().unwrap().to_string()
    };
    let best = json(&mut torque("bench --synthetic tiny -p 2 -n 0 -r 1 --json"))[0]["isa"].clone();
    assert_eq!(isa("scalar", ""), "scalar");
    assert_eq!(isa("", ""), best, "an empty value is none");
    assert_eq!(isa("scalar", &format!("--isa {}", best.as_str().unwrap())), best, "the flag wins");
    let verbose = output(torque("run -p x -n 1 -v").env("TORQUE_ISA", "scalar"));
    assert!(verbose.stderr.contains("cpu (scalar)"), "{}", verbose.stderr);
    for command in
        ["", "run -p x", "chat", "bench", "bench --kernels seal", "eval perplexity --chunks 1 -f README"]
    {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("README"), "text ".repeat(2000)).unwrap();
        let run =
            |command: &mut assert_cmd::Command| output(command.current_dir(folder.path()).write_stdin("x"));
        let found = run(torque(command).env("TORQUE_ISA", "mmx"));
        assert_eq!(found.status, 1, "{command}: {}", found.stderr);
        assert!(
            found.stderr.contains("instruction set `mmx` is not available"),
            "{command}: {}",
            found.stderr
        );
        if !command.is_empty() {
            let flag = run(torque(command).args(["--isa", "mmx"]));
            assert_eq!((flag.status, &flag.stderr), (1, &found.stderr), "{command}");
        }
    }
}
