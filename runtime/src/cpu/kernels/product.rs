//! Matrix products of unsigned bytes with packed weights: convolutions and fully connected layers.
//!
//! The left side is not copied together: a row is a window on an activation, and its bytes are a few runs at fixed
//! distances ([`Windows`]). A product is computed in tiles of some rows by 1 to 4 vectors of columns, whose sums stay in
//! registers until they are bytes.
#![allow(unsafe_code, reason = "a named kernel module: every block says why it is safe")]
#![allow(clippy::needless_range_loop, reason = "registers are several arrays, one index")]

mod after;
mod pack;

use std::ops::Range;

use super::{
    Isa, Target, Team, requantise,
    simd::{Finish, Simd},
};

use after::Addition;
pub(crate) use after::Skip;
use pack::Block;
pub(crate) use pack::Matrix;

/// A line of a cache.
const LINE: usize = 64;
/// Four bytes of a row at a time.
const STEP: usize = 4;
/// Tiles have 6, 8, or 1 to 4 rows.
const TILES: usize = 24;

/// Rows of the left side: row `r` starts at `start + r / width * down + r % width * right` of the input, and consists of
/// runs at `runs` from there. A kernel reads runs rounded up to 4 bytes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Windows<'a> {
    pub(crate) rows: usize,
    pub(crate) start: usize,
    pub(crate) width: usize,
    pub(crate) right: usize,
    pub(crate) down: usize,
    pub(crate) runs: &'a [usize],
}

impl Windows<'_> {
    fn at(&self, row: usize) -> usize {
        self.start + row / self.width * self.down + row % self.width * self.right
    }
}

/// Where a row's columns go: `offset + r * stride`.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Place {
    pub(crate) offset: usize,
    pub(crate) stride: usize,
}

/// What happens to sums.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Finished<'a> {
    pub(crate) target: Target,
    /// The byte that each byte becomes.
    pub(crate) table: Option<&'a [u8; 256]>,
    /// What is added to these at last.
    pub(crate) skip: Option<Skip<'a>>,
}

/// All rows of a product, into `out`.
pub(crate) fn product(
    team: &mut Team,
    input: &[u8],
    windows: Windows<'_>,
    matrix: &Matrix,
    result: Finished<'_>,
    out: &mut [u8],
    place: Place,
) {
    let Some(last) = windows.rows.checked_sub(1) else { return };
    let lines = last / windows.width * windows.down;
    let furthest = lines + last.min(windows.width - 1) * windows.right;
    let run = windows.runs.iter().max().map_or(0, |run| run + matrix.steps() * STEP);
    assert!(windows.runs.len() == matrix.runs && windows.start + furthest + run <= input.len());
    assert!(place.offset + last * place.stride + matrix.columns <= out.len());
    assert!(windows.rows == 1 || matrix.columns <= place.stride);
    if let Some(skip) = &result.skip {
        assert!(last * skip.stride + matrix.columns <= skip.bytes.len());
    }
    let job = Job { input, windows, matrix, result, out: Out(out.as_mut_ptr()), place };
    let (down, across) = divide(team.threads(), windows.rows, matrix);
    // Whole tiles: rows that are left over in each part would be computed more than once.
    let rows = windows.rows.div_ceil(down);
    let rows = if rows >= 2 * TILES { rows / TILES * TILES } else { rows };
    let (down, blocks) = (windows.rows.div_ceil(rows), matrix.blocks.len().div_ceil(across));
    let cut = |part: usize, size: usize, length: usize| part * size..((part + 1) * size).min(length);
    team.parts(down * across, &|part| {
        let (rows, blocks) =
            (cut(part % down, rows, windows.rows), cut(part / down, blocks, matrix.blocks.len()));
        // Safety: rows and columns were checked above; no two parts share a row of a block.
        unsafe { job.run(rows, blocks) }
    });
}

/// Parts by rows, and by blocks: the side with the larger memory traffic is cut.
fn divide(threads: usize, rows: usize, matrix: &Matrix) -> (usize, usize) {
    /// So few that each thread may read them all: rows stay with the thread that wrote them.
    const WEIGHTS_SHARED: usize = 128 << 10;
    /// Fewer are not worth the way to another thread.
    const PRODUCTS_MIN: usize = 1 << 18;
    if threads == 1 {
        return (1, 1);
    }
    let parts = (rows.saturating_mul(matrix.products()) / PRODUCTS_MIN).clamp(1, 4 * threads);
    let blocks = matrix.blocks.len();
    let shared = matrix.weights.len() <= WEIGHTS_SHARED && rows >= 2 * TILES;
    let across = if matrix.columns > rows && !shared { parts.min(blocks) } else { 1 };
    let down = (parts / across).clamp(1, rows.div_ceil(8));
    let across = if down == 1 { parts.min(blocks) } else { across };
    // None may be empty.
    let whole = |length: usize, parts: usize| length.div_ceil(length.div_ceil(parts));
    (whole(rows, down), whole(blocks, across))
}

#[derive(Clone, Copy)]
struct Out(*mut u8);

// Safety: parts write different bytes, see `product`.
unsafe impl Send for Out {}
// Safety: as above.
unsafe impl Sync for Out {}

/// A product whose sizes are checked.
#[derive(Clone, Copy)]
pub(super) struct Job<'a> {
    input: &'a [u8],
    windows: Windows<'a>,
    matrix: &'a Matrix,
    result: Finished<'a>,
    out: Out,
    place: Place,
}

impl Job<'_> {
    /// # Safety
    /// `product` has checked the job; nobody else writes these rows' columns of these blocks.
    unsafe fn run(&self, rows: Range<usize>, blocks: Range<usize>) {
        /// As much of the left side as stays in the second-level cache while all blocks read it.
        const BYTES: usize = 256 << 10;
        /// Weights that stay in the first-level cache.
        const WEIGHTS: usize = 32 << 10;
        let row = (self.matrix.runs * self.matrix.run).max(1);
        let many = if self.matrix.weights.len() <= WEIGHTS { 48 } else { (BYTES / row).max(48) };
        let many = many.next_multiple_of(24);
        let mut first = rows.start;
        while first < rows.end {
            let end = (first + many).min(rows.end);
            // Safety: the caller's word.
            unsafe {
                match self.matrix.isa {
                    Isa::Scalar => self.scalar(first..end, blocks.clone()),
                    #[cfg(target_arch = "x86_64")]
                    Isa::Avx512Vnni(token) => super::avx512::product(token, self, first..end, blocks.clone()),
                    #[cfg(target_arch = "x86_64")]
                    Isa::AvxVnni(token) => super::avx2::product_vnni(token, self, first..end, blocks.clone()),
                    #[cfg(target_arch = "x86_64")]
                    Isa::Avx2(token) => super::avx2::product(token, self, first..end, blocks.clone()),
                    #[cfg(target_arch = "aarch64")]
                    Isa::Neon(token) => super::neon::product(token, self, first..end, blocks.clone()),
                    #[cfg(target_arch = "aarch64")]
                    Isa::DotProd(token) => super::neon::product_dot(token, self, first..end, blocks.clone()),
                    #[cfg(target_arch = "aarch64")]
                    Isa::I8mm(token) => super::neon::product_mixed(token, self, first..end, blocks.clone()),
                }
            }
            // Safety: the caller's word.
            unsafe { self.after(first..end, blocks.clone()) };
            first = end;
        }
    }

    /// The reference: each sum by itself, from the packed weights.
    ///
    /// # Safety
    /// As [`Self::run`].
    unsafe fn scalar(&self, rows: Range<usize>, blocks: Range<usize>) {
        let (matrix, lanes) = (self.matrix, self.matrix.isa.lanes());
        for block in &matrix.blocks[blocks] {
            let values = 4 * lanes * block.vectors;
            for row in rows.clone() {
                let from = self.windows.at(row);
                for c in 0..values.min(matrix.columns - block.column) {
                    let (l, v, i) = (c / 4 / block.vectors, c / 4 % block.vectors, c % 4);
                    let at = 4 * (lanes * v + l) + i;
                    let mut sum = matrix.bias[block.sums + at];
                    for (r, run) in self.windows.runs.iter().enumerate() {
                        for k in 0..matrix.run {
                            let step = r * matrix.steps() + k / STEP;
                            let weight = block.weights + STEP * (step * values + at) + k % STEP;
                            sum += i32::from(self.input[from + run + k])
                                * i32::from(matrix.weights[weight] as i8);
                        }
                    }
                    let byte = requantise(sum, matrix.multiplier[block.sums + at], self.result.target);
                    let to = self.place.offset + row * self.place.stride + block.column + c;
                    // Safety: `product` checked the last row's last column.
                    unsafe { *self.out.0.add(to) = byte };
                }
            }
        }
    }

    /// Tiles of `R4` rows by 4 vectors, `R3` by 3 and so on; of `L4`, `L3` and `L2`, one row less, where fewer rows come
    /// twice then.
    ///
    /// # Safety
    /// As [`Self::run`]; `simd` is what the matrix is packed for.
    #[inline(always)]
    pub(super) unsafe fn tiles<
        S: Simd,
        const R4: usize,
        const L4: usize,
        const R3: usize,
        const L3: usize,
        const R2: usize,
        const L2: usize,
        const R1: usize,
    >(
        &self,
        simd: S,
        rows: Range<usize>,
        blocks: Range<usize>,
    ) {
        let adds = self.adds_in_tiles();
        let less =
            |most: usize, less: usize| rows.len().next_multiple_of(less) < rows.len().next_multiple_of(most);
        for block in &self.matrix.blocks[blocks] {
            // Safety: the caller's word; `vectors` is 1 to 4.
            unsafe {
                match (block.vectors, rows.len()) {
                    (4, _) if adds && less(R4, L4) => self.rows::<S, L4, 4, true>(simd, block, rows.clone()),
                    (4, _) if adds => self.rows::<S, R4, 4, true>(simd, block, rows.clone()),
                    (4, 1) => self.rows::<S, 1, 4, false>(simd, block, rows.clone()),
                    (4, _) if less(R4, L4) => self.rows::<S, L4, 4, false>(simd, block, rows.clone()),
                    (4, _) => self.rows::<S, R4, 4, false>(simd, block, rows.clone()),
                    (3, _) if less(R3, L3) => self.rows::<S, L3, 3, false>(simd, block, rows.clone()),
                    (3, _) => self.rows::<S, R3, 3, false>(simd, block, rows.clone()),
                    (2, _) if less(R2, L2) => self.rows::<S, L2, 2, false>(simd, block, rows.clone()),
                    (2, _) => self.rows::<S, R2, 2, false>(simd, block, rows.clone()),
                    _ => self.rows::<S, R1, 1, false>(simd, block, rows.clone()),
                }
            }
        }
    }

    /// One block of columns, with the residual addition or without.
    ///
    /// # Safety
    /// As [`Self::tiles`]; the block has `V` vectors; `ADDS` is [`Self::adds_in_tiles`].
    #[inline(always)]
    unsafe fn rows<S: Simd, const R: usize, const V: usize, const ADDS: bool>(
        &self,
        simd: S,
        block: &Block,
        rows: Range<usize>,
    ) {
        let matrix = self.matrix;
        let tile = Tile {
            simd,
            runs: self.windows.runs,
            steps: matrix.steps(),
            weights: matrix.weights[block.weights..].as_ptr(),
            bias: matrix.bias[block.sums..].as_ptr(),
            multiplier: matrix.multiplier[block.sums..].as_ptr(),
            finish: Finish::new(simd, self.result.target),
            columns: matrix.columns - block.column,
            addition: self.result.skip.map(|skip| Addition::new(simd, &skip, self.result.target)),
        };
        let (skip, apart) =
            self.result.skip.map_or((self.input.as_ptr(), 0), |skip| (skip.bytes.as_ptr(), skip.stride));
        let Windows { width, right, down, .. } = self.windows;
        let (mut row, mut x) = (rows.start, rows.start % width);
        let mut line = self.windows.start + row / width * down;
        // While a block is multiplied, the next one's weights come nearer: a line a step, from here on.
        let own = matrix.weights[block.weights..].as_ptr();
        let next = own.wrapping_add(tile.runs.len() * tile.steps * V * 16 * S::LANES);
        let lines = tile.runs.len() * tile.steps * LINE;
        let (mut ahead, end) = (next, next.wrapping_add(tile.runs.len() * tile.steps * V * 16 * S::LANES));
        while row < rows.end {
            // Where rows are fewer than the tile's, the last comes again.
            let mut from = [self.input.as_ptr(); R];
            let mut to = [self.out.0; R];
            let mut skips = [skip; R];
            for r in 0..R {
                // Safety: `row` is one of the rows whose place `product` has checked.
                unsafe {
                    from[r] = self.input.as_ptr().add(line + x * right);
                    to[r] = self
                        .out
                        .0
                        .add(self.place.offset + row.min(rows.end - 1) * self.place.stride + block.column);
                    if ADDS {
                        skips[r] = skip.add(row.min(rows.end - 1) * apart + block.column);
                    }
                }
                row += 1;
                if row < rows.end {
                    x += 1;
                    if x == width {
                        (x, line) = (0, line + down);
                    }
                }
            }
            // Safety: whole rows of both sides.
            unsafe { tile.run::<R, V, ADDS>(from, to, skips, if ahead < end { ahead } else { own }) };
            ahead = ahead.wrapping_add(lines);
        }
    }
}

/// What the tiles of a block have in common.
struct Tile<'a, S: Simd> {
    simd: S,
    runs: &'a [usize],
    steps: usize,
    weights: *const u8,
    bias: *const i32,
    multiplier: *const f32,
    finish: Finish<S>,
    /// Columns to write, if there are so many in the block.
    columns: usize,
    addition: Option<Addition<S>>,
}

impl<S: Simd> Tile<'_, S> {
    /// # Safety
    /// Every row of `from` has all runs, every row of `to`, and of `skips` if it `ADDS`, the block's columns; the block has
    /// `V` vectors.
    #[inline(always)]
    unsafe fn run<const R: usize, const V: usize, const ADDS: bool>(
        &self,
        from: [*const u8; R],
        to: [*mut u8; R],
        skips: [*const u8; R],
        mut ahead: *const u8,
    ) {
        let simd = self.simd;
        let bytes = 16 * S::LANES;
        let mut sums = [[simd.zero(); V]; R];
        for v in 0..V {
            // Safety: the block has a bias for each value.
            let bias = unsafe { simd.load(self.bias.cast::<u8>().add(v * bytes)) };
            for row in &mut sums {
                row[v] = bias;
            }
        }
        let mut at = self.weights;
        for run in self.runs {
            for step in 0..self.steps {
                let mut weights = [simd.zero(); V];
                for (v, weights) in weights.iter_mut().enumerate() {
                    // Safety: `V` vectors of weights a step.
                    *weights = unsafe { simd.load(at.add(v * bytes)) };
                }
                for r in 0..R {
                    // Safety: the row has the run, rounded up to whole steps.
                    let four = unsafe { simd.splat_four(from[r].add(run + STEP * step)) };
                    for v in 0..V {
                        sums[r][v] = simd.dot(sums[r][v], four, weights[v]);
                    }
                }
                simd.prefetch(ahead);
                ahead = ahead.wrapping_add(LINE);
                // Safety: at most the end of the block's weights.
                at = unsafe { at.add(V * bytes) };
            }
        }
        // Rows by constants: an index that varies would keep all sums in memory, in the loop above too.
        macro_rules! rows {
            ($($r:literal)*) => {$(
                if $r < R && $r % const { rows_a_vector(V) } == 0 {
                    // Safety: each row has the block's columns.
                    unsafe { self.finish::<R, V, $r, ADDS>(&sums, &to, &skips) }
                }
            )*};
        }
        rows!(0 1 2 3 4 5 6 7 8 9 10 11);
    }

    /// Sums of the rows of one vector, from `FIRST` on, to bytes.
    ///
    /// # Safety
    /// Each row of `to` has the block's columns, of `skips` too if it `ADDS`; the block has `V` vectors, 4 if it `ADDS`.
    #[inline(always)]
    unsafe fn finish<const R: usize, const V: usize, const FIRST: usize, const ADDS: bool>(
        &self,
        sums: &[[S::Int; V]; R],
        to: &[*mut u8; R],
        skips: &[*const u8; R],
    ) {
        let (simd, bytes) = (self.simd, 16 * S::LANES);
        let rows = const { rows_a_vector(V) };
        let mut quad = [simd.zero(); 4];
        if ADDS && let Some(addition) = &self.addition {
            // Safety: the caller's word.
            let skip = simd.widen(unsafe { simd.load(skips[FIRST]) });
            for v in 0..V {
                // Safety: the block has a multiplier for each value.
                let multiplier = unsafe { simd.load_real(self.multiplier.add(v * bytes / 4)) };
                quad[v] = addition.round(simd, simd.mul(simd.to_real(sums[FIRST][v]), multiplier), skip[v]);
            }
            // Safety: the caller's word.
            return unsafe { simd.store(to[FIRST], addition.bytes(simd, quad)) };
        }
        for v in 0..V {
            // Safety: the block has a multiplier for each value.
            let multiplier = unsafe { simd.load_real(self.multiplier.add(v * bytes / 4)) };
            for r in 0..rows {
                if FIRST + r < R {
                    quad[r * V + v] = self.finish.round(simd, sums[FIRST + r][v], multiplier);
                }
            }
        }
        let result = simd.gather_rows::<V>(self.finish.bytes(simd, quad));
        // Safety: the caller's word.
        unsafe {
            if V == 4 && self.columns >= bytes {
                simd.store(to[FIRST], result);
            } else if rows == 1 {
                simd.store_first(to[FIRST], result, self.columns.min(4 * V * S::LANES));
            } else {
                let mut all = [0u8; 64];
                simd.store(all.as_mut_ptr(), result);
                for r in 0..rows {
                    if FIRST + r < R {
                        let from = all.as_ptr().add(r * bytes / rows);
                        copy(from, to[FIRST + r], self.columns.min(bytes / rows));
                    }
                }
            }
        }
    }
}

/// Rows of `vectors` each that one vector of bytes holds.
const fn rows_a_vector(vectors: usize) -> usize {
    if vectors == 1 { 4 } else { 1 }
}

/// Few bytes.
///
/// # Safety
/// Both have `count` bytes, at most 32.
#[inline(always)]
unsafe fn copy(from: *const u8, to: *mut u8, count: usize) {
    // Safety: from the start and up to the end, of at least 16 or 8 bytes.
    unsafe {
        if count >= 16 {
            to.cast::<[u8; 16]>().write_unaligned(from.cast::<[u8; 16]>().read_unaligned());
            let last = count - 16;
            to.add(last)
                .cast::<[u8; 16]>()
                .write_unaligned(from.add(last).cast::<[u8; 16]>().read_unaligned());
        } else if count >= 8 {
            to.cast::<[u8; 8]>().write_unaligned(from.cast::<[u8; 8]>().read_unaligned());
            let last = count - 8;
            to.add(last).cast::<[u8; 8]>().write_unaligned(from.add(last).cast::<[u8; 8]>().read_unaligned());
        } else {
            for i in 0..count {
                *to.add(i) = *from.add(i);
            }
        }
    }
}
