//! Tables of text: aligned columns for people, or Markdown.

use anstyle::Style;
use std::fmt;

/// Rows under a header. Numbers align right, words left.
pub struct Table {
    header: Vec<String>,
    right: Vec<bool>,
    rows: Vec<Vec<String>>,
    markdown: bool,
}

impl Table {
    /// Columns by their names; those that begin with `>` hold numbers.
    pub fn new(columns: &[&str]) -> Table {
        Table {
            header: columns.iter().map(|name| name.trim_start_matches('>').to_string()).collect(),
            right: columns.iter().map(|name| name.starts_with('>')).collect(),
            rows: Vec::new(),
            markdown: false,
        }
    }

    /// Adds a row, one cell a column.
    pub fn row(&mut self, cells: impl IntoIterator<Item = String>) {
        self.rows.push(cells.into_iter().collect());
    }

    /// Prints as Markdown.
    pub fn markdown(self, markdown: bool) -> Table {
        Table { markdown, ..self }
    }

    fn width(&self, column: usize) -> usize {
        let cells = self.rows.iter().chain([&self.header]).map(|row| row[column].chars().count());
        cells.max().unwrap_or(0).max(if self.markdown { 3 } else { 0 })
    }

    fn line(&self, f: &mut fmt::Formatter, row: &[String], widths: &[usize], style: Style) -> fmt::Result {
        let mut line = String::new();
        for (column, (cell, &width)) in row.iter().zip(widths).enumerate() {
            line += if self.markdown {
                "| "
            } else if column > 0 {
                "   "
            } else {
                ""
            };
            line += &if self.right[column] { format!("{cell:>width$}") } else { format!("{cell:<width$}") };
            line += if self.markdown { " " } else { "" };
        }
        line += if self.markdown { "|" } else { "" };
        writeln!(f, "{style}{}{style:#}", line.trim_end())
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let widths: Vec<usize> = (0..self.header.len()).map(|column| self.width(column)).collect();
        let style = if self.markdown { Style::new() } else { Style::new().bold() };
        self.line(f, &self.header, &widths, style)?;
        if self.markdown {
            let dashes = |(&width, &right): (&usize, &bool)| {
                format!("{}{}", "-".repeat(width - 1), if right { ":" } else { "-" })
            };
            let rule: Vec<String> = widths.iter().zip(&self.right).map(dashes).collect();
            self.line(f, &rule, &widths, Style::new())?;
        }
        self.rows.iter().try_for_each(|row| self.line(f, row, &widths, Style::new()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table() -> Table {
        let mut table = Table::new(&["name", ">bits"]);
        table.row(["f16".into(), "16.00".into()]);
        table.row(["turbo3".into(), "3.13".into()]);
        table
    }

    #[test]
    fn columns_align() {
        let plain = anstream::adapter::strip_str(&table().to_string()).to_string();
        assert_eq!(plain, "name      bits\nf16      16.00\nturbo3    3.13\n");
        let markdown = anstream::adapter::strip_str(&table().markdown(true).to_string()).to_string();
        assert_eq!(
            markdown,
            "| name   |  bits |\n| ------ | ----: |\n| f16    | 16.00 |\n| turbo3 |  3.13 |\n"
        );
    }
}
