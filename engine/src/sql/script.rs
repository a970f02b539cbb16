//! Cuts a script into statements and parses them all before the first one runs.

use datafusion::error::DataFusionError;
use datafusion::sql::parser::{DFParserBuilder, Statement as ParsedStatement};
use datafusion::sql::sqlparser::dialect::GenericDialect;
use datafusion::sql::sqlparser::parser::ParserError;
use datafusion::sql::sqlparser::tokenizer::{Token, TokenWithSpan, Tokenizer};

/// One statement of a script.
#[derive(Debug, Clone)]
pub struct ScriptStatement {
    /// Its text, without the semicolon.
    pub text: String,
    /// Line of its first token, counted from 1.
    pub line: u64,
    pub parsed: ParsedStatement,
}

/// A script that is not SQL, with the place.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{file}:{line}:{column}: {message}\n{excerpt}")]
pub struct SyntaxError {
    pub file: String,
    /// Counted from 1.
    pub line: u64,
    /// Counted from 1, in characters.
    pub column: u64,
    pub message: String,
    /// The line of the script with a caret under the place.
    pub excerpt: String,
}

/// Parses a script; `file` is only used in errors.
pub fn parse(file: &str, sql: &str) -> Result<Vec<ScriptStatement>, SyntaxError> {
    let dialect = GenericDialect {};
    let fail = |line: u64, column: u64, message: String| SyntaxError {
        file: file.to_owned(),
        line,
        column,
        message,
        excerpt: excerpt(sql, line, column),
    };
    let tokens = Tokenizer::new(&dialect, sql)
        .tokenize_with_location()
        .map_err(|e| fail(e.location.line, e.location.column, e.message))?;

    let line_starts = line_starts(sql);
    let mut statements = Vec::new();
    for group in tokens.split(|t| t.token == Token::SemiColon) {
        let meaningful = |t: &&TokenWithSpan| !matches!(t.token, Token::Whitespace(_) | Token::EOF);
        let (Some(first), Some(last)) = (group.iter().find(meaningful), group.iter().rev().find(meaningful))
        else {
            continue;
        };
        let at_end = (last.span.end.line, last.span.end.column);
        let parsed = DFParserBuilder::new(group.to_vec())
            .with_dialect(&dialect)
            .build()
            .and_then(|mut parser| parser.parse_statements())
            .map_err(|error| {
                let (message, place) = split_location(&error_text(&error));
                let (line, column) = place.unwrap_or(at_end);
                fail(line, column, message)
            })?;
        let begin = offset(&line_starts, sql, first.span.start.line, first.span.start.column);
        let end = offset(&line_starts, sql, last.span.end.line, last.span.end.column);
        for parsed in parsed {
            statements.push(ScriptStatement {
                text: sql.get(begin..end).unwrap_or_default().to_owned(),
                line: first.span.start.line,
                parsed,
            });
        }
    }
    Ok(statements)
}

/// A short form of a statement for one line of a page or a terminal: white space folded, at most `max` characters.
pub fn summary(text: &str, max: usize) -> String {
    let mut line = String::new();
    for raw in text.lines() {
        let code = raw.split("--").next().unwrap_or_default();
        for word in code.split_whitespace() {
            if !line.is_empty() {
                line.push(' ');
            }
            line.push_str(word);
        }
    }
    if line.chars().count() > max {
        line = line.chars().take(max.saturating_sub(1)).collect();
        line.push('…');
    }
    line
}

fn error_text(error: &DataFusionError) -> String {
    match error.find_root() {
        DataFusionError::SQL(parser_error, _) => match parser_error.as_ref() {
            ParserError::TokenizerError(text) | ParserError::ParserError(text) => text.clone(),
            ParserError::RecursionLimitExceeded => "the statement is nested too deeply".to_owned(),
        },
        DataFusionError::Diagnostic(_, inner) => error_text(inner),
        other => other.strip_backtrace(),
    }
}

/// sqlparser ends its messages with ` at Line: 3, Column: 7`.
fn split_location(message: &str) -> (String, Option<(u64, u64)>) {
    let parse = || {
        let (text, place) = message.rsplit_once(" at Line: ")?;
        let (line, column) = place.split_once(", Column: ")?;
        let digits = column.find(|c: char| !c.is_ascii_digit()).unwrap_or(column.len());
        Some((text.to_owned(), (line.trim().parse().ok()?, column[..digits].parse().ok()?)))
    };
    match parse() {
        Some((text, place)) => (text, Some(place)),
        None => (message.to_owned(), None),
    }
}

fn line_starts(sql: &str) -> Vec<usize> {
    std::iter::once(0).chain(sql.match_indices('\n').map(|(i, _)| i + 1)).collect()
}

/// Byte offset of a place, which the tokenizer counts in characters from 1.
fn offset(line_starts: &[usize], sql: &str, line: u64, column: u64) -> usize {
    let start = line_starts.get((line as usize).saturating_sub(1)).copied().unwrap_or(sql.len());
    let rest = &sql[start..];
    start + rest.char_indices().nth((column as usize).saturating_sub(1)).map_or(rest.len(), |(i, _)| i)
}

fn excerpt(sql: &str, line: u64, column: u64) -> String {
    let text = sql.lines().nth((line as usize).saturating_sub(1)).unwrap_or_default();
    let pad: String = text
        .chars()
        .take((column as usize).saturating_sub(1))
        .map(|c| if c == '\t' { '\t' } else { ' ' })
        .collect();
    format!("  | {text}\n  | {pad}^")
}
