//! Cases that fail, and why. A case that passes must not be here: the tests fail until its line is gone.

/// Of one operator.
pub(crate) const ONE: &[(&str, &str)] = &[
    ("test_batchnorm_epsilon_training_mode", "tract: training is not inference, three outputs"),
    ("test_batchnorm_example_training_mode", "tract: training is not inference, three outputs"),
    ("test_dequantizelinear_blocked", "tract: no scales a block"),
    ("test_matmul_1d_1d", "tract: no product of two vectors"),
    ("test_quantizelinear_blocked_asymmetric", "tract: no scales a block"),
    ("test_wrap_pad", "tract: no mode wrap"),
];

/// Of several operators.
pub(crate) const SEVERAL: &[(&str, &str)] = &[
    ("test_affine_grid_2d_align_corners_expanded", "tract: a Range whose bounds are computed"),
    ("test_affine_grid_2d_expanded", "tract: a Range whose bounds are computed"),
    ("test_affine_grid_3d_align_corners_expanded", "tract: an If whose condition is computed"),
    ("test_affine_grid_3d_expanded", "tract: an If whose condition is computed"),
    ("test_attention_4d_diff_heads_mask4d_padded_kv_expanded", "tract: an If whose condition is computed"),
    ("test_bernoulli_seed_expanded", "tract: no RandomUniformLike"),
    ("test_dynamicquantizelinear_expanded", "tract: a QuantizeLinear whose scale is computed"),
    ("test_dynamicquantizelinear_max_adjusted_expanded", "tract: a QuantizeLinear whose scale is computed"),
    ("test_dynamicquantizelinear_min_adjusted_expanded", "tract: a QuantizeLinear whose scale is computed"),
];
