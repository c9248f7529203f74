//! Holm's step-down correction: of many comparisons some look different by chance.

/// The p values, corrected for their number, in their order.
pub fn holm(p: &[f64]) -> Vec<f64> {
    let mut order: Vec<(usize, f64)> = p.iter().copied().enumerate().collect();
    order.sort_by(|a, b| a.1.total_cmp(&b.1));
    let mut corrected = vec![1.0; p.len()];
    let mut most: f64 = 0.0;
    for (rank, (place, p_value)) in order.iter().enumerate() {
        most = most.max((p_value * (p.len() - rank) as f64).min(1.0));
        if let Some(slot) = corrected.get_mut(*place) {
            *slot = most;
        }
    }
    corrected
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_case_worked_out_by_hand() {
        // Sorted 0.005 x 4, 0.01 x 3, 0.03 x 2, 0.04 x 1; the last is not less than the one before.
        let corrected = holm(&[0.01, 0.04, 0.03, 0.005]);
        for (got, want) in corrected.iter().zip([0.03, 0.06, 0.06, 0.02]) {
            assert!((got - want).abs() < 1e-12, "{corrected:?}");
        }
        assert_eq!(holm(&[0.2]), [0.2]);
        assert!(holm(&[]).is_empty());
    }

    proptest! {
        #[test]
        fn no_p_becomes_smaller_nor_the_order_another(p in prop::collection::vec(0.0_f64..1.0, 1..12)) {
            let corrected = holm(&p);
            for (one, before) in corrected.iter().zip(&p) {
                prop_assert!(one >= before && *one <= 1.0);
            }
            for (a, b) in (0..p.len()).flat_map(|a| (0..p.len()).map(move |b| (a, b))) {
                prop_assert!(p[a] > p[b] || corrected[a] <= corrected[b]);
            }
        }
    }
}
