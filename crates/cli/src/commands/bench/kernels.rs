//! `torque bench --kernels`: single kernels beside what the machine allows.

use super::row;
use crate::interrupt;
use crate::progress::Progress;
use crate::table::Table;
use anyhow::Result;
use serde_json::json;
use std::io::{self, Write};
use torque_engine::cpu_name;
use torque_engine::kernel_speed::{self, Report, Source};

/// Measures and prints.
pub fn run(filters: &[String], isas: &[String], json: bool) -> Result<()> {
    let mut bar = None;
    let report = interrupt::work(|| {
        kernel_speed::measure(filters, isas, &mut |done, all| {
            bar.get_or_insert_with(|| Progress::new("measuring", all, "kernels")).set(done);
            !interrupt::stopped()
        })
    })?;
    drop(bar);
    if json {
        let report = json!({
            "cpu": cpu_name(),
            "compiler": env!("TORQUE_COMPILER"),
            "revision": env!("TORQUE_REVISION"),
            "date": row::date(),
            "limits": report.limits,
            "kernels": report.kernels,
        });
        return Ok(writeln!(io::stdout(), "{}", serde_json::to_string_pretty(&report)?)?);
    }
    let mut out = anstream::stdout().lock();
    write!(out, "{}\n{}", limits(&report), table(&report))?;
    Ok(())
}

/// What the machine allows.
fn limits(report: &Report) -> Table {
    let mut table = Table::new(&["limit", ">threads", ">measured"]).markdown(true);
    let limits = &report.limits;
    let mut row = |name: String, threads: usize, value: f64, unit: &str| {
        table.row([name, threads.to_string(), format!("{value:.1} {unit}")]);
    };
    row("memory read".into(), 1, limits.read, "GB/s");
    row("memory read".into(), limits.threads, limits.read_together, "GB/s");
    for multiply in &limits.multiply {
        row(format!("{} float multiply-adds", multiply.isa), 1, multiply.float, "GFLOP/s");
        row(format!("{} products of bytes", multiply.isa), 1, multiply.whole, "GOP/s");
        if let Some(tiles) = multiply.tiles {
            row(format!("{} products of tiles", multiply.isa), 1, tiles, "GFLOP/s");
        }
    }
    table
}

fn table(report: &Report) -> Table {
    let columns = ["kernel", ">tokens", "format", "isa", "from", ">speed", ">limit", ">of limit"];
    let mut table = Table::new(&columns).markdown(true);
    for row in &report.kernels {
        table.row([
            row.kernel.into(),
            row.count.to_string(),
            row.format.into(),
            row.isa.into(),
            match row.from {
                Source::Memory => "memory".into(),
                Source::Cache => "cache".into(),
            },
            format!("{:.2} {}", row.speed, row.unit),
            format!("{:.2}", row.limit),
            format!("{:.0} %", 100.0 * row.of_limit),
        ]);
    }
    table
}
