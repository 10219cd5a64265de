//! Tables and goals.

use crate::rounds::Case;

/// Finds a case.
pub fn find<'a>(cases: &'a [Case], row: &str, column: &str) -> &'a Case {
    let found = cases.iter().find(|c| c.row == row && c.column == column);
    found.unwrap_or_else(|| panic!("{row} of {column} is measured"))
}

/// Prints the cases of the columns named, a row for each of their rows.
pub fn print(title: &str, first: &str, cases: &[Case], columns: &[&str]) {
    let mut rows: Vec<&str> = Vec::new();
    for case in cases.iter().filter(|c| columns.contains(&c.column)) {
        if !rows.contains(&case.row.as_str()) {
            rows.push(&case.row);
        }
    }
    let mut lines = vec![];
    lines.push(
        [&[first], columns]
            .concat()
            .into_iter()
            .map(String::from)
            .collect(),
    );
    for row in rows {
        let mut line = vec![row.to_string()];
        for column in columns {
            let case = cases.iter().find(|c| c.row == row && c.column == *column);
            line.push(case.map_or("–".into(), |c| number(c.median())));
        }
        lines.push(line);
    }
    println!("\n{title}\n");
    print_lines(&lines);
}

/// A number with as many places as mean something.
fn number(value: f64) -> String {
    match value {
        v if v.is_nan() => "–".into(),
        v if v < 10.0 => format!("{v:.2}"),
        v if v < 100.0 => format!("{v:.1}"),
        v => format!("{v:.0}"),
    }
}

/// Prints a heading and its lines, cells separated by tabs: `cargo xtask bench` lays them out.
fn print_lines(lines: &[Vec<String>]) {
    for line in lines {
        println!("{}", line.join("\t"));
    }
}

/// Something that shall be so.
pub struct Goal {
    /// In words.
    pub what: String,
    /// What was measured.
    pub measured: f64,
    /// What it shall be.
    pub bound: Bound,
}

/// A limit.
pub enum Bound {
    /// This or less.
    AtMost(f64),
    /// This or more.
    AtLeast(f64),
}

/// Prints goals and whether they hold.
pub fn print_goals(goals: &[Goal]) {
    let mut lines = vec![vec![
        "goal".into(),
        "measured".into(),
        "wanted".into(),
        "".into(),
    ]];
    for goal in goals {
        // A ratio means something to the places that are shown.
        let measured = (goal.measured * 100.0).round() / 100.0;
        let (wanted, holds) = match goal.bound {
            Bound::AtMost(most) => (format!("≤ {most:.2}"), measured <= most),
            Bound::AtLeast(least) => (format!("≥ {least:.2}"), measured >= least),
        };
        lines.push(vec![
            goal.what.clone(),
            number(goal.measured),
            wanted,
            match holds {
                true => "holds".into(),
                false if goal.measured.is_nan() => "not measured".into(),
                false => "not reached".into(),
            },
        ]);
    }
    println!();
    print_lines(&lines);
}
