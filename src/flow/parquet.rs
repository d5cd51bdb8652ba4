//! Flow logs in Parquet, as flow logs deliver them to S3: the fields as columns, `_` for `-` in names, null for `-`.
//!
//! Columns are read side by side, a few thousand rows at a time, and each row is judged by the same rules as a line, so
//! that there is one meaning of the fields. Columns with other names are not read at all. pandas, Spark, Athena and
//! Security Lake write the same fields with other types (floats, timestamps, numbers as text), other names, nested
//! (`src_endpoint.ip`), or as a column of whole lines (`message`); those are read as rows of a table are.

use std::fmt::Write;
use std::panic::{AssertUnwindSafe, catch_unwind};

use parquet::basic::{IntType, LogicalType, TimeUnit};
use parquet::column::reader::{ColumnReader, ColumnReaderImpl};
use parquet::data_type::{ByteArray, DataType, FixedLenByteArray, Int96};
use parquet::errors::ParquetError;
use parquet::file::reader::{ChunkReader, FileReader, SerializedFileReader};
use parquet::schema::types::ColumnDescriptor;

use crate::flow::foreign::Foreign;
use crate::flow::interfaces::Interfaces;
use crate::flow::names::{self, Column};
use crate::flow::text::{Decoded, Field, Format, FormatError, Lines, decode_loosely};

mod footer;

/// Why a Parquet file cannot be read, or not any further.
#[derive(Debug, thiserror::Error)]
pub enum RowsError {
    /// The file is damaged or of an unknown kind.
    #[error("the Parquet file is damaged: {0}")]
    Damaged(String),
    /// Its columns are no flow log's.
    #[error("the columns of the Parquet file ({columns}) are not those of a flow log: {cause}")]
    Format {
        /// The first of them.
        columns: String,
        /// What is missing.
        cause: FormatError,
    },
    /// Its columns are those of something else.
    #[error("{0}")]
    Foreign(Foreign),
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
    /// Field, and index of its column, best first where several may hold a field.
    columns: Vec<(Column, usize)>,
    has_status: bool,
    /// For a column of whole lines.
    lines: Option<Lines>,
    next_group: usize,
    open: Vec<Cells>,
    number: u64,
}

/// One column of the row group that is being read: values as text, one span per row.
struct Cells {
    column: Column,
    name: String,
    reader: ColumnReader,
    /// The definition level of a value that is there: nested columns have one for each thing that may be absent.
    present: i16,
    /// By how much numbers are divided to be seconds, in a column of times.
    per_second: Option<i64>,
    unsigned: bool,
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
            let paths: Vec<String> = schema.columns().iter().map(|column| column.path().string()).collect();
            let known = |&(index, path): &(usize, &String)| {
                let (column, rank) = names::known(path)?;
                let about = schema.column(index);
                let single = about.max_rep_level() == 0 && about.physical_type() != parquet::basic::Type::BOOLEAN;
                single.then_some((rank, column, index))
            };
            let mut known: Vec<(usize, Column, usize)> =
                paths.iter().enumerate().filter_map(|pair| known(&pair)).collect();
            known.sort_by_key(|&(rank, _, index)| (rank, index));
            let any = |wanted: &[Field]| {
                known.iter().any(|(_, column, _)| matches!(column, Column::Field(field) if wanted.contains(field)))
            };
            let timed = any(&[Field::Start, Field::End]);
            let found = [
                (any(&[Field::Source, Field::PacketSource]), "srcaddr"),
                (any(&[Field::Destination, Field::PacketDestination]), "dstaddr"),
                (timed || known.iter().any(|(_, column, _)| *column == Column::Stamp), "start"),
            ];
            let lacks: Vec<&'static str> = found.iter().filter_map(|&(has, name)| (!has).then_some(name)).collect();
            let message = known.iter().find(|(_, column, _)| *column == Column::Message).copied();
            let columns: Vec<(Column, usize)> = match (lacks.is_empty(), message) {
                (true, _) => known
                    .iter()
                    .filter(|(_, column, _)| *column != Column::Message && (*column != Column::Stamp || !timed))
                    .map(|&(_, column, index)| (column, index))
                    .collect(),
                (false, Some((_, column, index))) => vec![(column, index)],
                (false, None) => {
                    let mut columns = paths.iter().take(8).map(String::as_str).collect::<Vec<_>>().join(", ");
                    if paths.len() > 8 {
                        columns.push_str(", …");
                    }
                    return Err(RowsError::Format { columns, cause: FormatError::Lacks(lacks) });
                }
            };
            let has_status = columns.iter().any(|&(column, _)| column == Column::Field(Field::Status));
            let lines = columns.iter().any(|&(column, _)| column == Column::Message);
            let lines = lines.then(|| Lines::new(Format::default()));
            Ok(Rows { columns, has_status, lines, next_group: 0, open: Vec::new(), number: 0, reader })
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
        for &(column, index) in &self.columns {
            let about = group.metadata().column(index).column_descr();
            self.open.push(Cells {
                column,
                name: about.path().string(),
                present: about.max_def_level(),
                per_second: per_second(about),
                unsigned: matches!(
                    about.logical_type_ref(),
                    Some(LogicalType::Integer(IntType { is_signed: false, .. }))
                ) || about.converted_type() == parquet::basic::ConvertedType::UINT_64,
                reader: group.get_column_reader(index)?,
                text: Vec::new(),
                spans: Vec::new(),
            });
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

    fn decode_row(&mut self, row: usize, interfaces: &mut Interfaces, out: &mut Decoded) {
        let value = |cells: &Cells| cells.spans[row].filter(|(start, end)| start < end);
        if let Some(lines) = &mut self.lines {
            for cells in &self.open {
                match value(cells) {
                    Some((start, end)) => lines.decode_line(&cells.text[start..end], interfaces, out),
                    None => lines.count_fast(),
                }
            }
            return;
        }
        let text = |field: Field| {
            let of_field = |cells: &&Cells| match cells.column {
                Column::Field(other) => other == field,
                Column::Stamp => field == Field::Start,
                Column::Message => false,
            };
            let values = self.open.iter().filter(of_field).filter_map(|cells| {
                let (start, end) = value(cells)?;
                Some(&cells.text[start..end])
            });
            values.into_iter().find(|text| *text != b"-")
        };
        decode_loosely(&text, self.has_status, self.number, interfaces, out);
    }
}

/// What a number of a column of times is in seconds; `None` where it is no time by its type.
fn per_second(about: &ColumnDescriptor) -> Option<i64> {
    use parquet::basic::ConvertedType;
    let unit = |unit: &TimeUnit| match unit {
        TimeUnit::MILLIS => 1_000,
        TimeUnit::MICROS => 1_000_000,
        TimeUnit::NANOS => 1_000_000_000,
    };
    match (about.logical_type_ref(), about.converted_type()) {
        (Some(LogicalType::Timestamp(time)), _) => Some(unit(&time.unit)),
        (None, ConvertedType::TIMESTAMP_MILLIS) => Some(1_000),
        (None, ConvertedType::TIMESTAMP_MICROS) => Some(1_000_000),
        _ => None,
    }
}

/// Seconds since 1970 of a moment as Spark and Hive write it: nanoseconds of a Julian day.
fn of_julian(value: &Int96) -> i64 {
    const DAY_OF_1970: i64 = 2_440_588;
    let [low, high, day] = *value.data() else { return 0 };
    let nanoseconds = (u64::from(high) << 32 | u64::from(low)) as i64;
    (i64::from(day) - DAY_OF_1970) * 86_400 + nanoseconds / 1_000_000_000
}

impl Cells {
    fn fill(&mut self) -> Result<usize, RowsError> {
        self.text.clear();
        self.spans.clear();
        let Cells { text, spans, present, per_second, unsigned, .. } = self;
        let (present, per_second, unsigned) = (*present, *per_second, *unsigned);
        let number = |value: &dyn std::fmt::Display, text: &mut Vec<u8>| {
            let mut digits = String::new();
            write!(digits, "{value}").expect("a string takes everything");
            text.extend_from_slice(digits.as_bytes());
        };
        match &mut self.reader {
            ColumnReader::Int32ColumnReader(reader) => {
                cells(reader, present, text, spans, |value: &i32, text| match unsigned {
                    true => number(&value.cast_unsigned(), text),
                    false => number(value, text),
                })
            }
            ColumnReader::Int64ColumnReader(reader) => {
                cells(reader, present, text, spans, |value: &i64, text| match per_second {
                    Some(per_second) => number(&value.div_euclid(per_second), text),
                    None if unsigned => number(&value.cast_unsigned(), text),
                    None => number(value, text),
                })
            }
            ColumnReader::Int96ColumnReader(reader) => {
                cells(reader, present, text, spans, |value: &Int96, text| number(&of_julian(value), text))
            }
            ColumnReader::FloatColumnReader(reader) => {
                cells(reader, present, text, spans, |value: &f32, text| number(value, text))
            }
            ColumnReader::DoubleColumnReader(reader) => {
                cells(reader, present, text, spans, |value: &f64, text| number(value, text))
            }
            ColumnReader::ByteArrayColumnReader(reader) => {
                cells(reader, present, text, spans, |value: &ByteArray, text| text.extend_from_slice(value.data()))
            }
            ColumnReader::FixedLenByteArrayColumnReader(reader) => {
                let put = |value: &FixedLenByteArray, text: &mut Vec<u8>| text.extend_from_slice(value.data());
                cells(reader, present, text, spans, put)
            }
            ColumnReader::BoolColumnReader(_) => {
                Err(RowsError::Damaged(format!("`{}` is neither a number nor text", self.name)))
            }
        }
    }
}

fn cells<T: DataType>(
    reader: &mut ColumnReaderImpl<T>,
    full: i16,
    text: &mut Vec<u8>,
    spans: &mut Vec<Option<(usize, usize)>>,
    mut put: impl FnMut(&T::T, &mut Vec<u8>),
) -> Result<usize, RowsError> {
    let (mut values, mut levels) = (Vec::with_capacity(ROWS), Vec::with_capacity(ROWS));
    let (rows, ..) = reader.read_records(ROWS, Some(&mut levels), None, &mut values)?;
    let mut values = values.iter();
    for row in 0..rows {
        let present = full == 0 || levels.get(row).is_some_and(|level| *level == full);
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
