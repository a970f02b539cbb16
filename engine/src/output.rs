//! Results as people and programs read them.

use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;
use arrow::error::ArrowError;
use arrow::util::display::{ArrayFormatter, FormatOptions};
use firesteel_common::OutputFormat;
use std::io::{self, Write};

/// Why a result could not be written.
#[derive(Debug, thiserror::Error)]
pub enum OutputError {
    #[error("cannot write the result: {0}")]
    Io(#[from] io::Error),
    #[error("cannot format the result: {0}")]
    Format(#[from] ArrowError),
}

impl OutputError {
    /// The reader went away (`submit … | head`): nobody is left to tell.
    pub fn is_closed(&self) -> bool {
        let io = match self {
            Self::Io(error) => Some(error.kind()),
            Self::Format(ArrowError::IoError(_, error)) => Some(error.kind()),
            Self::Format(_) => None,
        };
        io == Some(io::ErrorKind::BrokenPipe)
    }
}

/// Rows of a table whose widths decide the columns; later rows follow the same widths.
const MEASURED_ROWS: usize = 10_000;
const CELL_CHARS_MAX: usize = 1_000;

/// Writes the results of a script's statements, one after another.
pub struct ResultWriter<W> {
    out: W,
    format: OutputFormat,
    results: u32,
}

/// One result under way.
pub struct ResultInProgress {
    schema: SchemaRef,
    rows: u64,
    /// Table format: rows not yet printed, until the widths are known.
    held: Vec<Vec<String>>,
    widths: Option<Vec<usize>>,
    header_written: bool,
}

impl<W: Write> ResultWriter<W> {
    pub fn new(out: W, format: OutputFormat) -> Self {
        Self { out, format, results: 0 }
    }

    pub fn format(&self) -> OutputFormat {
        self.format
    }

    /// Results of one script are separated by an empty line.
    pub fn begin(&mut self, schema: SchemaRef) -> Result<ResultInProgress, OutputError> {
        if self.results > 0 && self.format != OutputFormat::Json {
            self.out.write_all(b"\n")?;
        }
        self.results += 1;
        Ok(ResultInProgress { schema, rows: 0, held: Vec::new(), widths: None, header_written: false })
    }

    pub fn write(&mut self, result: &mut ResultInProgress, batch: &RecordBatch) -> Result<(), OutputError> {
        result.rows += batch.num_rows() as u64;
        match self.format {
            OutputFormat::Csv => {
                let mut csv =
                    arrow::csv::WriterBuilder::new().with_header(!result.header_written).build(&mut self.out);
                csv.write(batch)?;
                result.header_written = true;
            }
            OutputFormat::Json => {
                let mut json = arrow::json::WriterBuilder::new()
                    .with_explicit_nulls(true)
                    .build::<_, arrow::json::writer::LineDelimited>(&mut self.out);
                json.write(batch)?;
                json.finish()?;
            }
            OutputFormat::Table => {
                result.held.extend(cells(batch)?);
                if result.widths.is_some() || result.held.len() >= MEASURED_ROWS {
                    self.print_held(result)?;
                }
            }
        }
        Ok(())
    }

    pub fn end(&mut self, mut result: ResultInProgress) -> Result<u64, OutputError> {
        match self.format {
            OutputFormat::Csv if !result.header_written => {
                let empty = RecordBatch::new_empty(result.schema.clone());
                self.write(&mut result, &empty)?;
            }
            OutputFormat::Table => {
                self.print_held(&mut result)?;
                let widths = result.widths.take().unwrap_or_default();
                self.rule(&widths)?;
                let plural = if result.rows == 1 { "" } else { "s" };
                writeln!(self.out, "({} row{plural})", result.rows)?;
            }
            OutputFormat::Csv | OutputFormat::Json => {}
        }
        self.out.flush()?;
        Ok(result.rows)
    }

    /// A result that is a sentence, not rows: shown to people only, so that csv and json stay data alone.
    pub fn note(&mut self, text: &str) -> Result<(), OutputError> {
        if self.format == OutputFormat::Table {
            if self.results > 0 {
                self.out.write_all(b"\n")?;
            }
            self.results += 1;
            writeln!(self.out, "{text}")?;
            self.out.flush()?;
        }
        Ok(())
    }

    fn print_held(&mut self, result: &mut ResultInProgress) -> Result<(), OutputError> {
        let widths = match result.widths.take() {
            Some(widths) => widths,
            None => {
                let names: Vec<String> = result.schema.fields().iter().map(|f| f.name().clone()).collect();
                let mut widths: Vec<usize> = names.iter().map(|n| display_width(n)).collect();
                for row in &result.held {
                    for (width, cell) in widths.iter_mut().zip(row) {
                        for line in cell.split('\n') {
                            *width = (*width).max(display_width(line));
                        }
                    }
                }
                self.rule(&widths)?;
                self.row(&widths, &names, &result.schema, true)?;
                self.rule(&widths)?;
                widths
            }
        };
        for row in result.held.drain(..) {
            self.row(&widths, &row, &result.schema, false)?;
        }
        result.widths = Some(widths);
        Ok(())
    }

    fn rule(&mut self, widths: &[usize]) -> io::Result<()> {
        for width in widths {
            write!(self.out, "+{}", "-".repeat(width + 2))?;
        }
        self.out.write_all(b"+\n")
    }

    /// One row; a cell with line breaks takes several lines.
    fn row(
        &mut self,
        widths: &[usize],
        cells: &[String],
        schema: &SchemaRef,
        header: bool,
    ) -> io::Result<()> {
        let lines: Vec<Vec<&str>> = cells.iter().map(|cell| cell.split('\n').collect()).collect();
        let height = lines.iter().map(Vec::len).max().unwrap_or(1);
        for y in 0..height {
            for (x, width) in widths.iter().enumerate() {
                let text = lines[x].get(y).copied().unwrap_or_default();
                let pad = " ".repeat(width.saturating_sub(display_width(text)));
                let right = !header && schema.field(x).data_type().is_numeric();
                match right {
                    true => write!(self.out, "| {pad}{text} ")?,
                    false => write!(self.out, "| {text}{pad} ")?,
                }
            }
            self.out.write_all(b"|\n")?;
        }
        Ok(())
    }
}

/// Terminal columns, near enough: wide East Asian characters and emoji count two.
fn display_width(text: &str) -> usize {
    text.chars()
        .map(|c| match c as u32 {
            0x300..=0x36f | 0x200b..=0x200f | 0xfe00..=0xfe0f => 0,
            0x1100..=0x115f
            | 0x2e80..=0xa4cf
            | 0xac00..=0xd7a3
            | 0xf900..=0xfaff
            | 0xfe30..=0xfe6f
            | 0xff00..=0xff60
            | 0xffe0..=0xffe6
            | 0x1f300..=0x1faff
            | 0x20000..=0x3fffd => 2,
            _ => 1,
        })
        .sum()
}

/// Cells as text; control characters other than a line break become visible, so that data cannot drive a terminal.
fn cells(batch: &RecordBatch) -> Result<Vec<Vec<String>>, OutputError> {
    let options = FormatOptions::default().with_null("NULL").with_display_error(true);
    let formatters = batch
        .columns()
        .iter()
        .map(|column| ArrayFormatter::try_new(column.as_ref(), &options))
        .collect::<Result<Vec<_>, _>>()?;
    Ok((0..batch.num_rows())
        .map(|row| formatters.iter().map(|f| printable(&f.value(row).to_string())).collect())
        .collect())
}

fn printable(text: &str) -> String {
    let clean = |c: char| match c {
        '\n' => '\n',
        '\t' => ' ',
        c if c.is_control() => char::REPLACEMENT_CHARACTER,
        c => c,
    };
    let mut out: String = text.chars().take(CELL_CHARS_MAX).map(clean).collect();
    if text.chars().nth(CELL_CHARS_MAX).is_some() && !text.contains('\n') {
        out.push('…');
    } else if text.contains('\n') {
        out = text.chars().map(clean).collect();
    }
    out
}
