//! NumPy's file formats, as far as the runtime's tensors need them: `.npy` is read and written, `.npz` (a zip file of
//! `.npy` files, not compressed) is written.
//!
//! Little endian only, C order only, the six element types of [`Data`]. A file is untrusted: its header is bounded and its
//! bytes must be exactly those that its shape needs. Formats: NumPy's `numpy.lib.format`, PKWARE's APPNOTE 6.3 without
//! zip64.

use std::io::{self, Write};

use andon_runtime::{Data, Tensor};
use anyhow::{Context, Result, bail, ensure};

const MAGIC: &[u8; 6] = b"\x93NUMPY";
/// NumPy aligns what follows the header.
const ALIGNMENT: usize = 64;
const RANK_MAX: usize = 8;

/// One array.
pub(crate) fn read(bytes: &[u8]) -> Result<Tensor> {
    let rest = bytes.strip_prefix(MAGIC).context("no NumPy array: its first bytes are others")?;
    let (version, rest) = rest.split_first_chunk::<2>().context("cut off in the version")?;
    let (length, rest) = match version[0] {
        1 => {
            let (length, rest) = rest.split_first_chunk().context("cut off in the header")?;
            (usize::from(u16::from_le_bytes(*length)), rest)
        }
        2 | 3 => {
            let (length, rest) = rest.split_first_chunk().context("cut off in the header")?;
            (usize::try_from(u32::from_le_bytes(*length))?, rest)
        }
        other => bail!("version {other} of the format is not known"),
    };
    let (header, data) = rest.split_at_checked(length).context("cut off in the header")?;
    let header = std::str::from_utf8(header).context("its header is no text")?;
    ensure!(
        entry(header, "fortran_order")?.starts_with("False"),
        "it is in Fortran order, save it in C order"
    );
    let shape = shape(entry(header, "shape")?)?;
    let data = elements(entry(header, "descr")?, data)?;
    Tensor::new(shape, data).map_err(|e| anyhow::anyhow!("{e}"))
}

/// What follows `'KEY':` in a header: `{'descr': '<f4', 'fortran_order': False, 'shape': (1, 3), }`.
fn entry<'a>(header: &'a str, key: &str) -> Result<&'a str> {
    let quoted = format!("'{key}':");
    let at = header.find(&quoted).with_context(|| format!("its header has no {key:?}"))?;
    Ok(header[at + quoted.len()..].trim_start())
}

fn shape(text: &str) -> Result<Vec<usize>> {
    let inside = text.strip_prefix('(').and_then(|t| t.split_once(')')).context("its shape is no tuple")?.0;
    let dims = inside.split(',').map(str::trim).filter(|d| !d.is_empty());
    let dims = dims.map(|d| d.parse().with_context(|| format!("dimension {d:?} of its shape is no number")));
    let dims: Vec<usize> = dims.collect::<Result<_>>()?;
    ensure!(dims.len() <= RANK_MAX, "it has {} dimensions, at most {RANK_MAX}", dims.len());
    Ok(dims)
}

fn elements(descr: &str, bytes: &[u8]) -> Result<Data> {
    /// Whole elements only.
    fn list<const N: usize, T>(bytes: &[u8], from: impl Fn([u8; N]) -> T) -> Result<Vec<T>> {
        let (chunks, rest) = bytes.as_chunks();
        ensure!(rest.is_empty(), "{} bytes are no whole number of elements", bytes.len());
        Ok(chunks.iter().map(|chunk| from(*chunk)).collect())
    }
    let name = descr
        .strip_prefix('\'')
        .and_then(|t| t.split_once('\''))
        .context("its element type is no plain one")?
        .0;
    Ok(match name {
        "<f4" => Data::F32(list(bytes, f32::from_le_bytes)?),
        "|u1" => Data::U8(bytes.to_vec()),
        "|i1" => Data::I8(list(bytes, i8::from_le_bytes)?),
        "<i4" => Data::I32(list(bytes, i32::from_le_bytes)?),
        "<i8" => Data::I64(list(bytes, i64::from_le_bytes)?),
        "|b1" => Data::Bool(list(bytes, |[b]: [u8; 1]| b != 0)?),
        other => bail!("elements of type {other:?} are not supported, only <f4, |u1, |i1, <i4, <i8 and |b1"),
    })
}

/// The file for one array.
pub(crate) fn write(tensor: &Tensor) -> Vec<u8> {
    let descr = match tensor.data() {
        Data::F32(_) => "<f4",
        Data::U8(_) => "|u1",
        Data::I8(_) => "|i1",
        Data::I32(_) => "<i4",
        Data::I64(_) => "<i8",
        Data::Bool(_) => "|b1",
    };
    // A tuple of one needs its comma.
    let dims: String = tensor.shape().iter().map(|d| format!("{d}, ")).collect();
    let mut header =
        format!("{{'descr': '{descr}', 'fortran_order': False, 'shape': ({}), }}", dims.trim_end());
    let start = MAGIC.len() + 4;
    let padded = (start + header.len() + 1).next_multiple_of(ALIGNMENT) - start - 1;
    header.extend(std::iter::repeat_n(' ', padded - header.len()));
    header.push('\n');
    let mut out = Vec::with_capacity(start + header.len() + tensor.data().len() * 8);
    out.extend_from_slice(MAGIC);
    out.extend_from_slice(&[1, 0]);
    // At most eight dimensions of twenty digits.
    out.extend_from_slice(&(header.len() as u16).to_le_bytes());
    out.extend_from_slice(header.as_bytes());
    match tensor.data() {
        Data::F32(v) => v.iter().for_each(|v| out.extend_from_slice(&v.to_le_bytes())),
        Data::U8(v) => out.extend_from_slice(v),
        Data::I8(v) => v.iter().for_each(|v| out.extend_from_slice(&v.to_le_bytes())),
        Data::I32(v) => v.iter().for_each(|v| out.extend_from_slice(&v.to_le_bytes())),
        Data::I64(v) => v.iter().for_each(|v| out.extend_from_slice(&v.to_le_bytes())),
        Data::Bool(v) => out.extend(v.iter().map(|v| u8::from(*v))),
    }
    out
}

/// Writes `.npy` files into one `.npz`, by name. [`NpzWriter::finish`] makes it whole.
pub(crate) struct NpzWriter<W> {
    out: W,
    offset: u32,
    count: u16,
    /// Central directory.
    directory: Vec<u8>,
}

impl<W: Write> NpzWriter<W> {
    pub(crate) fn new(out: W) -> Self {
        Self { out, offset: 0, count: 0, directory: Vec::new() }
    }

    pub(crate) fn add(&mut self, name: &str, tensor: &Tensor) -> io::Result<()> {
        let too_large = |_| too_large();
        let (name, content) = (format!("{name}.npy"), write(tensor));
        let size = u32::try_from(content.len()).map_err(too_large)?;
        // What both headers have: version 2.0, names in UTF-8, stored, 1980-01-01, checksum, twice the size, the name's
        // length, no extra field.
        let mut common = Vec::with_capacity(26);
        for field in [20u16, 0x0800, 0, 0, 0x0021] {
            common.extend_from_slice(&field.to_le_bytes());
        }
        for field in [crc32fast::hash(&content), size, size] {
            common.extend_from_slice(&field.to_le_bytes());
        }
        common.extend_from_slice(&u16::try_from(name.len()).map_err(too_large)?.to_le_bytes());
        common.extend_from_slice(&[0, 0]);

        self.directory.extend_from_slice(b"PK\x01\x02\x14\x00");
        self.directory.extend_from_slice(&common);
        // No comment, disk 0, no attributes.
        self.directory.extend_from_slice(&[0; 10]);
        self.directory.extend_from_slice(&self.offset.to_le_bytes());
        self.directory.extend_from_slice(name.as_bytes());

        for part in [&b"PK\x03\x04"[..], &common, name.as_bytes(), &content] {
            self.out.write_all(part)?;
            let length = u32::try_from(part.len()).map_err(too_large)?;
            self.offset = self.offset.checked_add(length).ok_or_else(self::too_large)?;
        }
        self.count = self.count.checked_add(1).ok_or_else(self::too_large)?;
        Ok(())
    }

    pub(crate) fn finish(mut self) -> io::Result<W> {
        let size = u32::try_from(self.directory.len()).map_err(|_| too_large())?;
        self.out.write_all(&self.directory)?;
        self.out.write_all(b"PK\x05\x06\0\0\0\0")?;
        for _ in 0..2 {
            self.out.write_all(&self.count.to_le_bytes())?;
        }
        self.out.write_all(&size.to_le_bytes())?;
        self.out.write_all(&self.offset.to_le_bytes())?;
        self.out.write_all(&[0, 0])?;
        self.out.flush()?;
        Ok(self.out)
    }
}

fn too_large() -> io::Error {
    io::Error::other("more than a zip file can hold: 4 GiB, 65535 arrays")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tensors() -> Vec<Tensor> {
        let of = |shape: &[usize], data| Tensor::new(shape.to_vec(), data).unwrap();
        vec![
            of(&[2, 1], Data::F32(vec![1.5, f32::NEG_INFINITY])),
            of(&[], Data::U8(vec![255])),
            of(&[3], Data::I8(vec![-128, 0, 127])),
            of(&[1, 1, 1, 2], Data::I32(vec![i32::MIN, 7])),
            of(&[1], Data::I64(vec![i64::MAX])),
            of(&[2, 0], Data::F32(vec![])),
            of(&[2], Data::Bool(vec![true, false])),
        ]
    }

    #[test]
    fn what_is_written_is_read() {
        for tensor in tensors() {
            let bytes = write(&tensor);
            assert_eq!(read(&bytes).unwrap(), tensor);
            let header = 10 + usize::from(bytes[8]) + 256 * usize::from(bytes[9]);
            assert_eq!(header % ALIGNMENT, 0, "{tensor:?}");
            for end in 0..bytes.len() - usize::from(!tensor.data().is_empty()) {
                assert!(read(&bytes[..end]).is_err() || tensor.data().is_empty(), "{tensor:?} cut at {end}");
            }
        }
    }

    #[test]
    fn what_numpy_writes_is_read() {
        // numpy.save of numpy.arange(3, dtype="i4"), 2.x.
        let mut bytes =
            b"\x93NUMPY\x01\x00v\x00{'descr': '<i4', 'fortran_order': False, 'shape': (3,), }".to_vec();
        bytes.resize(127, b' ');
        bytes.push(b'\n');
        bytes.extend([0, 0, 0, 0, 1, 0, 0, 0, 2, 0, 0, 0]);
        assert_eq!(read(&bytes).unwrap(), Tensor::new(vec![3], Data::I32(vec![0, 1, 2])).unwrap());
    }

    #[test]
    fn other_forms_are_refused_with_the_reason() {
        let file = |header: &str, data: &[u8]| {
            let length = (header.len() as u16).to_le_bytes();
            [&MAGIC[..], &[1, 0], &length, header.as_bytes(), data].concat()
        };
        let cases = [
            (b"PK\x03\x04".to_vec(), "no NumPy array"),
            (file("{'descr': '<f8', 'fortran_order': False, 'shape': (1,), }", &[0; 8]), "\"<f8\""),
            (file("{'descr': '<f4', 'fortran_order': True, 'shape': (1,), }", &[0; 4]), "Fortran order"),
            (file("{'descr': '<f4', 'fortran_order': False, 'shape': (2,), }", &[0; 4]), "does not hold 1"),
            (file("{'descr': '<f4', 'fortran_order': False, 'shape': (1,), }", &[0; 5]), "no whole number"),
            (file("{'descr': '<f4', 'fortran_order': False, 'shape': (-1,), }", &[]), "\"-1\""),
            (file("{'descr': [('a', '<f4')], 'fortran_order': False, 'shape': (1,), }", &[]), "no plain one"),
        ];
        for (bytes, expected) in cases {
            let error = format!("{:#}", read(&bytes).unwrap_err());
            assert!(error.contains(expected), "{error}");
        }
    }

    #[test]
    fn an_archive_lists_its_arrays() {
        let mut writer = NpzWriter::new(Vec::new());
        for (i, tensor) in tensors().iter().enumerate() {
            writer.add(&format!("layer/{i}"), tensor).unwrap();
        }
        let bytes = writer.finish().unwrap();
        // The directory's place is told at the end; each entry there tells the place of its local header.
        let at = |from: usize| u32::from_le_bytes(bytes[from..from + 4].try_into().unwrap()) as usize;
        let (size, mut entry) = (at(bytes.len() - 10), at(bytes.len() - 6));
        assert_eq!(entry + size + 22, bytes.len());
        for (i, tensor) in tensors().iter().enumerate() {
            let name = format!("layer/{i}.npy");
            assert_eq!(&bytes[entry + 46..entry + 46 + name.len()], name.as_bytes());
            let (local, length) = (at(entry + 42), at(entry + 20));
            let content = &bytes[local + 30 + name.len()..][..length];
            assert_eq!(read(content).unwrap(), *tensor);
            assert_eq!(at(entry + 16) as u32, crc32fast::hash(content));
            entry += 46 + name.len();
        }
    }
}
