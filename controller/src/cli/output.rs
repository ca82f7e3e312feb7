//! What commands print: tables like kubectl's, JSON and YAML with sorted keys.
use super::Failure;
use clap::ValueEnum;
use comfy_table::{ContentArrangement, Table, presets};
use serde::Serialize;
use std::io::{self, Write};

/// Form of an output that is a table or a document for programs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Format {
    /// Columns for people.
    Table,
    /// JSON with camelCase, sorted keys.
    Json,
}

/// Form of an output that is made of objects.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum ObjectFormat {
    /// Columns for people.
    Table,
    /// JSON with camelCase, sorted keys.
    Json,
    /// YAML with camelCase, sorted keys.
    Yaml,
}

/// A table without borders.
pub(crate) fn table(header: &[&str], rows: impl IntoIterator<Item = Vec<String>>) -> String {
    let mut table = Table::new();
    table.load_preset(presets::NOTHING).set_content_arrangement(ContentArrangement::Disabled);
    table.set_header(header.iter().copied());
    for row in rows {
        table.add_row(row.iter().map(|cell| one_line(cell)));
    }
    for column in table.column_iter_mut() {
        column.set_padding((0, 3));
    }
    let mut text = String::new();
    for line in table.lines() {
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

/// One thing: a line for each of its properties.
pub(super) fn lines(properties: &[(&str, String)]) -> String {
    let width = properties.iter().map(|(name, _)| name.len()).max().unwrap_or(0) + 3;
    properties.iter().map(|(name, value)| format!("{name:width$}{}\n", one_line(value))).collect()
}

/// A line of a table whose other lines are not known; more columns than widths are as wide as they are.
pub(super) fn row(cells: &[String], widths: &[usize]) -> String {
    let widths = widths.iter().chain(std::iter::repeat(&0));
    let cells = cells.iter().zip(widths).map(|(cell, width)| format!("{:width$}   ", one_line(cell)));
    format!("{}\n", cells.collect::<String>().trim_end())
}

/// An absent value.
pub(super) fn or_dash<T: ToString>(value: Option<T>) -> String {
    value.map_or_else(|| "-".to_owned(), |v| v.to_string())
}

/// Seconds, as kubectl prints ages: `42s`, `7m`, `3h`, `12d`.
pub(super) fn age(seconds: u64) -> String {
    match seconds {
        0..120 => format!("{seconds}s"),
        120..7200 => format!("{}m", seconds / 60),
        7200..172_800 => format!("{}h", seconds / 3600),
        _ => format!("{}d", seconds / 86_400),
    }
}

/// JSON with sorted keys and a newline at the end.
pub(super) fn json<T: Serialize + ?Sized>(value: &T) -> Result<String, Failure> {
    // Through `Value`, whose maps are sorted.
    let text = serde_json::to_value(value).and_then(|v| serde_json::to_string_pretty(&v));
    text.map(|t| t + "\n").map_err(|e| Failure::No(format!("writing JSON: {e}")))
}

/// YAML with sorted keys.
pub(super) fn yaml<T: Serialize + ?Sized>(value: &T) -> Result<String, Failure> {
    let value = serde_json::to_value(value).map_err(|e| Failure::No(format!("writing YAML: {e}")))?;
    serde_yaml_ng::to_string(&value).map_err(|e| Failure::No(format!("writing YAML: {e}")))
}

/// Writes to stdout, whole.
pub(super) fn print(text: &str) -> Result<(), Failure> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes()).and_then(|()| out.flush()).map_err(Failure::Output)
}

/// A cell stays on its line and cannot steer the terminal, whatever a name or an error holds.
fn one_line(cell: &str) -> String {
    if cell.is_empty() {
        return "-".to_owned();
    }
    cell.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_has_no_borders_and_no_trailing_space() {
        let text = table(
            &["NAME", "N"],
            [vec!["web".to_owned(), "1".to_owned()], vec![String::new(), "a\nb".to_owned()]],
        );
        assert_eq!(text, "NAME   N\nweb    1\n-      a b\n");
    }

    #[test]
    fn ages_are_short() {
        assert_eq!([0, 119, 120, 7199, 7200, 172_800].map(age), ["0s", "119s", "2m", "119m", "2h", "2d"]);
    }

    #[test]
    fn keys_are_sorted() {
        #[derive(Serialize)]
        struct Z {
            b: u8,
            a: u8,
        }
        assert_eq!(json(&Z { b: 1, a: 2 }).unwrap(), "{\n  \"a\": 2,\n  \"b\": 1\n}\n");
        assert_eq!(yaml(&Z { b: 1, a: 2 }).unwrap(), "a: 2\nb: 1\n");
    }
}
