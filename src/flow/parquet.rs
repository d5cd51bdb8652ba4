//! Flow logs in Parquet, as flow logs deliver them to S3: the fields as columns, `_` for `-` in names, null for `-`.
//!
//! Columns are read side by side, a few thousand rows at a time, and each row is judged by the same rules as a line, so
//! that there is one meaning of the fields. Columns with other names are not read at all.

use std::fmt::Write;
use std::panic::{AssertUnwindSafe, catch_unwind};

use parquet::column::reader::{ColumnReader, ColumnReaderImpl};
use parquet::data_type::{ByteArray, DataType};
use parquet::errors::ParquetError;
use parquet::file::reader::{ChunkReader, FileReader, SerializedFileReader};

use crate::flow::interfaces::Interfaces;
use crate::flow::text::{Decoded, Field, Format, FormatError, decode_fields};

mod footer;

/// Why a Parquet file cannot be read, or not any further.
#[derive(Debug, thiserror::Error)]
pub enum RowsError {
    /// The file is damaged or of an unknown kind.
    #[error("the Parquet file is damaged: {0}")]
    Damaged(String),
    /// Its columns are no flow log's.
    #[error("the columns of the Parquet file are not those of a flow log: {0}")]
    Format(#[from] FormatError),
}

impl From<ParquetError> for RowsError {
    fn from(error: ParquetError) -> RowsError {
        RowsError::Damaged(error.to_string())
    }
}

/// Rows decoded at a time.
const ROWS: usize = 4096;

/// The rows of one file, in order.
pub struct Rows<R: ChunkReader> {
    reader: SerializedFileReader<R>,
    /// Field, and index of its column.
    columns: Vec<(Field, usize)>,
    has_status: bool,
    next_group: usize,
    open: Vec<Cells>,
    number: u64,
}

/// One column of the row group that is being read: values as text, one span per row.
struct Cells {
    field: Field,
    reader: ColumnReader,
    nullable: bool,
    text: Vec<u8>,
    spans: Vec<Option<(usize, usize)>>,
}

impl<R: ChunkReader + 'static> Rows<R> {
    /// Reads the footer. Refuses files without the fields that every flow log must have.
    pub fn new(input: R) -> Result<Rows<R>, RowsError> {
        guarded(|| {
            footer::check(&input)?;
            let reader = SerializedFileReader::new(input)?;
            let schema = reader.metadata().file_metadata().schema_descr();
            let names: Vec<&str> = schema.columns().iter().map(|column| column.name()).collect();
            let format = Format::from_names(names.iter().copied())?;
            let columns: Vec<(Field, usize)> = Field::ALL
                .into_iter()
                .filter_map(|field| format.column(field).map(|column| (field, column)))
                .filter(|&(_, column)| schema.column(column).max_rep_level() == 0)
                .collect();
            let has_status = columns.iter().any(|&(field, _)| field == Field::Status);
            Ok(Rows { columns, has_status, next_group: 0, open: Vec::new(), number: 0, reader })
        })
    }

    /// How many rows were read.
    pub fn number(&self) -> u64 {
        self.number
    }

    /// Passes over rows that are done with.
    ///
    /// Only whole groups of rows are positions that [`Rows::number`] gave, so this stops at the first one that is not
    /// before `number`.
    pub fn skip_to(&mut self, number: u64) -> Result<(), RowsError> {
        guarded(|| {
            while self.number < number {
                if self.open.is_empty() && !self.open_group()? {
                    return Ok(());
                }
                match self.fill()? {
                    0 => self.open.clear(),
                    rows => self.number += rows as u64,
                }
            }
            Ok(())
        })
    }

    /// Decodes the next rows; false at the end.
    pub fn decode(&mut self, interfaces: &mut Interfaces, out: &mut Decoded) -> Result<bool, RowsError> {
        guarded(|| {
            loop {
                if self.open.is_empty() && !self.open_group()? {
                    return Ok(false);
                }
                let rows = self.fill()?;
                if rows == 0 {
                    self.open.clear();
                    continue;
                }
                for row in 0..rows {
                    self.number += 1;
                    self.decode_row(row, interfaces, out);
                }
                return Ok(true);
            }
        })
    }

    fn open_group(&mut self) -> Result<bool, RowsError> {
        if self.next_group >= self.reader.num_row_groups() {
            return Ok(false);
        }
        let group = self.reader.get_row_group(self.next_group)?;
        self.next_group += 1;
        for &(field, column) in &self.columns {
            let nullable = group.metadata().column(column).column_descr().max_def_level() > 0;
            let reader = group.get_column_reader(column)?;
            self.open.push(Cells { field, reader, nullable, text: Vec::new(), spans: Vec::new() });
        }
        Ok(true)
    }

    /// The number of rows that all columns gave; columns of different length are damage.
    fn fill(&mut self) -> Result<usize, RowsError> {
        let mut rows = None;
        for cells in &mut self.open {
            let count = cells.fill()?;
            if rows.is_some_and(|rows| rows != count) {
                return Err(RowsError::Damaged("its columns are of different lengths".into()));
            }
            rows = Some(count);
        }
        Ok(rows.unwrap_or(0))
    }

    fn decode_row(&self, row: usize, interfaces: &mut Interfaces, out: &mut Decoded) {
        let text = |field: Field| {
            let cells = self.open.iter().find(|cells| cells.field == field)?;
            let (start, end) = cells.spans[row]?;
            Some(&cells.text[start..end]).filter(|text| *text != b"-")
        };
        if let Err(malformed) = decode_fields(&text, self.has_status, interfaces, out) {
            out.refuse(self.number, malformed.field.map(Field::name), || malformed.why.to_string());
        }
    }
}

impl Cells {
    fn fill(&mut self) -> Result<usize, RowsError> {
        self.text.clear();
        self.spans.clear();
        let Cells { text, spans, nullable, .. } = self;
        let number = |value: &dyn std::fmt::Display, text: &mut Vec<u8>| {
            let mut digits = String::new();
            write!(digits, "{value}").expect("a string takes everything");
            text.extend_from_slice(digits.as_bytes());
        };
        match &mut self.reader {
            ColumnReader::Int32ColumnReader(reader) => {
                cells(reader, *nullable, text, spans, |value: &i32, text| number(value, text))
            }
            ColumnReader::Int64ColumnReader(reader) => {
                cells(reader, *nullable, text, spans, |value: &i64, text| number(value, text))
            }
            ColumnReader::ByteArrayColumnReader(reader) => {
                cells(reader, *nullable, text, spans, |value: &ByteArray, text| text.extend_from_slice(value.data()))
            }
            _ => Err(RowsError::Damaged(format!("`{}` is neither a number nor text", self.field.name()))),
        }
    }
}

fn cells<T: DataType>(
    reader: &mut ColumnReaderImpl<T>,
    nullable: bool,
    text: &mut Vec<u8>,
    spans: &mut Vec<Option<(usize, usize)>>,
    mut put: impl FnMut(&T::T, &mut Vec<u8>),
) -> Result<usize, RowsError> {
    let (mut values, mut levels) = (Vec::with_capacity(ROWS), Vec::with_capacity(ROWS));
    let (rows, ..) = reader.read_records(ROWS, Some(&mut levels), None, &mut values)?;
    let mut values = values.iter();
    for row in 0..rows {
        let present = !nullable || levels.get(row).is_some_and(|level| *level > 0);
        let value = if present { values.next() } else { None };
        spans.push(value.map(|value| {
            let start = text.len();
            put(value, text);
            (start, text.len())
        }));
    }
    Ok(rows)
}

/// A damaged file must not end the program, even where the Parquet library takes its bytes for granted and panics.
fn guarded<T>(body: impl FnOnce() -> Result<T, RowsError>) -> Result<T, RowsError> {
    let unwound = |_| Err(RowsError::Damaged("its pages contradict its footer".into()));
    catch_unwind(AssertUnwindSafe(body)).unwrap_or_else(unwound)
}

#[cfg(test)]
mod tests;
