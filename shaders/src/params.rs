//! Parameters of the kernels. Each list of names is both the WGSL struct and the Rust one, so that they can't differ. All
//! are u32; kernels read signed ones with `i32()`. Offsets into the arena and the constants are in words unless said otherwise.

/// Bytes of the largest block, and from one step's to the next's: what uniform buffers must be aligned to at most.
pub const PARAMS_BYTES: u64 = 256;

macro_rules! params {
    ($(#[$doc:meta])* $name:ident: $($field:ident)+) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        #[expect(missing_docs, reason = "the kernel's text says what each is")]
        pub struct $name { $(pub $field: u32),+ }

        impl $name {
            pub(crate) const WGSL: &'static str =
                concat!("struct Params {\n", $("    ", stringify!($field), ": u32,\n",)+ "}\n");

            /// As they lie in the uniform buffer.
            pub fn words(&self) -> Vec<u32> {
                vec![$(self.$field),+]
            }
        }
    };
}

params! {
    /// `in_base`, `in_stride`, `pad_base` and `depth` of `quads` variants are in groups of four words; `bias`, `multiplier`
    /// and `weights` always are. `columns` counts groups of `out` words of output channels.
    ConvolutionParams:
    in_base in_stride in_width in_height out_base out_stride out_row out_width out_words pixels columns depth
    kernel_h kernel_w stride_h stride_w dilation_h dilation_w top left pad_base weights bias multiplier starts
    zero low high table
    join join_a join_b join_c join_shift join_low join_high join_table skip_base skip_stride skip_first
}

params! {
    /// `weights` in words, `bias` and `multiplier` in groups of four.
    DepthwiseParams:
    in_base in_stride in_width in_height out_base out_stride out_row out_width out_height out_words
    kernel_h kernel_w stride_h stride_w dilation_h dilation_w top left pad weights bias multiplier
    zero low high table
    join join_a join_b join_c join_shift join_low join_high join_table skip_base skip_stride skip_first
}

params! {
    BinaryParams:
    a_base a_stride b_base b_stride out_base out_stride out_words pixels
    join join_a join_b join_c join_shift join_low join_high join_table
}

params! {
    LookupParams:
    in_base in_stride out_base out_stride out_words pixels table apart
}

params! {
    MaximumParams:
    in_base in_stride in_width in_height out_base out_stride out_width out_words pixels
    kernel_h kernel_w stride_h stride_w dilation_h dilation_w top left
}

params! {
    MeanParams:
    in_base in_stride pixels out_base out_words stairs
}

params! {
    SelectParams:
    in_base in_stride in_width out_base out_stride out_width out_words pixels rows columns channels fill
}

params! {
    /// `stairs`: where the staircase of each count begins, by count.
    AverageParams:
    in_base in_stride in_width in_height out_base out_stride out_width out_words pixels
    kernel_h kernel_w stride_h stride_w dilation_h dilation_w top left row_counts column_counts values stairs
}

params! {
    MixedParams:
    in_base in_stride in_width out_base out_stride out_width out_words pixels rows columns classes tables stairs
}

params! {
    MatrixParams:
    a_base a_stride a_zero b_base b_stride b_zero out_base out_stride out_words pixels height depth stairs table
}

params! {
    ChannelMeanParams:
    in_base in_stride channels out_base out_stride out_words pixels stairs
}

params! {
    /// `stairs`: where the staircase of each distance from the greatest begins.
    SoftmaxParams:
    in_base in_stride channels out_base out_stride out_words pixels worth stairs
}

params! {
    /// `flip`: what makes the best byte the greatest; `order`: what makes the best of equal ones the last.
    PositionParams:
    in_base in_stride channels out_base out_stride pixels flip order
}

params! {
    /// Steps from a pixel's or a channel's value to the next one's; `nan`: the byte of what is no number.
    QuantiseParams:
    in_base pixel_step channel_step channels out_base out_stride out_words pixels stairs nan
}

params! {
    PictureParams:
    in_base channels out_base out_stride out_words pixels tables
}

params! {
    /// `stairs`: where the staircase of the first channel begins, and the others behind it; `fill`: the bytes of a pixel beside
    /// the picture.
    ResizedParams:
    channels width pixels out_base out_stride stairs fill
}

params! {
    /// Steps from a pixel's or a channel's value to the next one's; `first` of the `channels` that are wanted;
    /// `tables`: where the table of each begins.
    DequantiseParams:
    in_base in_stride first channels out_base pixel_step channel_step pixels tables
}

params! {
    /// `count` words are assembled; all else is in bytes.
    CopyParams:
    in_base channel_step out_base out_stride channels pixels count
    size_0 step_0 size_1 step_1 size_2 step_2 size_3 step_3 size_4 step_4 size_5 step_5
}

params! {
    /// As are all of the float kernels': offsets in quads of four channels; `first_a`, `first_b`, `then_a` and `then_b` the
    /// bits of f32. `columns` counts groups of `out` quads of output channels; `group_words`: quads that one group of a
    /// grouped convolution has, or more than there are; `out_first`, `out_down` and `out_right`: pixels of the output to the first
    /// result, from row to row and from column to column.
    FloatConvolutionParams:
    in_base in_stride in_width in_height out_base out_stride out_width out_words out_first out_down out_right
    pixels columns depth
    kernel_h kernel_w stride_h stride_w dilation_h dilation_w top left zeros weights bias group_words
    first first_a first_b skip_base skip_stride then then_a then_b
}

params! {
    FloatDepthwiseParams:
    in_base in_stride in_width in_height out_base out_stride out_width out_height out_words
    kernel_h kernel_w stride_h stride_w dilation_h dilation_w top left weights bias
    first first_a first_b skip_base skip_stride then then_a then_b
}

params! {
    /// `divisor`: 0 for as many as lie inside.
    FloatPoolParams:
    in_base in_stride in_width in_height out_base out_stride out_width out_words pixels
    kernel_h kernel_w stride_h stride_w dilation_h dilation_w top left divisor
}

params! {
    FloatMeanParams:
    in_base in_stride pixels out_base out_words
}

params! {
    FloatBinaryParams:
    a_base a_stride a_step b_base b_stride b_step out_base out_stride out_words pixels channels operation
    first first_a first_b
}

params! {
    /// `planes`: the word where the plane of the first channel begins; `columns`: quads of a pixel's channels.
    FloatPlanesParams:
    base stride columns pixels channels planes
}

params! {
    FloatCopyParams:
    in_base in_stride channels out_base out_stride out_words pixels
}

params! {
    /// `rows` and `columns`: where the words begin that say for each of the output which one of the input it is; `fill`:
    /// the bits of the f32 where that is none.
    FloatSelectParams:
    in_base in_stride in_width out_base out_stride out_width out_words pixels rows columns fill
}

params! {
    /// `rows` and `columns` as above, but four words each: two indices, and the bits of two weights.
    FloatMixParams:
    in_base in_stride in_width out_base out_stride out_width out_words pixels rows columns
}
