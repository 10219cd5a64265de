//! What the tool says: one line per step, tables, errors.

use std::fmt::Display;
use std::io::{IsTerminal, Write};

/// Says a step.
pub fn step(what: impl Display) {
    eprintln!("xtask: {what}");
}

/// Says something worth knowing that is no failure.
pub fn note(what: impl Display) {
    eprintln!("xtask: note: {what}");
}

/// Says why the tool fails, with the chain of causes.
pub fn error(e: &anyhow::Error) {
    eprintln!("xtask: error: {e}");
    for cause in e.chain().skip(1) {
        eprintln!("  because: {cause}");
    }
}

/// Whether a person can be asked.
pub fn interactive() -> bool {
    std::io::stdin().is_terminal() && std::io::stderr().is_terminal()
}

/// Asks a yes-or-no question; an empty answer is yes.
pub fn confirm(question: &str) -> std::io::Result<bool> {
    eprint!("{question} [Y/n] ");
    std::io::stderr().flush()?;
    let mut answer = String::new();
    if std::io::stdin().read_line(&mut answer)? == 0 {
        return Ok(false);
    }
    Ok(matches!(
        answer.trim().to_ascii_lowercase().as_str(),
        "" | "y" | "yes"
    ))
}

/// How a column is set.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Align {
    /// Words.
    Left,
    /// Numbers.
    Right,
}

/// Lays out rows in columns as wide as their widest cell.
pub fn table(columns: &[(&str, Align)], rows: &[Vec<String>]) -> String {
    let width = |i: usize| {
        let cells = rows.iter().filter_map(|r| r.get(i));
        cells
            .map(|c| c.chars().count())
            .chain([columns[i].0.len()])
            .max()
            .unwrap_or(0)
    };
    let widths: Vec<usize> = (0..columns.len()).map(width).collect();
    let mut out = String::new();
    let mut line = |cells: Vec<&str>| {
        let mut text = String::new();
        for (i, cell) in cells.iter().enumerate() {
            if i > 0 {
                text.push_str("  ");
            }
            let pad = " ".repeat(widths[i].saturating_sub(cell.chars().count()));
            match columns[i].1 {
                Align::Left => text.extend([cell, pad.as_str()]),
                Align::Right => text.extend([pad.as_str(), cell]),
            }
        }
        out.push_str(text.trim_end());
        out.push('\n');
    };
    line(columns.iter().map(|c| c.0).collect());
    let rules: Vec<String> = widths.iter().map(|&w| "-".repeat(w)).collect();
    line(rules.iter().map(String::as_str).collect());
    for row in rows {
        line(row.iter().map(String::as_str).collect());
    }
    out
}

/// Groups digits by three.
pub fn thousands(n: u64) -> String {
    let digits = n.to_string();
    let mut out = String::new();
    for (i, c) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push(',');
        }
        out.push(c);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_is_as_wide_as_its_widest_cells() {
        let rows = vec![
            vec!["TCP up".into(), "1,234".into()],
            vec!["UDP".into(), "9".into()],
        ];
        let text = table(&[("row", Align::Left), ("Mb", Align::Right)], &rows);
        assert_eq!(
            text,
            "row        Mb\n------  -----\nTCP up  1,234\nUDP         9\n"
        );
    }

    #[test]
    fn digits_are_grouped_from_the_right() {
        assert_eq!(thousands(0), "0");
        assert_eq!(thousands(1234567), "1,234,567");
    }
}
