//! Plots as SVG: axes, lines, points, bars and heat maps, in the colours of the page they stand on.

use crate::text::thousands;
use std::fmt::Write;

/// Where a plot's frame lies, in its own units; the page scales it.
pub const WIDTH: f64 = 920.0;
const LEFT: f64 = 76.0;
const TOP: f64 = 18.0;
const BOTTOM: f64 = 54.0;

/// The colours of series, classes of the page, over and over.
pub fn colour(series: usize) -> String {
    format!("var(--series-{})", series % 8)
}

/// Text as HTML and SVG hold it.
pub fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

/// A scale from numbers to places.
#[derive(Clone)]
pub struct Axis {
    title: String,
    range: [f64; 2],
    log: bool,
    ticks: Vec<(f64, String)>,
}

impl Axis {
    /// From zero to a round number at or above the largest value.
    pub fn linear(title: &str, values: impl IntoIterator<Item = f64>) -> Axis {
        let largest = values.into_iter().filter(|value| value.is_finite()).fold(0.0, f64::max);
        let mut axis = Axis::between(title, 0.0, if largest > 0.0 { largest } else { 1.0 });
        // One tick more, where the largest value lies beyond the last.
        let [before, last] = [axis.ticks.len() - 2, axis.ticks.len() - 1].map(|i| axis.ticks[i].0);
        if last < axis.range[1] * 0.999_999 {
            axis = Axis::between(title, 0.0, 2.0 * last - before);
        }
        axis
    }

    /// From one number to another, with round numbers on the way.
    pub fn between(title: &str, from: f64, to: f64) -> Axis {
        let rough = (to - from) / 5.0;
        let unit = 10f64.powf(rough.log10().floor());
        let step =
            [1.0, 2.0, 2.5, 5.0, 10.0].map(|n| n * unit).into_iter().find(|step| *step >= rough * 0.999);
        let step = step.unwrap_or(unit);
        let (first, last) = ((from / step - 1e-6).ceil() as i64, (to / step + 1e-6).floor() as i64);
        let digits = if step == 2.5 * unit { 1.0 } else { 0.0 } - step.log10().floor();
        let label = |value: f64| match value {
            value if value >= 1e3 => thousands(value.round() as u64),
            value => format!("{value:.*}", digits.max(0.0) as usize),
        };
        let ticks: Vec<_> = (first..=last).map(|i| (i as f64 * step, label(i as f64 * step))).collect();
        Axis { title: title.into(), range: [from, to], log: false, ticks }
    }

    /// By powers of ten, around all positive values.
    pub fn log(title: &str, values: impl IntoIterator<Item = f64>) -> Axis {
        let values: Vec<f64> = values.into_iter().filter(|value| value.is_finite() && *value > 0.0).collect();
        let (low, high) = values.iter().fold((f64::MAX, 0.0f64), |(low, high), &v| (low.min(v), high.max(v)));
        let (low, high) = if values.is_empty() { (0.1, 1.0) } else { (low / 1.25, high * 1.25) };
        let decades = low.log10().floor() as i32..=high.log10().ceil() as i32;
        let grid =
            decades.flat_map(|decade| [1.0, 2.0, 5.0].map(|step| (step == 1.0, step * 10f64.powi(decade))));
        let grid: Vec<(bool, f64)> = grid.collect();
        let first = grid.iter().rposition(|(_, tick)| *tick <= low).unwrap_or(0);
        let last = grid.iter().position(|(_, tick)| *tick >= high).unwrap_or(grid.len() - 1);
        let range = [grid[first].1, grid[last].1];
        // Over several decades, labels at their beginnings are enough.
        let ticks = grid[first..=last].iter().filter(|(decade, _)| *decade || high / low < 30.0);
        let ticks = ticks.map(|(_, tick)| (*tick, decimal(*tick))).collect();
        Axis { title: title.into(), range, log: true, ticks }
    }

    /// Names instead of numbers: the first at 0, the next at 1.
    pub fn names(title: &str, names: impl IntoIterator<Item = String>) -> Axis {
        let ticks: Vec<_> = names.into_iter().enumerate().map(|(i, name)| (i as f64, name)).collect();
        Axis { title: title.into(), range: [-0.5, ticks.len() as f64 - 0.5], log: false, ticks }
    }

    /// How far between the ends a number lies, from 0 to 1.
    fn place(&self, value: f64) -> f64 {
        let scale = |value: f64| if self.log { value.max(f64::MIN_POSITIVE).ln() } else { value };
        let [from, to] = self.range.map(scale);
        ((scale(value) - from) / (to - from)).clamp(0.0, 1.0)
    }
}

/// A number of one digit as people write it: `0.002`, `2·10⁻⁵`.
fn decimal(value: f64) -> String {
    // Powers of ten are not exact.
    let exponent = (value.log10() + 1e-9).floor();
    if exponent > -5.0 {
        return format!("{value:.*}", (-exponent).max(0.0) as usize);
    }
    let digits: String =
        format!("{}", -exponent).chars().map(|c| SUPERSCRIPT[c as usize - '0' as usize]).collect();
    match (value / 10f64.powf(exponent)).round() {
        1.0 => format!("10⁻{digits}"),
        factor => format!("{factor}·10⁻{digits}"),
    }
}

const SUPERSCRIPT: [char; 10] = ['⁰', '¹', '²', '³', '⁴', '⁵', '⁶', '⁷', '⁸', '⁹'];

/// A plot in the making.
pub struct Plot {
    x: Axis,
    y: Axis,
    height: f64,
    right: f64,
    body: String,
    /// What labels must not cover: (left, top, right, bottom).
    boxes: Vec<[f64; 4]>,
}

impl Plot {
    /// Axes and grid. `margin` is the room on the right for labels.
    pub fn new(x: Axis, y: Axis, height: f64, margin: f64) -> Plot {
        let mut plot = Plot { x, y, height, right: WIDTH - margin, body: String::new(), boxes: Vec::new() };
        let (bottom, right) = (height - BOTTOM, plot.right);
        for (value, label) in plot.y.ticks.clone() {
            let y = plot.y_of(value);
            plot.add(format_args!(
                r#"<line class="grid" x1="{LEFT}" y1="{y:.1}" x2="{right}" y2="{y:.1}"/>"#
            ));
            let (x, y) = (LEFT - 8.0, y + 4.0);
            plot.add(format_args!(
                r#"<text class="tick" x="{x}" y="{y:.1}" text-anchor="end">{label}</text>"#
            ));
        }
        // As many labels as there is room for.
        let every = plot.x.ticks.len().div_ceil(24).max(1);
        for (value, label) in plot.x.ticks.clone().into_iter().step_by(every) {
            let x = plot.x_of(value);
            let (tick, text) = (bottom + 5.0, bottom + 20.0);
            plot.add(format_args!(
                r#"<line class="axis" x1="{x:.1}" y1="{bottom}" x2="{x:.1}" y2="{tick}"/>"#
            ));
            let label = escape(&label);
            plot.add(format_args!(
                r#"<text class="tick" x="{x:.1}" y="{text}" text-anchor="middle">{label}</text>"#
            ));
        }
        plot.add(format_args!(
            r#"<line class="axis" x1="{LEFT}" y1="{bottom}" x2="{right}" y2="{bottom}"/>"#
        ));
        let titles = [plot.x.title.clone(), plot.y.title.clone()].map(|title| escape(&title));
        let (x, y) = ((LEFT + right) / 2.0, height - 12.0);
        plot.add(format_args!(
            r#"<text class="title" x="{x}" y="{y}" text-anchor="middle">{}</text>"#,
            titles[0]
        ));
        let y = (TOP + bottom) / 2.0;
        plot.add(format_args!(
            r#"<text class="title" transform="translate(15 {y}) rotate(-90)" text-anchor="middle">{}</text>"#,
            titles[1]
        ));
        plot
    }

    fn add(&mut self, element: std::fmt::Arguments) {
        let _ = writeln!(self.body, "{element}");
    }

    fn x_of(&self, value: f64) -> f64 {
        LEFT + self.x.place(value) * (self.right - LEFT)
    }

    fn y_of(&self, value: f64) -> f64 {
        let bottom = self.height - BOTTOM;
        bottom - self.y.place(value) * (bottom - TOP)
    }

    /// A line through points, with a dot at each if `dots`.
    pub fn line(&mut self, points: &[(f64, f64)], class: &str, colour: &str, dots: bool) {
        let places: Vec<(f64, f64)> = points.iter().map(|&(x, y)| (self.x_of(x), self.y_of(y))).collect();
        let path: Vec<String> = places.iter().map(|(x, y)| format!("{x:.1},{y:.1}")).collect();
        self.add(format_args!(
            r#"<polyline class="{class}" style="stroke:{colour}" points="{}"/>"#,
            path.join(" ")
        ));
        for (x, y) in places.into_iter().filter(|_| dots) {
            self.add(format_args!(r#"<circle style="fill:{colour}" cx="{x:.1}" cy="{y:.1}" r="3"/>"#));
        }
    }

    /// A point with the range of its error, and words for those who point at it.
    pub fn point(&mut self, x: f64, y: f64, error: f64, colour: &str, words: &str) {
        let [low, high] = [y - error, y + error].map(|end| self.y_of(end));
        let (x, y) = (self.x_of(x), self.y_of(y));
        self.add(format_args!(
            r#"<line class="error" style="stroke:{colour}" x1="{x:.1}" y1="{low:.1}" x2="{x:.1}" y2="{high:.1}"/>"#
        ));
        let words = escape(words);
        self.add(format_args!(
            r#"<circle class="point" style="fill:{colour}" cx="{x:.1}" cy="{y:.1}" r="6"><title>{words}</title></circle>"#
        ));
        self.boxes.push([x - 8.0, y - 8.0, x + 8.0, y + 8.0]);
    }

    /// A name beside a point, where it covers nothing; after all points are there.
    pub fn name(&mut self, x: f64, y: f64, name: &str, colour: &str) {
        let (x, y) = (self.x_of(x), self.y_of(y));
        let width = 8.0 * name.chars().count() as f64;
        // To the right and to the left, at several heights.
        let heights = [4.0, -11.0, 20.0, -26.0, 35.0];
        let places = heights.into_iter().flat_map(|height| [(12.0, height), (-12.0, height)]);
        let area = |(dx, dy): (f64, f64)| {
            let left = if dx < 0.0 { x + dx - width } else { x + dx };
            [left, y + dy - 11.0, left + width, y + dy + 4.0]
        };
        let covers = |a: [f64; 4]| {
            let meets = |b: &[f64; 4]| a[0] < b[2] && b[0] < a[2] && a[1] < b[3] && b[1] < a[3];
            let outside = a[0] < LEFT || a[2] > WIDTH || a[1] < 0.0 || a[3] > self.height - BOTTOM;
            self.boxes.iter().filter(|b| meets(b)).count() + usize::from(outside)
        };
        let best = places.min_by_key(|place| covers(area(*place))).expect("there are places");
        self.boxes.push(area(best));
        let (name, x, y) = (escape(name), x + best.0, y + best.1);
        let anchor = if best.0 < 0.0 { "end" } else { "start" };
        self.add(format_args!(
            r#"<text class="name" style="fill:{colour}" x="{x:.1}" y="{y:.1}" text-anchor="{anchor}">{name}</text>"#
        ));
    }

    /// Names at the right ends of lines, pushed apart.
    pub fn end_names(&mut self, names: &[(f64, String, String)]) {
        const GAP: f64 = 17.0;
        let mut ends: Vec<(f64, &str, &str)> =
            names.iter().map(|(y, name, colour)| (self.y_of(*y), &name[..], &colour[..])).collect();
        ends.sort_by(|a, b| a.0.total_cmp(&b.0));
        for i in 1..ends.len() {
            ends[i].0 = ends[i].0.max(ends[i - 1].0 + GAP);
        }
        let mut lowest = self.height - BOTTOM;
        for end in ends.iter_mut().rev() {
            end.0 = end.0.min(lowest);
            lowest = end.0 - GAP;
        }
        let x = self.right + 10.0;
        for (y, name, colour) in ends {
            let (name, y) = (escape(name), y + 4.0);
            self.add(format_args!(
                r#"<text class="name" style="fill:{colour}" x="{x}" y="{y:.1}">{name}</text>"#
            ));
        }
    }

    /// One of `of` bars side by side at a name of the x axis.
    pub fn bar(&mut self, at: usize, which: usize, of: usize, y: f64, error: f64, colour: &str, words: &str) {
        let slot = (self.right - LEFT) / self.x.ticks.len() as f64;
        let width = (slot * 0.76 / of as f64).min(36.0);
        let left = self.x_of(at as f64) + width * (which as f64 - of as f64 / 2.0) + 1.0;
        let [top, low, high] = [y, y - error, y + error].map(|y| self.y_of(y));
        let (height, words) = (self.height - BOTTOM - top, escape(words));
        let width = (width - 2.0).max(1.0);
        self.add(format_args!(
            r#"<rect style="fill:{colour}" x="{left:.1}" y="{top:.1}" width="{width:.1}" height="{height:.1}" rx="2"><title>{words}</title></rect>"#
        ));
        let middle = left + width / 2.0;
        self.add(format_args!(
            r#"<line class="whisker" x1="{middle:.1}" y1="{low:.1}" x2="{middle:.1}" y2="{high:.1}"/>"#
        ));
    }

    /// The whole.
    pub fn svg(&self, description: &str) -> String {
        svg(WIDTH, self.height, description, &self.body)
    }
}

fn svg(width: f64, height: f64, description: &str, body: &str) -> String {
    let description = escape(description);
    format!(
        r#"<svg viewBox="0 0 {width} {height}" role="img" aria-label="{description}" xmlns="http://www.w3.org/2000/svg">
{body}</svg>"#
    )
}

/// A grid of shares from 0 to 1: rows of `grid` are named by `rows`, their cells by `columns`.
pub fn heat_map(
    x: &str,
    columns: &[String],
    y: &str,
    rows: &[String],
    grid: &[Vec<f64>],
    description: &str,
) -> String {
    const LEFT: f64 = 66.0;
    const BOTTOM: f64 = 44.0;
    let (width, height) = (430.0, 34.0 * rows.len() as f64 + BOTTOM + 6.0);
    let cell = (width - LEFT - 4.0) / columns.len().max(1) as f64;
    let mut body = String::new();
    for (i, (name, shares)) in rows.iter().zip(grid).enumerate() {
        let top = 4.0 + 34.0 * i as f64;
        let text = top + 21.0;
        let _ = writeln!(
            body,
            r#"<text class="tick" x="{}" y="{text}" text-anchor="end">{name}</text>"#,
            LEFT - 8.0
        );
        for (j, share) in shares.iter().enumerate() {
            let (left, middle) = (LEFT + cell * j as f64, LEFT + cell * (j as f64 + 0.5));
            let part = (100.0 * share).round();
            let dark = if part >= 55.0 { " on" } else { "" };
            let _ = writeln!(
                body,
                r#"<rect x="{left:.1}" y="{top}" width="{:.1}" height="32" rx="3" style="fill:color-mix(in oklab, var(--full) {part}%, var(--empty))"/><text class="cell{dark}" x="{middle:.1}" y="{text}" text-anchor="middle">{part}</text>"#,
                cell - 2.0
            );
        }
    }
    let bottom = 4.0 + 34.0 * rows.len() as f64;
    for (j, name) in columns.iter().enumerate() {
        let middle = LEFT + cell * (j as f64 + 0.5);
        let y = bottom + 15.0;
        let _ = writeln!(
            body,
            r#"<text class="tick" x="{middle:.1}" y="{y}" text-anchor="middle">{name}</text>"#
        );
    }
    let (middle, y0) = ((LEFT + width) / 2.0, height - 6.0);
    let _ = writeln!(body, r#"<text class="title" x="{middle}" y="{y0}" text-anchor="middle">{x}</text>"#);
    let middle = bottom / 2.0;
    let _ = writeln!(
        body,
        r#"<text class="title" transform="translate(12 {middle}) rotate(-90)" text-anchor="middle">{y}</text>"#
    );
    svg(width, height, description, &body)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ticks(axis: &Axis) -> Vec<&str> {
        axis.ticks.iter().map(|(_, label)| &label[..]).collect()
    }

    #[test]
    fn ticks_are_round() {
        assert_eq!(ticks(&Axis::linear("", [3.0, 11.3])), ["0.0", "2.5", "5.0", "7.5", "10.0", "12.5"]);
        assert_eq!(ticks(&Axis::linear("", [])), ["0.0", "0.2", "0.4", "0.6", "0.8", "1.0"]);
        assert_eq!(
            ticks(&Axis::linear("", [11_000.0])),
            ["0", "2,500", "5,000", "7,500", "10,000", "12,500"]
        );
        assert_eq!(ticks(&Axis::log("", [0.0009, 0.7])), ["0.001", "0.01", "0.1", "1"]);
        assert_eq!(ticks(&Axis::log("", [0.0, 0.002, 0.01])), ["0.001", "0.002", "0.005", "0.01", "0.02"]);
        assert_eq!(ticks(&Axis::log("", [])), ["0.1", "0.2", "0.5", "1"]);
        assert_eq!(ticks(&Axis::log("", [3e-6, 3e-5])), ["2·10⁻⁶", "5·10⁻⁶", "10⁻⁵", "2·10⁻⁵", "5·10⁻⁵"]);
        let positions = Axis::between("", 512.0, 1024.0);
        assert_eq!((ticks(&positions), positions.range), (vec!["600", "800", "1,000"], [512.0, 1024.0]));
    }

    #[test]
    fn places_follow_the_scale() {
        let axis = Axis::log("", [0.0013, 0.7]);
        assert!((axis.place(1e-2) - 1.0 / 3.0).abs() < 1e-9);
        assert_eq!((axis.place(0.0), axis.place(9.0)), (0.0, 1.0));
        let names = Axis::names("", ["a".into(), "b".into()]);
        assert_eq!([names.place(0.0), names.place(1.0)], [0.25, 0.75]);
    }

    #[test]
    fn names_do_not_cover_one_another() {
        let axis = || Axis::linear("", [10.0]);
        let mut plot = Plot::new(axis(), axis(), 400.0, 40.0);
        let points = [(5.0, 5.0), (5.1, 5.1), (5.05, 4.9)];
        points.iter().for_each(|&(x, y)| plot.point(x, y, 0.0, "red", "words"));
        points.iter().for_each(|&(x, y)| plot.name(x, y, "a name", "red"));
        let names = &plot.boxes[3..];
        for (i, a) in names.iter().enumerate() {
            for b in plot.boxes.iter().take(3 + i) {
                assert!(a[0] >= b[2] || b[0] >= a[2] || a[1] >= b[3] || b[1] >= a[3], "{a:?} {b:?}");
            }
        }
    }

    #[test]
    fn names_are_escaped() {
        let axis = || Axis::linear("a<b", [1.0]);
        let mut plot = Plot::new(axis(), axis(), 400.0, 40.0);
        plot.name(0.5, 0.5, "<script>", "red");
        let svg = plot.svg("\"quoted\"");
        assert!(
            !svg.contains("<script>") && svg.contains("a&lt;b") && svg.contains("&quot;quoted&quot;"),
            "{svg}"
        );
    }
}
