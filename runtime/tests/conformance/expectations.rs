//! Cases that fail, and why. A case that passes must not be here: the tests fail until its line is gone.

/// Of one operator.
pub(crate) const ONE: &[(&str, &str)] = &[];

/// Of several operators.
pub(crate) const SEVERAL: &[(&str, &str)] = &[
    ("test_affine_grid_2d_align_corners_expanded", "tract: a Range whose bounds are computed"),
    ("test_affine_grid_2d_expanded", "tract: a Range whose bounds are computed"),
    ("test_affine_grid_3d_align_corners_expanded", "tract: an If whose condition is computed"),
    ("test_affine_grid_3d_expanded", "tract: an If whose condition is computed"),
    ("test_bernoulli_seed_expanded", "tract: no RandomUniformLike"),
];
