use crate::{json, stdout, torque};

#[test]
fn every_combination_is_a_row() {
    let rows =
        json(&mut torque("bench -p 8,16 -n 4 -d 0,40 -r 2 -t 1 -ctk f16,turbo3 -ctv q8_0 -b 8 --json"));
    let rows = rows.as_array().unwrap();
    let tests: Vec<&str> = rows.iter().map(|row| row["test"].as_str().unwrap()).collect();
    let once = ["pp8", "pp16", "tg4", "pp8 @ d40", "pp16 @ d40", "tg4 @ d40"];
    assert_eq!(tests, [once, once].concat());
    for row in rows {
        for key in ["model", "isa", "backend", "type_k", "type_v"] {
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
    }
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
