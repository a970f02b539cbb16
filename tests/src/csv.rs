//! Results as sets of rows: floating point sums differ in the last digits with the order of addition.

/// A CSV result: header and rows of cells.
#[derive(Debug, Clone, PartialEq)]
pub struct Table {
    pub header: Vec<String>,
    pub rows: Vec<Vec<String>>,
}

/// Parses RFC 4180 text with a header line.
pub fn parse(text: &str) -> Table {
    let mut rows = Vec::new();
    let (mut row, mut cell, mut quoted, mut begun) = (Vec::new(), String::new(), false, false);
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        begun = c != '\n' || quoted;
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
    // The last line may lack its end, and a row that is one null is written as two quotes.
    if begun {
        row.push(cell);
        rows.push(row);
    }
    let header = if rows.is_empty() { Vec::new() } else { rows.remove(0) };
    Table { header, rows }
}

/// `None` when both hold the same rows, whatever their order, with numbers as [`same`] sees them; else the difference.
pub fn difference(a: &Table, b: &Table) -> Option<String> {
    let sorted = |table: &Table| {
        let mut rows = table.rows.clone();
        rows.sort_by_key(|row| row.iter().map(|cell| sort_key(cell)).collect::<Vec<_>>());
        Table { header: table.header.clone(), rows }
    };
    difference_in_order(&sorted(a), &sorted(b))
}

/// As [`difference`], of rows that must come in the same order as well.
pub fn difference_in_order(a: &Table, b: &Table) -> Option<String> {
    if a.header != b.header {
        return Some(format!("headers differ: {:?} and {:?}", a.header, b.header));
    }
    if a.rows.len() != b.rows.len() {
        return Some(format!("{} rows and {} rows", a.rows.len(), b.rows.len()));
    }
    let mut pairs = a.rows.iter().zip(&b.rows).enumerate();
    let unequal =
        |x: &[String], y: &[String]| x.len() != y.len() || !x.iter().zip(y).all(|(p, q)| same(p, q));
    let (i, (x, y)) = pairs.find(|(_, (x, y))| unequal(x, y))?;
    Some(format!("row {} of {}:\n{x:?}\n{y:?}\n", i + 1, a.rows.len()))
}

/// Numbers are rounded for sorting, so that their last digits do not reorder rows.
fn sort_key(cell: &str) -> String {
    match cell.parse::<f64>() {
        Ok(number) => format!("{number:.4e}"),
        Err(_) => cell.to_owned(),
    }
}

/// Numbers may differ beyond the ninth digit, but only when one of them shows as many as a floating point sum does that
/// was added up in another order: counts and decimals are equal or they are not.
fn same(a: &str, b: &str) -> bool {
    if a == b {
        return true;
    }
    let digits = |text: &str| {
        let mantissa = text.split(['e', 'E']).next().unwrap_or_default();
        mantissa.chars().filter(char::is_ascii_digit).skip_while(|c| *c == '0').count()
    };
    match (a.parse::<f64>(), b.parse::<f64>()) {
        (Ok(x), Ok(y)) => {
            digits(a).max(digits(b)) >= FLOAT_DIGITS && (x - y).abs() <= 1e-9 * x.abs().max(y.abs())
        }
        _ => false,
    }
}

/// Fewer significant digits than a double that is not a round number is written with.
const FLOAT_DIGITS: usize = 14;

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
    fn a_row_of_one_null_is_a_row() {
        assert_eq!(parse("s\n\"\"").rows, [[""]]);
        assert_eq!(parse("s\n\"\"\n").rows, [[""]]);
        assert_eq!(parse("s\n").rows.len(), 0);
        assert_eq!(parse("s").rows.len(), 0);
    }

    #[test]
    fn the_order_matters_where_it_is_asked_about() {
        let (a, b) = (parse("n\n1\n2\n"), parse("n\n2\n1\n"));
        assert_eq!(difference(&a, &b), None);
        assert!(difference_in_order(&a, &b).is_some());
        assert_eq!(difference_in_order(&a, &a), None);
    }

    #[test]
    fn the_last_digits_of_floating_point_sums_may_differ() {
        assert_eq!(difference(&parse("s\n0.30000000000000004\n"), &parse("s\n0.3\n")), None);
        assert!(difference(&parse("s\n0.3001\n"), &parse("s\n0.3\n")).is_some());
        assert!(
            difference(&parse("s\n12345678901.01\n"), &parse("s\n12345678901.02\n")).is_some(),
            "decimals"
        );
        assert!(difference(&parse("s\n\"\"\n"), &parse("s\n0\n")).is_some(), "null is not zero");
    }
}
