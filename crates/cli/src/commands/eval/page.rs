//! Findings as one page of HTML that needs nothing else: plots, tables and the words between them.

use super::findings::{Findings, percent};
use super::plot::{Axis, Plot, WIDTH, colour, escape, heat_map};
use crate::text::{significant, thousands};
use anyhow::{Context, Result};
use std::fmt::Write;
use std::fs::{self, OpenOptions};
use std::path::Path;
use torque_engine::evaluate::{CacheReport, LayerReport};

const STYLE: &str = include_str!("page.css");

/// Makes sure that a report can be written there, before hours of work and not after.
pub fn check(path: &Path) -> Result<()> {
    let file = OpenOptions::new().create(true).append(true).open(path);
    file.map(drop).with_context(|| format!("--report: cannot write `{}`", path.display()))
}

/// Writes the page, or into a file called `*.svg` the plot of quality against size alone.
pub fn write(path: &Path, findings: &Findings) -> Result<()> {
    let page = if path.extension().is_some_and(|extension| extension == "svg") {
        picture(findings)
            .context("--report: no caches were compared, so there is no plot; give a FILE.html")?
    } else {
        page(findings)
    };
    fs::write(path, page).with_context(|| format!("--report: cannot write `{}`", path.display()))
}

/// The page.
fn page(findings: &Findings) -> String {
    let model = escape(&findings.model);
    let mut sections = trade(findings).unwrap_or_default();
    // Lines that are many hide one another.
    if findings.tuned.is_empty() {
        sections += &positions(findings).unwrap_or_default();
        sections += &tails(findings).unwrap_or_default();
    }
    sections += &layers(findings).unwrap_or_default();
    sections += &needle(findings).unwrap_or_default();
    let text = findings.text.as_ref().map(|text| format!("<p>{}.</p>", escape(&text.describe())));
    format!(
        r#"<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>KV cache quality of {model}</title>
<style>
{STYLE}</style>
</head>
<body>
<main>
<header>
<p class="kicker">KV cache quality</p>
<h1>{model}</h1>
{text}
</header>
{sections}<footer>torque {version} · {device}</footer>
</main>
</body>
</html>
"#,
        text = text.unwrap_or_default(),
        version = env!("CARGO_PKG_VERSION"),
        device = escape(&findings.device),
    )
}

/// A part of the page.
fn section(title: &str, words: &str, body: &str) -> String {
    format!("<section>\n<h2>{title}</h2>\n<p>{words}</p>\n{body}\n</section>\n")
}

/// Policies that differ from f16, with their colours, which are the same all over the page.
fn shown(findings: &Findings) -> Vec<(&CacheReport, String)> {
    let reports = findings.kld.iter().enumerate().filter(|(_, report)| report.divergence.kld_mean > 0.0);
    reports.map(|(i, report)| (report, colour(i))).collect()
}

/// The plot of quality against size as a picture that needs no page, if caches were compared.
fn picture(findings: &Findings) -> Option<String> {
    let svg = trade_plot(findings)?;
    let (tag, body) = svg.split_once('>')?;
    Some(format!(
        "{tag}>\n<style>\n{STYLE}</style>\n<rect width=\"100%\" height=\"100%\" fill=\"var(--card)\"/>{body}\n"
    ))
}

/// Quality against size, a point a policy.
fn trade_plot(findings: &Findings) -> Option<String> {
    let shown = shown(findings);
    shown.first()?;
    let drawn = || shown.iter().map(|(report, _)| *report).chain(&findings.tuned);
    let x = Axis::linear("bytes per token", drawn().map(|report| report.bytes_per_token));
    let ranges = drawn().flat_map(|report| {
        let (mean, error) = (report.divergence.kld_mean, known(report.divergence.kld_mean_error));
        [mean + error, if error < mean { mean - error } else { mean }]
    });
    let y = Axis::log("mean KLD from f16 (nats, log)", ranges);
    let mut plot = Plot::new(x, y, 430.0, 30.0);
    // What no other policy beats in both; of tuned ones, if there are any.
    let is_tuned = !findings.tuned.is_empty();
    let mut points: Vec<(f64, f64)> = drawn()
        .skip(if is_tuned { shown.len() } else { 0 })
        .map(|report| (report.bytes_per_token, report.divergence.kld_mean))
        .collect();
    points.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.total_cmp(&b.1)));
    let mut best: Vec<(f64, f64)> = Vec::new();
    for point in points {
        if best.last().is_none_or(|last| point.1 < last.1) {
            best.push(point);
        }
    }
    let (class, stroke) = if is_tuned { ("series", "var(--accent)") } else { ("frontier", "var(--muted)") };
    plot.line(&best, class, stroke, is_tuned);
    for (report, colour) in &shown {
        let divergence = &report.divergence;
        let words = format!(
            "{}: KLD {} ± {}, same top token {}",
            report.name,
            significant(divergence.kld_mean),
            significant(known(divergence.kld_mean_error)),
            percent(divergence.top1_agreement)
        );
        let error = known(divergence.kld_mean_error);
        plot.point(report.bytes_per_token, divergence.kld_mean, error, colour, &words);
    }
    for (report, colour) in &shown {
        plot.name(report.bytes_per_token, report.divergence.kld_mean, &report.name, colour);
    }
    Some(plot.svg("Mean KL divergence against bytes per token, a point a policy"))
}

/// Quality against size.
fn trade(findings: &Findings) -> Option<String> {
    let f16 = findings.f16_bytes_per_token;
    let mut body = trade_plot(findings).map(|plot| figure(&plot)).unwrap_or_default();
    let first = findings.kld.first()?;
    body += "<div class=\"scroll\"><table><thead><tr><th>KV cache<th>bits<th>bytes/token<th>smaller<th>KLD<th>99 %<th>max\
             <th>same top<th>perplexity</tr></thead><tbody>\n";
    for (i, report) in findings.kld.iter().enumerate() {
        let divergence = &report.divergence;
        let _ = writeln!(
            body,
            "<tr><th><i style=\"background:{}\"></i>{}<td>{:.2}<td>{}<td>{:.1}×<td>{}<td>{}<td>{}<td>{}<td>{:.3}</tr>",
            colour(i),
            escape(&report.name),
            report.bits_per_value,
            thousands(report.bytes_per_token.round() as u64),
            f16 / report.bytes_per_token,
            significant(divergence.kld_mean),
            significant(divergence.kld_p99),
            significant(divergence.kld_max),
            percent(divergence.top1_agreement),
            report.perplexity,
        );
    }
    body += "</tbody></table></div>";
    let line = if findings.tuned.is_empty() {
        "the line joins what nothing else beats in both"
    } else {
        "the line joins tuned policies, on text that they were not tuned on"
    };
    let words = format!(
        "Left is smaller, down is better. In f16 a token takes {} bytes, and the perplexity is {:.3}. KLD is how far the \
         prediction of the next token moves from that; {line}. {} predictions.",
        thousands(f16.round() as u64),
        first.f16_perplexity,
        thousands(first.divergence.rows as u64)
    );
    Some(section("Quality and size", &words, &body))
}

/// Divergence by position.
fn positions(findings: &Findings) -> Option<String> {
    let shown = shown(findings);
    let parts = shown.first().map(|(report, _)| &report.positions).filter(|parts| parts.len() > 1)?;
    let (from, to) = (parts[0].from as f64, parts[parts.len() - 1].to as f64);
    let x = Axis::between("position in the context (tokens)", from, to);
    let y = Axis::log(
        "mean KLD from f16 (nats, log)",
        shown.iter().flat_map(|(report, _)| report.positions.iter().map(|part| part.kld_mean)),
    );
    let mut plot = Plot::new(x, y, 380.0, margin(shown.iter().map(|(report, _)| &report.name[..])));
    let mut ends = Vec::new();
    for (report, colour) in &shown {
        let parts = report.positions.iter().filter(|part| part.kld_mean > 0.0);
        let points: Vec<_> = parts.map(|part| ((part.from + part.to) as f64 / 2.0, part.kld_mean)).collect();
        plot.line(&points, "series", colour, true);
        ends.extend(points.last().map(|(_, y)| (*y, report.name.clone(), colour.clone())));
    }
    plot.end_names(&ends);
    let words = "Each dot is the mean over a stretch of positions. A flat line is a cache whose error does not grow with the context.";
    let figure = figure(&plot.svg("Mean KL divergence by position in the context, a line a policy"));
    Some(section("By position", words, &figure))
}

/// How large the divergence of the worst tokens is.
fn tails(findings: &Findings) -> Option<String> {
    let shown = shown(findings);
    shown.first()?;
    let names = ["median", "90 %", "95 %", "99 %", "99.9 %", "largest"];
    let values = |report: &CacheReport| {
        let d = &report.divergence;
        [d.kld_median, d.kld_p90, d.kld_p95, d.kld_p99, d.kld_p99_9, d.kld_max]
    };
    let x = Axis::names("share of tokens that diverge less", names.map(String::from));
    let y = Axis::log("KLD from f16 (nats, log)", shown.iter().flat_map(|(report, _)| values(report)));
    let mut plot = Plot::new(x, y, 380.0, margin(shown.iter().map(|(report, _)| &report.name[..])));
    let mut ends = Vec::new();
    for (report, colour) in &shown {
        let points: Vec<_> = values(report).into_iter().enumerate().map(|(i, y)| (i as f64, y)).collect();
        plot.line(&points, "series", colour, true);
        ends.push((points[points.len() - 1].1, report.name.clone(), colour.clone()));
    }
    plot.end_names(&ends);
    let words = "A mean hides rare tokens that move far. These are the percentiles of all of them.";
    Some(section(
        "The worst tokens",
        words,
        &figure(&plot.svg("Percentiles of the KL divergence, a line a policy")),
    ))
}

/// What each layer and side costs alone.
fn layers(findings: &Findings) -> Option<String> {
    let rows = &findings.layers;
    let last = rows.iter().map(|row| row.layer).max()?;
    let layers = Axis::names("layer", (0..=last).map(|layer| layer.to_string()));
    let mean =
        |row: &LayerReport| (row.report.divergence.kld_mean, known(row.report.divergence.kld_mean_error));
    let y = Axis::linear("mean KLD from f16 (nats)", rows.iter().map(|row| mean(row).0 + mean(row).1));
    let mut plot = Plot::new(layers, y, 380.0, 20.0);
    for row in rows {
        let which = usize::from(row.side == "v");
        let (kld, error) = mean(row);
        let words = format!(
            "layer {} {}, {}: KLD {} ± {}, same top token {}, 1 − correlation of logits {}",
            row.layer,
            row.side,
            row.format,
            significant(kld),
            significant(error),
            percent(row.report.divergence.top1_agreement),
            significant(1.0 - row.report.divergence.correlation)
        );
        plot.bar(row.layer, which, 2, kld, error, SIDES[which].1, &words);
    }
    let key: String = SIDES
        .iter()
        .map(|(name, colour)| format!("<span><i style=\"background:{colour}\"></i>{name}</span>"))
        .collect();
    let body = format!(
        "<p class=\"key\">{key}</p>\n{}",
        figure(&plot.svg("Mean KL divergence of each layer and side alone"))
    );
    let words = format!(
        "One side of one layer is stored as {} says, everything else in f16. Tall bars deserve a larger format in a policy file.",
        escape(&findings.layers_of)
    );
    Some(section("Layer by layer", &words, &body))
}

/// Bars of keys and of values.
const SIDES: [(&str, &str); 2] = [("keys", "var(--series-0)"), ("values", "var(--series-1)")];

/// Facts found, a map a policy.
fn needle(findings: &Findings) -> Option<String> {
    findings.needle.first()?;
    let mut maps = String::new();
    for found in &findings.needle {
        let lengths: Vec<String> = found.lengths.iter().map(|length| thousands(*length as u64)).collect();
        let depths: Vec<String> = found.depths.iter().map(|depth| format!("{depth} %")).collect();
        let name = escape(&found.name);
        let map = heat_map("tokens of the prompt", &lengths, "depth", &depths, &found.grid, &found.name);
        let (all, bytes) = (percent(found.found), thousands(found.bytes_per_token.round() as u64));
        let _ = writeln!(
            maps,
            "<figure><figcaption><b>{name}</b> {all} found<small>{bytes} bytes per token</small></figcaption>\n{map}\n</figure>"
        );
    }
    let plural = if findings.trials == 1 { " is" } else { "s are" };
    let words = format!(
        "A six-digit code is hidden in a text, and the model is asked for it. Numbers are percent of right answers; {} fact{plural} \
         hidden at each depth and length, the same for every cache.",
        findings.trials
    );
    Some(section("Hidden facts", &words, &format!("<div class=\"maps\">\n{maps}</div>")))
}

fn figure(svg: &str) -> String {
    format!("<figure>\n{svg}\n</figure>\n")
}

/// Room for names on the right.
fn margin<'a>(names: impl Iterator<Item = &'a str>) -> f64 {
    (20.0 + 7.6 * names.map(|name| name.chars().count()).max().unwrap_or(0) as f64).min(WIDTH / 3.0)
}

/// An error that may not be known, for one token or none.
fn known(error: f64) -> f64 {
    if error.is_finite() { error } else { 0.0 }
}
