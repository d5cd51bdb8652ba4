//! A Parquet file of any bytes is read or refused. Panics of the Parquet library are caught by the reader, so this target
//! looks for what cannot be caught: unbounded memory and time.

use bytes::Bytes;
use flowvigil::flow::interfaces::Interfaces;
use flowvigil::flow::parquet::Rows;
use flowvigil::flow::text::Decoded;

/// Panics where it is not so.
pub fn check(input: &[u8]) {
    let (mut interfaces, mut out) = (Interfaces::new(100), Decoded::default());
    let Ok(mut rows) = Rows::new(Bytes::copy_from_slice(input)) else { return };
    while let Ok(true) = rows.decode(&mut interfaces, &mut out) {
        out.clear();
    }
}
