//! Results as sets of rows: floating point sums differ in the last digits with the order of addition.

use std::fmt::Write;

/// A CSV result: header and rows of cells.
#[derive(Debug, Clone, PartialEq)]
pub struct Table {
    pub header: Vec<String>,
    pub rows: Vec<Vec<String>>,
}

/// Parses RFC 4180 text with a header line.
pub fn parse(text: &str) -> Table {
    let mut rows = Vec::new();
    let (mut row, mut cell, mut quoted) = (Vec::new(), String::new(), false);
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            '"' if quoted && chars.peek() == Some(&'"') => {
                chars.next();
                cell.push('"');
            }
            '"' => quoted = !quoted,
            ',' if !quoted => row.push(std::mem::take(&mut cell)),
            '\r' if !quoted => {}
            '\n' if !quoted => {
                row.push(std::mem::take(&mut cell));
                rows.push(std::mem::take(&mut row));
            }
            c => cell.push(c),
        }
    }
    if !cell.is_empty() || !row.is_empty() {
        row.push(cell);
        rows.push(row);
    }
    let header = if rows.is_empty() { Vec::new() } else { rows.remove(0) };
    Table { header, rows }
}

/// `None` when both hold the same rows, whatever their order, with numbers equal to nine digits; else the difference.
pub fn difference(a: &Table, b: &Table) -> Option<String> {
    if a.header != b.header {
        return Some(format!("headers differ: {:?} and {:?}", a.header, b.header));
    }
    if a.rows.len() != b.rows.len() {
        return Some(format!("{} rows and {} rows", a.rows.len(), b.rows.len()));
    }
    let sorted = |table: &Table| {
        let mut rows = table.rows.clone();
        rows.sort_by_key(|row| row.iter().map(|cell| sort_key(cell)).collect::<Vec<_>>());
        rows
    };
    let mut text = String::new();
    for (x, y) in sorted(a).iter().zip(&sorted(b)) {
        if x.len() != y.len() || !x.iter().zip(y).all(|(p, q)| same(p, q)) {
            let _ = writeln!(text, "{x:?}\n{y:?}");
            return Some(text);
        }
    }
    None
}

/// Numbers are rounded for sorting, so that their last digits do not reorder rows.
fn sort_key(cell: &str) -> String {
    match cell.parse::<f64>() {
        Ok(number) => format!("{number:.4e}"),
        Err(_) => cell.to_owned(),
    }
}

fn same(a: &str, b: &str) -> bool {
    if a == b {
        return true;
    }
    match (a.parse::<f64>(), b.parse::<f64>()) {
        (Ok(x), Ok(y)) => (x - y).abs() <= 1e-9 * x.abs().max(y.abs()).max(1e-300),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quotes_and_order_do_not_matter_but_values_do() {
        let a = parse("n,t\n1,\"a,\"\"b\"\"\nc\"\n2,x\n");
        assert_eq!(a.rows[0], ["1", "a,\"b\"\nc"]);
        assert_eq!(difference(&a, &parse("n,t\n2,x\n1,\"a,\"\"b\"\"\nc\"\n")), None);
        assert!(difference(&a, &parse("n,t\n2,x\n1,y\n")).is_some());
        assert!(difference(&a, &parse("n,t\n2,x\n")).is_some());
        assert!(difference(&a, &parse("m,t\n")).is_some());
    }

    #[test]
    fn the_last_digits_of_sums_may_differ() {
        assert_eq!(difference(&parse("s\n0.30000000000000004\n"), &parse("s\n0.3\n")), None);
        assert!(difference(&parse("s\n0.3001\n"), &parse("s\n0.3\n")).is_some());
    }
}
